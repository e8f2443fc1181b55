"""The recipe of benchmarks.substring: substrings and nothing else."""

from pipelines.dedup.substring import SubstringDedup
from pipelines.readers.parquet import ParquetReader
from pipelines.recipe import Recipe


def recipe() -> Recipe:
    """Substrings of 100 bytes and more."""
    return Recipe("substring_benchmark", (ParquetReader(),), (SubstringDedup(),))
