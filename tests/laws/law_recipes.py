"""Recipes that the law tests run through the command line."""

from dataclasses import dataclass

import pyarrow as pa

from filters.gopher_quality import GopherQuality
from filters.gopher_repetition import GopherRepetition
from pipelines.clean import CleanText
from pipelines.dedup.exact import ExactDedup
from pipelines.dedup.fuzzy import FuzzyDedup
from pipelines.dedup.keep import Longest
from pipelines.dedup.pieces import PieceDedup
from pipelines.dedup.substring import SubstringDedup
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe
from pipelines.step import Cut, Step


def small() -> Recipe:
    """Three phases, an editor, a cut, duplicates and near-duplicates across units."""
    return Recipe(
        "small",
        (JsonlReader(),),
        (
            CleanText(),
            GopherQuality(min_words=5, min_stop_words=1),
            Cut(),
            GopherRepetition(),
            ExactDedup(keep=(Longest(),)),
            FuzzyDedup(keep=(Longest(),)),
        ),
    )


def spans() -> Recipe:
    """Lines and substrings cut across units, then duplicates of what is left."""
    return Recipe(
        "spans",
        (JsonlReader(),),
        (
            GopherQuality(min_words=5, min_stop_words=1),
            PieceDedup(min_bytes=36, min_documents=2, keep=(Longest(),)),
            SubstringDedup(min_bytes=40, bounds="sentence"),
            ExactDedup(keep=(Longest(),)),
        ),
    )


def pieces() -> Recipe:
    """Lines and paragraphs, on any engine."""
    lines = PieceDedup(min_bytes=36, min_documents=2, keep=(Longest(),))
    return Recipe("pieces", (JsonlReader(),), (lines, PieceDedup("paragraph", min_bytes=200)))


def no_dedup() -> Recipe:
    """One phase: read and write."""
    return Recipe("no_dedup", (JsonlReader(),), (GopherQuality(min_words=5, min_stop_words=1),))


def other() -> Recipe:
    """Like no_dedup with another threshold."""
    return Recipe("no_dedup", (JsonlReader(),), (GopherQuality(min_words=6, min_stop_words=1),))


def missing_column() -> Recipe:
    """Asks for a column that nothing adds."""
    return Recipe("missing_column", (JsonlReader(),), (ExactDedup(column="perplexity"),))


@dataclass(frozen=True)
class Broken(Step):
    """Loses its rows."""

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch.slice(0, 0)


def failing() -> Recipe:
    """Fails in its first task."""
    return Recipe("failing", (JsonlReader(),), (Broken(),))
