"""English web pages from WARC, WET or HTML files, after FineWeb (arXiv:2406.17557, section 3)."""

from filters.gopher_quality import GopherQuality
from filters.gopher_repetition import GopherRepetition
from filters.language import LanguageId
from pipelines.clean import CleanText
from pipelines.dedup.exact import ExactDedup
from pipelines.dedup.keep import Oldest
from pipelines.extract import HtmlText
from pipelines.limits import Limit
from pipelines.readers.files import FilesReader, HtmlFilesReader
from pipelines.readers.jsonl import JsonlReader
from pipelines.readers.parquet import ParquetReader
from pipelines.readers.warc import WarcReader
from pipelines.recipe import Recipe


def english_web() -> Recipe:
    """Extracted main text, English by lid.176, Gopher's rules, one copy of each text."""
    exact = ExactDedup(keep=(Oldest(),))
    return Recipe(
        "english_web",
        readers=(WarcReader(), HtmlFilesReader(), ParquetReader(), JsonlReader(), FilesReader()),
        steps=(
            HtmlText(),
            CleanText(),
            LanguageId(("en",), min_score=0.65),
            GopherRepetition(),
            GopherQuality(),
            exact,
        ),
        limits=(
            Limit("language", 0.9, rule=exact.rule),
            Limit("domain", 0.95, rule=exact.rule),
        ),
    )
