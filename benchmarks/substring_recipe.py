"""The recipes of benchmarks.substring: one step that cuts and nothing else."""

from pipelines.dedup.pieces import PieceDedup
from pipelines.dedup.substring import SubstringDedup
from pipelines.readers.parquet import ParquetReader
from pipelines.recipe import Recipe
from pipelines.step import Step


def recipe() -> Recipe:
    """Substrings of 100 bytes and more."""
    return _with(SubstringDedup())


def lines() -> Recipe:
    """Lines of 30 bytes and more."""
    return _with(PieceDedup())


def paragraphs() -> Recipe:
    """Paragraphs of 30 bytes and more."""
    return _with(PieceDedup("paragraph"))


def _with(step: Step) -> Recipe:
    return Recipe("substring_benchmark", (ParquetReader(),), (step,))
