"""The compiled scan: one pass over an Arrow string array that yields words, lines and counts.

Words are split at white space, as the Gopher paper, NeMo and dolma do (datatrove tokenizes with
spaCy, which takes nine tenths of its time). Everything comes back as flat arrays with offsets for
each document, so filters and dedup work on numbers and never build a Python string. Hashes are 64
bits wide: among 10 million different words a single accidental pair has a chance of 3 in a million.
Steps that read the same column of the same batch share one scan.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.scan_kernels import count_separators, scan_documents
from pipelines.text_buffers import eight_bytes, same_memory, string_buffers
from pipelines.unicode_tables import character_classes

PADDING = 8
"""Bytes behind the last letter, so that eight bytes can be read from any of them."""

# Columns of the counts that the scan keeps for each document.
_COUNTS = (
    "n_code_points",
    "n_non_symbol_words",
    "n_non_symbol_characters",
    "n_alpha_words",
    "n_hash_signs",
    "n_ellipses",
    "n_text_lines",
    "n_bullet_lines",
    "n_ellipsis_lines",
)


@dataclass(frozen=True)
class Scan:
    """What one pass found in n documents. A null document has no words, lines or counts.

    Word w of document d: word_offsets[d] <= w < word_offsets[d + 1]; lines and paragraphs alike.
    Lengths are in code points, everything named bounds, start or stop in bytes.
    """

    valid: np.ndarray
    """bool (n,): false where the text is null."""

    word_offsets: np.ndarray
    """int64 (n + 1,)"""
    word_hash: np.ndarray
    """uint64 (words,): hash of the UTF-8 bytes; equal words, equal hashes."""
    word_length: np.ndarray
    """int32 (words,)"""
    word_bounds: np.ndarray
    """int32 (words + 1,): word w is letters[word_bounds[w]:word_bounds[w + 1]]."""
    letters: np.ndarray
    """uint8: the bytes of all words without the white space, then PADDING zero bytes."""

    line_offsets: np.ndarray
    """int64 (n + 1,): lines as re.split("\\n+", text) yields them, empty ones at the ends too."""
    line_hash: np.ndarray
    """uint64 (lines,)"""
    line_length: np.ndarray
    """int32 (lines,)"""
    line_spans: np.ndarray
    """int32 (lines, 2): start and stop within the document."""

    paragraph_offsets: np.ndarray
    """int64 (n + 1,): paragraphs as re.split("\\n{2,}", text.strip()) yields them."""
    paragraph_hash: np.ndarray
    """uint64 (paragraphs,)"""
    paragraph_length: np.ndarray
    """int32 (paragraphs,)"""

    counts: np.ndarray
    """int32 (n, 9): read them by name, below."""

    @property
    def n_words(self) -> np.ndarray:
        """int64 (n,): words split at white space."""
        return np.diff(self.word_offsets)

    @property
    def n_code_points(self) -> np.ndarray:
        """int32 (n,): len(text)."""
        return self._count("n_code_points")

    @property
    def n_non_symbol_words(self) -> np.ndarray:
        """int32 (n,): words with a character that is no punctuation."""
        return self._count("n_non_symbol_words")

    @property
    def n_non_symbol_characters(self) -> np.ndarray:
        """int32 (n,): code points of all non-symbol words."""
        return self._count("n_non_symbol_characters")

    @property
    def n_alpha_words(self) -> np.ndarray:
        """int32 (n,): words with a letter."""
        return self._count("n_alpha_words")

    @property
    def n_hash_signs(self) -> np.ndarray:
        """int32 (n,): text.count("#")."""
        return self._count("n_hash_signs")

    @property
    def n_ellipses(self) -> np.ndarray:
        """int32 (n,): text.count("...") and U+2026 together."""
        return self._count("n_ellipses")

    @property
    def n_text_lines(self) -> np.ndarray:
        """int32 (n,): len(text.splitlines())."""
        return self._count("n_text_lines")

    @property
    def n_bullet_lines(self) -> np.ndarray:
        """int32 (n,): text lines whose first word starts with "-" or U+2022."""
        return self._count("n_bullet_lines")

    @property
    def n_ellipsis_lines(self) -> np.ndarray:
        """int32 (n,): text lines whose last word ends with "..." or U+2026."""
        return self._count("n_ellipsis_lines")

    def _count(self, name: str) -> np.ndarray:
        return self.counts[:, _COUNTS.index(name)]


_last: tuple[pa.StringArray, Scan] | None = None


def scan(text: pa.StringArray) -> Scan:
    """Returns the scan of a string array; the last one is kept, so asking again costs nothing.

    Raises:
        ValueError: the array is not of type string.
    """
    global _last
    last = _last
    if last is not None and same_memory(last[0], text):
        return last[1]
    offsets, data, valid = string_buffers(text)
    n = len(text)
    part = data[offsets[0] : offsets[-1]]
    words, lines = count_separators(part)
    most = [words + 2 * n, lines + n, lines + n]
    letters = np.zeros(part.size + PADDING, np.uint8)
    bounds = np.empty(words + 2 * n + 1, np.int32)
    hashes = [np.empty(size, np.uint64) for size in most]
    lengths = [np.empty(size, np.int32) for size in most]
    spans = np.empty((lines + n, 2), np.int32)
    document_offsets = np.zeros((n + 1, 3), np.int64)
    counts = np.zeros((n, len(_COUNTS)), np.int32)
    scan_documents(
        data,
        eight_bytes(data),
        character_classes(),
        offsets,
        valid,
        letters,
        eight_bytes(letters),
        bounds,
        hashes[0],
        lengths[0],
        hashes[1],
        lengths[1],
        spans,
        hashes[2],
        lengths[2],
        document_offsets,
        counts,
    )
    words, lines, paragraphs = (int(x) for x in document_offsets[-1])
    result = Scan(
        valid=valid,
        word_offsets=document_offsets[:, 0],
        word_hash=hashes[0][:words],
        word_length=lengths[0][:words],
        word_bounds=bounds[: words + 1],
        letters=letters,
        line_offsets=document_offsets[:, 1],
        line_hash=hashes[1][:lines],
        line_length=lengths[1][:lines],
        line_spans=spans[:lines],
        paragraph_offsets=document_offsets[:, 2],
        paragraph_hash=hashes[2][:paragraphs],
        paragraph_length=lengths[2][:paragraphs],
        counts=counts,
    )
    _last = (text, result)
    return result
