"""The Python packages installed on this machine: documentation, licences and source code.

Real text on every machine, offline, full of real duplicates (vendored code, licences). Gopher's
thresholds are for prose, so those that source code breaks by its nature are wider here.
"""

import sysconfig
from typing import TYPE_CHECKING

from filters.gopher_quality import GopherQuality
from filters.gopher_repetition import GopherRepetition
from filters.language import LanguageId
from filters.quality import QualityClassifier
from flows.flywheel import Part, Problems, Wheel
from pipelines.clean import CleanText
from pipelines.dedup.exact import ExactDedup
from pipelines.dedup.fuzzy import FuzzyDedup
from pipelines.dedup.keep import Longest
from pipelines.limits import Limit
from pipelines.readers.files import FilesReader
from pipelines.readers.jsonl import JsonlReader
from pipelines.readers.parquet import ParquetReader
from pipelines.recipe import Recipe, Source

if TYPE_CHECKING:
    from synth.recipe import SynthRecipe

# Packages ship tables as test data, among them Parquet files without any text.
TEXT_FILES = r"(?!.*\.(parquet|jsonl|json|ndjson)(\.\w+)?$).*"


def python_packages(classifier: str = "") -> Recipe:
    """Documentation, licences and source code; with --source any text.

    Args:
        classifier: folder of a quality classifier; the tenth of the text that it likes least goes.
    """
    scored = (QualityClassifier(classifier, min_bin=2),) if classifier else ()
    exact, fuzzy = ExactDedup(), FuzzyDedup(keep=(Longest(),))
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
            *scored,
            exact,
            fuzzy,
        ),
        limits=tuple(Limit("language", 0.9, rule=step.rule) for step in (exact, fuzzy)),
        sources=(Source("packages", sysconfig.get_paths()["purelib"], files=TEXT_FILES),),
    )


def solved_problems() -> Recipe:
    """Generated problems with solutions: short and all alike, so prose rules do not apply."""
    return Recipe("solved_problems", readers=(JsonlReader(),), steps=(ExactDedup(),))


def traces() -> "SynthRecipe":
    """Reasoning traces of two families, two samples for each problem.

    At temperature 0.4 one answer in five was accepted.
    """
    from synth.families import FAMILIES  # loads reasoning-gym: five seconds
    from synth.recipe import SynthRecipe
    from synth.sampling import Sampling

    sampling = Sampling(temperature=0.4, max_tokens=160)
    families = tuple(FAMILIES.values())
    return SynthRecipe("traces", families, num_problems=500, num_samples=2, sampling=sampling)


def wheel() -> Wheel:
    """The main job: packages and problems to a hybrid that is tuned on its own verified answers.

    From 1.6 million tokens, two thirds of them problems, the model learns to answer half of the
    held-out ones.
    """
    return Wheel(
        name="packages",
        recipe="flows.recipes.packages:python_packages",
        labels="flows.recipes.package_quality:PACKAGE_LABELS",
        label_sample=0.25,
        parts=(
            Part("documentation", kinds=("prose",), weight=0.175),
            Part("code", kinds=("code",), weight=0.175, sample=0.1),
        ),
        problems=Problems(
            num_documents=10_000,
            wrong_share=0.1,
            weight=0.65,
            recipe="flows.recipes.packages:solved_problems",
        ),
        run="flows.runs.hybrid_tiny:run",
        traces="flows.recipes.packages:traces",
        sft="flows.runs.sft_tiny:run",
        num_heldout=200,
        seed=1,
    )
