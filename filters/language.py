"""Language identification by fastText's lid.176, read and run by our own compiled code.

A document of more than 4,000 bytes is read at eight evenly spread places. The decision "English,
0.65 or more" is then that of the whole text for 91 in 100 source files of that size (99 in 100
licences); the first 4,000 bytes alone give 84 (97), since documents begin unlike themselves
(benchmarks/filters.py).
"""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from filters.fasttext_kernels import PIECES, predict
from filters.fasttext_model import Classifier, load_classifier
from pipelines.step import Filter, Rule
from pipelines.text_buffers import string_buffers

MODEL = str(Path(sys.prefix) / "share" / "gristmill" / "lid.176.ftz")
SCORE_DECIMALS = 4
LEAST_BYTES = 100


@dataclass(frozen=True)
class LanguageId(Filter):
    """Names the language of a document and bounds the model's certainty.

    Adds language (ISO 639-1, or 639-3 where there is none) and language_score (float32, the
    model's probability of it, rounded to 4 decimals before it is stored or compared). A null text
    and one without a word have null in both.

    Raises:
        ValueError: max_bytes is under 100; at the first call, the model is missing or no model.

    Source: Joulin et al. 2016, arXiv:1612.03651; model lid.176.ftz of fasttext.cc. The default
    score is FineWeb's, arXiv:2406.17557, section 3.
    """

    languages: tuple[str, ...] = ("en",)
    min_score: float = 0.65
    max_bytes: int = 4_000
    """How much of a document the model reads: all of a shorter one, else eight pieces."""
    model: str = MODEL

    version = 2
    adds = pa.schema([("language", pa.string()), ("language_score", pa.float32())])
    rules = (
        Rule("wrong_language", "language", "not in", "languages", max_share=1.0),
        Rule("low_language_score", "language_score", "<", "min_score", max_share=1.0),
    )
    paths = ("model",)

    def __post_init__(self) -> None:
        if self.max_bytes < LEAST_BYTES:
            raise ValueError(
                f"LanguageId: max_bytes is {self.max_bytes}, wanted {LEAST_BYTES} or more, since a "
                f"long text is read in {PIECES} pieces"
            )

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with language and language_score."""
        classifier = _load(self.model)
        offsets, data, valid = string_buffers(batch.column("text"))
        labels, probabilities = predict(classifier.model, data, offsets, valid, self.max_bytes)
        unknown = labels < 0
        names = pa.array(classifier.labels, pa.string())
        language = names.take(pa.array(labels, mask=unknown))
        scores = np.round(np.minimum(probabilities, 1.0), SCORE_DECIMALS).astype(np.float32)
        score = pa.array(scores, mask=unknown)
        return batch.append_column("language", language).append_column("language_score", score)


@cache
def _load(path: str) -> Classifier:
    if not Path(path).is_file():
        raise ValueError(
            f"LanguageId: there is no model at {path}; `make setup` fetches lid.176.ftz, "
            f"or give the path of your own as LanguageId(model=...)"
        )
    return load_classifier(path)
