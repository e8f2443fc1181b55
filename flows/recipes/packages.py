"""The Python packages installed on this machine: documentation, licences and source code.

Real text on every machine, offline, full of real duplicates (vendored code, licences). Gopher's
thresholds are for prose, so those that source code breaks by its nature are wider here.
"""

import sysconfig

from filters.gopher_quality import GopherQuality
from filters.gopher_repetition import GopherRepetition
from filters.language import LanguageId
from flows.flywheel import Part, Wheel
from pipelines.clean import CleanText
from pipelines.dedup.exact import ExactDedup
from pipelines.readers.files import FilesReader
from pipelines.readers.jsonl import JsonlReader
from pipelines.readers.parquet import ParquetReader
from pipelines.recipe import Recipe, Source

# Packages ship tables as test data, among them Parquet files without any text.
TEXT_FILES = r"(?!.*\.(parquet|jsonl|json|ndjson)(\.\w+)?$).*"


def python_packages() -> Recipe:
    """Documentation, licences and source code; with --source any text."""
    return Recipe(
        "python_packages",
        readers=(FilesReader(), ParquetReader(), JsonlReader()),
        steps=(
            CleanText(),
            LanguageId(("en",), min_score=0.2),
            GopherQuality(
                min_words=20,
                max_mean_word_length=20.0,
                max_hash_sign_ratio=0.5,
                min_alpha_word_ratio=0.4,
                min_stop_words=1,
            ),
            GopherRepetition(),
            ExactDedup(),
        ),
        sources=(Source("packages", sysconfig.get_paths()["purelib"], files=TEXT_FILES),),
    )


def wheel() -> Wheel:
    """The main job: packages to a hybrid of a few million parameters."""
    return Wheel(
        name="packages",
        recipe="flows.recipes.packages:python_packages",
        parts=(
            Part("documentation", kinds=("prose",), weight=0.5),
            Part("code", kinds=("code",), weight=0.5, sample=0.1),
        ),
        run="flows.runs.hybrid_tiny:run",
        seed=1,
    )
