"""Language identification by fastText's lid.176.

The model reads the first code points of a document: on documents of 4 KB that is four times as fast
as reading all of it, and it names the same language (benchmarks/filters.py has the figures).
"""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import fasttext
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.step import Filter, Rule

LABEL = "__label__"
MODEL = str(Path(sys.prefix) / "share" / "gristmill" / "lid.176.ftz")
SCORE_DECIMALS = 4


@dataclass(frozen=True)
class LanguageId(Filter):
    """Names the language of a document and bounds the model's certainty.

    Adds language (ISO 639-1, or 639-3 where there is none) and language_score (the model's
    probability of it, rounded to 4 decimals before it is stored or compared). A null text and one
    without a word have null in both.
    Source: Joulin et al. 2016, arXiv:1612.03651; model lid.176.ftz of fasttext.cc. The default
    score is FineWeb's, arXiv:2406.17557, section 3.
    """

    languages: tuple[str, ...] = ("en",)
    min_score: float = 0.65
    max_code_points: int = 1_000
    """How much of the document the model reads."""
    model: str = MODEL

    version = 1
    adds = pa.schema([("language", pa.string()), ("language_score", pa.float32())])
    rules = (
        Rule("wrong_language", "language", "not in", "languages", max_share=1.0),
        Rule("low_language_score", "language_score", "<", "min_score", max_share=1.0),
    )
    paths = ("model",)
    libraries = ("fasttext",)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with language and language_score."""
        starts = pc.utf8_slice_codeunits(batch.column("text"), 0, self.max_code_points)
        lines = pc.utf8_trim_whitespace(pc.replace_substring_regex(starts, r"\s+", " "))
        known = pc.fill_null(pc.greater(pc.binary_length(lines), 0), False)
        places = np.flatnonzero(known.to_numpy(zero_copy_only=False))
        languages = np.full(len(lines), None, object)
        scores = np.zeros(len(lines), np.float32)
        if len(places):
            labels, probabilities = _load(self.model).predict(
                lines.take(pa.array(places)).to_pylist()
            )
            languages[places] = [label[0].removeprefix(LABEL) for label in labels]
            scores[places] = np.round([float(p[0]) for p in probabilities], SCORE_DECIMALS)
        language = pa.array(languages, pa.string())
        score = pa.array(scores, mask=np.asarray(language.is_null()))
        return batch.append_column("language", language).append_column("language_score", score)


@cache
def _load(path: str) -> "fasttext.FastText._FastText":
    if not Path(path).is_file():
        raise ValueError(
            f"LanguageId: there is no model at {path}; `make setup` fetches lid.176.ftz, "
            f"or give the path of your own as LanguageId(model=...)"
        )
    fasttext.FastText.eprint = lambda *_: None  # it warns of an API change on every load
    return fasttext.load_model(path)
