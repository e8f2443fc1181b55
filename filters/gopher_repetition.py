"""Gopher's repetition rules: how much of a text says again what it said before.

The numbers are those of datatrove's GopherRepetitionFilter given the same words, to the last
character, at about 160 MB/s a core after the scan; only the words differ (white space here, spaCy
there).
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from filters.repetition_kernels import count_repetitions
from pipelines.scan import scan
from pipelines.step import Filter, Rule
from pipelines.text_buffers import eight_bytes

_ELEMENTS = ("duplicate_paragraph", "duplicate_line")
_GRAMS = tuple(f"top_{n}_gram" for n in (2, 3, 4)) + tuple(
    f"duplicate_{n}_gram" for n in range(5, 11)
)


@dataclass(frozen=True)
class GopherRepetition(Filter):
    """Bounds the share of duplicate paragraphs, lines and word n-grams.

    Adds n_characters (int32, code points) and 13 ratios (float64):
    duplicate_paragraph_ratio and duplicate_line_ratio are elements that occurred before over all
    elements (paragraphs are the stripped text split at two or more newlines, lines the text split
    at one or more); duplicate_paragraph_character_ratio and duplicate_line_character_ratio are
    their characters over all characters. top_N_gram_character_ratio is the length of the most
    frequent N words, joined by spaces, times its count, over all characters;
    duplicate_N_gram_character_ratio the characters, without spaces, of N words that occurred
    before, over all characters. All are 0 for an empty text and null for a null one. As in
    datatrove the first N words are the most frequent ones where none is repeated, so a text of
    fewer than about 25 words breaks a top_N_gram rule.

    Source: Rae et al. 2021, Gopher, arXiv:2112.11446, table A1; formulas of datatrove 0.10.1,
    gopher_repetition_filter.py.
    """

    min_characters: int = 1
    max_duplicate_paragraph_ratio: float = 0.30
    max_duplicate_paragraph_character_ratio: float = 0.20
    max_duplicate_line_ratio: float = 0.30
    max_duplicate_line_character_ratio: float = 0.20
    max_top_2_gram_character_ratio: float = 0.20
    max_top_3_gram_character_ratio: float = 0.18
    max_top_4_gram_character_ratio: float = 0.16
    max_duplicate_5_gram_character_ratio: float = 0.15
    max_duplicate_6_gram_character_ratio: float = 0.14
    max_duplicate_7_gram_character_ratio: float = 0.13
    max_duplicate_8_gram_character_ratio: float = 0.12
    max_duplicate_9_gram_character_ratio: float = 0.11
    max_duplicate_10_gram_character_ratio: float = 0.10

    adds = pa.schema(
        [("n_characters", pa.int32())]
        + [
            (f"{element}{kind}_ratio", pa.float64())
            for element in _ELEMENTS
            for kind in ("", "_character")
        ]
        + [(f"{gram}_character_ratio", pa.float64()) for gram in _GRAMS]
    )
    rules = (
        Rule("empty_text", "n_characters", "<", "min_characters"),
        *(
            Rule(column.removesuffix("_ratio") + "s", column, ">", f"max_{column}")
            for column in adds.names[1:]
        ),
    )

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with the columns of `adds`."""
        found = scan(batch.column("text"))
        counts = np.zeros((len(batch), 13), np.int64)
        count_repetitions(
            found.word_offsets,
            found.word_hash,
            found.word_length,
            found.word_bounds,
            eight_bytes(found.letters),
            found.line_offsets,
            found.line_hash,
            found.line_length,
            found.paragraph_offsets,
            found.paragraph_hash,
            found.paragraph_length,
            counts,
        )
        characters = found.n_code_points
        totals = [characters] * 13
        totals[0] = np.diff(found.paragraph_offsets)
        totals[2] = np.diff(found.line_offsets)
        values = [characters, *(counts[:, i] / np.maximum(totals[i], 1) for i in range(13))]
        for field, value in zip(self.adds, values, strict=True):
            batch = batch.append_column(field, found.column(value, field.type))
        return batch
