"""A quality classifier on disk: a folder with model, label, newline mode and bin edges.

`classifier.json` names the model by its sha256, so the hash of that one small file stands for all
that a score depends on.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters.fasttext_model import WordClassifier, load_word_classifier
from filters.fasttext_word_kernels import label_probabilities
from pipelines.text_buffers import string_buffers

CARD, MODEL = "classifier.json", "model.bin"
FORMAT = 1
SCORE_DECIMALS = 6
NEWLINES = ("space", "nothing", "lines")
"""What becomes of newlines before a text is classified; the choice changes scores.

space: a space (NeMo Curator). nothing: removed, which joins words (datatrove's default). lines: the
text is stripped, split at all of Python's line ends and joined by spaces (DCLM).
"""


@dataclass(frozen=True)
class QualityModel:
    """A classifier that is ready to score.

    Attributes:
        classifier: the fastText model.
        label: number of the label whose probability is the score.
        newline: one of NEWLINES.
        edges: (bins - 1,) float32, ascending; a score on an edge belongs to the bin above it.
    """

    classifier: WordClassifier
    label: int
    newline: str
    edges: np.ndarray

    def scores(self, text: pa.Array) -> np.ndarray:
        """Returns the probability of the label, float32 (n,) of 6 decimals; NaN without a word."""
        offsets, data, valid = string_buffers(newlines_replaced(text, self.newline))
        model = self.classifier.model
        raw = label_probabilities(model, data, offsets, valid, self.label)
        return np.round(raw, SCORE_DECIMALS).astype(np.float32)

    def bins(self, scores: np.ndarray) -> np.ndarray:
        """Returns the bin of each score, int8 from 0 to the number of edges."""
        return np.searchsorted(self.edges, scores, side="right").astype(np.int8)


def newlines_replaced(text: pa.Array, newline: str) -> pa.Array:
    """Returns the texts with newlines treated as NEWLINES says; "space" needs no change here.

    fastText splits words at a newline as at a space; only its own reader takes it for the end.
    """
    if newline == "nothing":
        return pc.replace_substring(text, "\n", "")
    if newline == "lines":
        texts = text.to_pylist()
        joined = [None if t is None else " ".join(t.strip().splitlines()) for t in texts]
        return pa.array(joined, pa.string())
    return text


def check_newline(newline: str) -> None:
    """Raises ValueError where there is no such newline mode."""
    if newline not in NEWLINES:
        raise ValueError(f"newline is {newline!r}; wanted one of: {', '.join(NEWLINES)}")


def write_card(folder: Path, label: str, newline: str, edges: list[float]) -> None:
    """Writes classifier.json beside model.bin; nothing in it depends on place or time."""
    card = {
        "format": FORMAT,
        "label": label,
        "newline": newline,
        "edges": [round(edge, SCORE_DECIMALS) for edge in edges],
        "model_sha256": _sha256(folder / MODEL),
    }
    (folder / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", "utf-8")


def read_card(path: Path) -> dict[str, Any]:
    """Reads a classifier.json.

    Raises:
        ValueError: it is missing, or of another format.
    """
    if not path.is_file():
        raise ValueError(
            f"there is no quality classifier at {path}; wanted the {CARD} of a folder that "
            f"`gristmill classifier train` wrote"
        )
    card = json.loads(path.read_bytes())
    if card.get("format") != FORMAT:
        raise ValueError(f"{path}: format is {card.get('format')}, wanted {FORMAT}; train it again")
    return card


def card_path(path: str) -> str:
    """Returns the path of a classifier's card; the folder may be given for it."""
    return path if path.endswith(".json") else str(Path(path) / CARD)


@cache
def load_quality(path: str) -> QualityModel:
    """Loads the classifier whose card is at path.

    Raises:
        ValueError: it is missing or broken, or the model is not the one that the card names.
    """
    card = read_card(Path(path))
    model = Path(path).with_name(MODEL)
    if not model.is_file() or _sha256(model) != card["model_sha256"]:
        state = "holds other bytes than" if model.is_file() else "is missing; it should hold"
        raise ValueError(f"{model} {state} the model that {path} names; train or copy it again")
    classifier = load_word_classifier(str(model))
    if card["label"] not in classifier.labels:
        raise ValueError(
            f"{path}: label {card['label']!r}; the model has: {', '.join(classifier.labels)}"
        )
    label = classifier.labels.index(card["label"])
    return QualityModel(classifier, label, card["newline"], np.array(card["edges"], np.float32))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
