"""Gopher's quality rules: does a text look like prose, by its words and lines.

The formulas are those of datatrove's GopherQualityFilter, on words split at white space as in the
paper; every count is an integer of the shared scan, so a ratio is the same in every batch.
"""

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.kernel import kernel
from pipelines.scan import scan
from pipelines.step import Filter, Rule


@dataclass(frozen=True)
class GopherQuality(Filter):
    """Bounds word count, word length, symbols, bullet and ellipsis lines, letters and stop words.

    Adds, for words split at white space:
    n_words (int32); n_non_symbol_words (int32), words with a character that is no punctuation, the
    ones that too_few_words and too_many_words count; mean_word_length (float64, code points of a
    non-symbol word); hash_sign_ratio and ellipsis_ratio (float64, per word; an ellipsis is "..." or
    U+2026); bullet_line_ratio and ellipsis_line_ratio (float64, per line of str.splitlines that
    starts with "-" or U+2022, or ends with an ellipsis); alpha_word_ratio (float64, words with a
    letter); n_stop_words (int32, different stop words, case-sensitive). A ratio of nothing is 0.
    All are null for a null text.

    Raises:
        ValueError: a stop word is empty or holds white space.

    Source: Rae et al. 2021, Gopher, arXiv:2112.11446, section A.1.1; formulas of datatrove 0.10.1,
    gopher_quality_filter.py.
    """

    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: float = 3.0
    max_mean_word_length: float = 10.0
    max_hash_sign_ratio: float = 0.1
    max_ellipsis_ratio: float = 0.1
    max_bullet_line_ratio: float = 0.9
    max_ellipsis_line_ratio: float = 0.3
    min_alpha_word_ratio: float = 0.8
    min_stop_words: int = 2
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")

    adds = pa.schema(
        [
            ("n_words", pa.int32()),
            ("n_non_symbol_words", pa.int32()),
            ("mean_word_length", pa.float64()),
            ("hash_sign_ratio", pa.float64()),
            ("ellipsis_ratio", pa.float64()),
            ("bullet_line_ratio", pa.float64()),
            ("ellipsis_line_ratio", pa.float64()),
            ("alpha_word_ratio", pa.float64()),
            ("n_stop_words", pa.int32()),
        ]
    )
    rules = (
        Rule("too_few_words", "n_non_symbol_words", "<", "min_words"),
        Rule("too_many_words", "n_non_symbol_words", ">", "max_words"),
        Rule("words_too_short", "mean_word_length", "<", "min_mean_word_length"),
        Rule("words_too_long", "mean_word_length", ">", "max_mean_word_length"),
        Rule("too_many_hash_signs", "hash_sign_ratio", ">", "max_hash_sign_ratio"),
        Rule("too_many_ellipses", "ellipsis_ratio", ">", "max_ellipsis_ratio"),
        Rule("too_many_bullet_lines", "bullet_line_ratio", ">", "max_bullet_line_ratio"),
        Rule("too_many_ellipsis_lines", "ellipsis_line_ratio", ">", "max_ellipsis_line_ratio"),
        Rule("too_few_alpha_words", "alpha_word_ratio", "<", "min_alpha_word_ratio"),
        Rule("too_few_stop_words", "n_stop_words", "<", "min_stop_words"),
    )

    def __post_init__(self) -> None:
        for word in self.stop_words:
            if word.split() != [word]:
                raise ValueError(
                    f"GopherQuality: stop word {word!r} is empty or holds white space; "
                    "give single words"
                )

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with the columns of `adds`."""
        stop_words = stop_word_table(self.stop_words)
        found = scan(batch.column("text"))
        words = np.maximum(found.n_words, 1)
        lines = np.maximum(found.n_text_lines, 1)
        values = (
            found.n_words,
            found.n_non_symbol_words,
            found.n_non_symbol_characters / np.maximum(found.n_non_symbol_words, 1),
            found.n_hash_signs / words,
            found.n_ellipses / words,
            found.n_bullet_lines / lines,
            found.n_ellipsis_lines / lines,
            found.n_alpha_words / words,
            count_stop_words(found.word_offsets, found.word_hash, stop_words),
        )
        for field, value in zip(self.adds, values, strict=True):
            batch = batch.append_column(field, found.column(value, field.type))
        return batch


@functools.cache
def stop_word_table(stop_words: tuple[str, ...]) -> np.ndarray:
    """Returns an open hash table (uint64, a power of two, at most 1/16 full) of the word hashes."""
    hashes = scan(pa.array(sorted(set(stop_words)), pa.string())).word_hash
    size = 64
    while size < 16 * len(hashes):
        size *= 2
    table = np.zeros(size, np.uint64)
    for value in hashes:
        slot = int(value) % size
        while table[slot]:
            slot = (slot + 1) % size
        table[slot] = value
    return table


@kernel
def count_stop_words(word_offsets, word_hash, table):
    """Returns the number of different stop words in each document as int32 (n,)."""
    n = word_offsets.size - 1
    counts = np.zeros(n, np.int32)
    met = np.full(table.size, -1, np.int64)  # the last document with this stop word
    mask = np.uint64(table.size - 1)
    for d in range(n):
        for w in range(word_offsets[d], word_offsets[d + 1]):
            value = word_hash[w]
            slot = np.int64(value & mask)
            while table[slot] != 0:
                if table[slot] == value:
                    counts[d] += met[slot] != d
                    met[slot] = d
                    break
                slot = (slot + 1) % table.size
    return counts
