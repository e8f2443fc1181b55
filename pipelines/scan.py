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

from pipelines import scan_kernels as kernels
from pipelines.byte_counts import count_separators, count_symbols
from pipelines.text_buffers import eight_bytes, same_memory, string_buffers
from pipelines.unicode_tables import character_classes

PADDING = 16
"""Bytes behind the last letter, so that 16 bytes can be read from any of them."""


@dataclass(frozen=True)
class Scan:
    """What one pass found in n documents. A null document has no words, lines or counts.

    Word w belongs to document d where word_offsets[d] <= w < word_offsets[d + 1]; lines and
    paragraphs alike. Lengths are in code points, bounds and spans in bytes.
    """

    valid: np.ndarray
    """bool (n,): false where the text is null."""

    word_offsets: np.ndarray
    """int64 (n + 1,)"""
    word_hash: np.ndarray
    """uint64 (words,): hash of the UTF-8 bytes."""
    word_length: np.ndarray
    """int32 (words,)"""
    word_bounds: np.ndarray
    """int32 (words + 1,): word w is letters[word_bounds[w]:word_bounds[w + 1]]."""
    letters: np.ndarray
    """uint8: the bytes of all words without the white space, and PADDING bytes more."""

    line_offsets: np.ndarray
    r"""int64 (n + 1,): lines as re.split("\n+", text) yields them, empty ones at the ends too."""
    line_hash: np.ndarray
    """uint64 (lines,)"""
    line_length: np.ndarray
    """int32 (lines,)"""
    line_spans: np.ndarray
    """int32 (lines, 2): start and stop within the document."""

    paragraph_offsets: np.ndarray
    r"""int64 (n + 1,): paragraphs as re.split("\n{2,}", text.strip()) yields them."""
    paragraph_hash: np.ndarray
    """uint64 (paragraphs,)"""
    paragraph_length: np.ndarray
    """int32 (paragraphs,)"""

    n_hash_signs: np.ndarray
    """int32 (n,): text.count("#")."""
    n_ellipses: np.ndarray
    """int32 (n,): text.count("...") and U+2026 together."""
    counts: np.ndarray
    """int32 (n, 7): read its columns by name, below."""

    def column(self, values: np.ndarray, kind: pa.DataType) -> pa.Array:
        """Returns one value a document as an Arrow array, null where the text is null."""
        values = np.asarray(values, kind.to_pandas_dtype())
        return pa.array(values, kind, mask=None if self.valid.all() else ~self.valid)

    @property
    def n_words(self) -> np.ndarray:
        """int64 (n,): words split at white space."""
        return np.diff(self.word_offsets)

    @property
    def n_code_points(self) -> np.ndarray:
        """int32 (n,): len(text)."""
        return self.counts[:, kernels.CODE_POINTS]

    @property
    def n_non_symbol_words(self) -> np.ndarray:
        """int32 (n,): words with a character that is no punctuation."""
        return self.counts[:, kernels.NON_SYMBOL_WORDS]

    @property
    def n_non_symbol_characters(self) -> np.ndarray:
        """int32 (n,): code points of all non-symbol words."""
        return self.counts[:, kernels.NON_SYMBOL_CHARACTERS]

    @property
    def n_alpha_words(self) -> np.ndarray:
        """int32 (n,): words with a letter."""
        return self.counts[:, kernels.ALPHA_WORDS]

    @property
    def n_text_lines(self) -> np.ndarray:
        """int32 (n,): len(text.splitlines())."""
        return self.counts[:, kernels.TEXT_LINES]

    @property
    def n_bullet_lines(self) -> np.ndarray:
        """int32 (n,): text lines whose first word starts with "-" or U+2022."""
        return self.counts[:, kernels.BULLET_LINES]

    @property
    def n_ellipsis_lines(self) -> np.ndarray:
        """int32 (n,): text lines whose last word ends with "..." or U+2026."""
        return self.counts[:, kernels.ELLIPSIS_LINES]


_last: tuple[pa.StringArray, Scan] | None = None


def scan(text: pa.StringArray) -> Scan:
    """Returns the scan of a string array; the last one is kept, so asking again costs nothing.

    Raises:
        ValueError: the array is not of type string, or holds bytes that are not UTF-8.
    """
    global _last
    last = _last
    if last is not None and same_memory(last[0], text):
        return last[1]
    result = _scanned(text)
    _last = (text, result)
    return result


def _scanned(text: pa.StringArray) -> Scan:
    offsets, data, valid = string_buffers(text)
    most_words, most_lines, most_ends = count_separators(data, offsets)
    letters = np.zeros(int(offsets[-1]) - int(offsets[0]) + PADDING, np.uint8)
    bounds = np.empty(most_words + 1, np.int32)
    words = kernels.Words(letters, eight_bytes(letters), bounds, *_hashes_and_lengths(most_words))
    spans = np.empty((most_lines, 2), np.int32)
    lines = kernels.Lines(*_hashes_and_lengths(most_lines), spans)
    paragraphs = kernels.Paragraphs(*_hashes_and_lengths(most_lines))
    offsets_out = np.zeros((len(text) + 1, 3), np.int64)
    counts = np.zeros((len(text), kernels.NUM_COUNTS), np.int32)
    source = kernels.Text(data, eight_bytes(data), character_classes())
    ends = np.empty((most_ends, 3), np.int32)
    kernels.scan_documents(
        source, offsets, valid, ends, words, lines, paragraphs, offsets_out, counts
    )
    num_words, num_lines, num_paragraphs = offsets_out[-1].tolist()
    symbols = count_symbols(data, offsets, valid)
    word_offsets, line_offsets, paragraph_offsets = np.ascontiguousarray(offsets_out.T)
    return Scan(
        valid=valid,
        word_offsets=word_offsets,
        word_hash=words.hashes[:num_words],
        word_length=words.lengths[:num_words],
        word_bounds=words.bounds[: num_words + 1],
        letters=letters,
        line_offsets=line_offsets,
        line_hash=lines.hashes[:num_lines],
        line_length=lines.lengths[:num_lines],
        line_spans=spans[:num_lines],
        paragraph_offsets=paragraph_offsets,
        paragraph_hash=paragraphs.hashes[:num_paragraphs],
        paragraph_length=paragraphs.lengths[:num_paragraphs],
        n_hash_signs=symbols[:, 0],
        n_ellipses=symbols[:, 1],
        counts=counts,
    )


def _hashes_and_lengths(size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.empty(size, np.uint64), np.empty(size, np.int32)
