"""The recipe of benchmarks.dedup: near-duplicates and nothing else."""

from pipelines.dedup.fuzzy import FuzzyDedup
from pipelines.readers.parquet import ParquetReader
from pipelines.recipe import Recipe


def recipe() -> Recipe:
    """Near-duplicates."""
    return Recipe("dedup_benchmark", (ParquetReader(),), (FuzzyDedup(),))
