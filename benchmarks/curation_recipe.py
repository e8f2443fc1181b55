"""The recipe of benchmarks.curation: the same steps in the same order as the peer's pipeline."""

from filters.gopher_quality import GopherQuality
from filters.gopher_repetition import GopherRepetition
from filters.language import LanguageId
from pipelines.dedup.exact import ExactDedup
from pipelines.readers.parquet import ParquetReader
from pipelines.recipe import Recipe


def recipe() -> Recipe:
    """Language, quality, repetition, exact duplicates."""
    return Recipe(
        "curation_benchmark",
        (ParquetReader(),),
        (LanguageId(), GopherQuality(), GopherRepetition(), ExactDedup(fold_white_space=False)),
    )
