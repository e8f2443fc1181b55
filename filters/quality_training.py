"""Trains and evaluates quality classifiers: fastText on documents that are labelled good or bad.

The whole is repeatable: the same documents, settings and seed give the same model bytes. What is
held out is held out by group, so that near relatives of a test document are not trained on.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters.fasttext_training import FastTextSettings, train_model
from filters.labelled import Columns, gather, keyed, roles
from filters.quality_metrics import (
    calibrated,
    classification_metrics,
    platt,
    reliability,
    weighted_edges,
)
from filters.quality_model import (
    CARD,
    MODEL,
    QualityModel,
    card_path,
    check_newline,
    load_quality,
    newlines_replaced,
    write_card,
)
from pipelines.atomic import written_folder
from pipelines.dataset import MANIFEST
from pipelines.progress import say

METRICS, EXAMPLES = "metrics.json", "examples.json"
GOOD, BAD = "hq", "lq"
NUM_EXAMPLES, EXCERPT = 10, 400
LEAST_OF_CLASS = 20
MAX_BYTES = 64 << 20
RESERVED = re.compile("__label__")


def train_classifier(
    out: str,
    documents: Sequence[str] = (),
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
    reference: Sequence[str] = (),
    columns: Columns = Columns(),  # noqa: B008 - frozen
    settings: FastTextSettings = FastTextSettings(),  # noqa: B008 - frozen
    newline: str = "space",
    seed: int = 0,
    holdout: float = 0.2,
    max_bytes: int = MAX_BYTES,
) -> dict[str, Any]:
    """Trains a classifier into a folder and returns its manifest; a finished folder is reused.

    The folder holds model.bin, classifier.json (what QualityClassifier reads), metrics.json
    (held-out figures and reliability), examples.json (the highest and lowest test documents) and
    manifest.json, written last.

    Args:
        out: the folder.
        documents: datasets, Parquet or JSON Lines with a label column.
        positive: the same without labels: good documents.
        negative: bad documents.
        reference: documents whose scores cut the bins, best a sample of what will be classified;
            none means the labelled documents themselves.
        columns: names of the text, label and group columns, and which labels are good.
        settings: of fastText.
        newline: one of filters.quality_model.NEWLINES.
        seed: of the sample, the split and the order of training.
        holdout: share of the groups that is held out: half calibrates, half tests.
        max_bytes: text of each class, and of the reference, that is used at most.

    Raises:
        ValueError: a setting is out of range, nothing is there to read, a class has fewer than 20
            documents to train on, or another request made the folder.
        RuntimeError: fastText failed.
    """
    check_newline(newline)
    if not 0 < holdout < 1:
        raise ValueError(f"classifier: holdout is {holdout}, wanted a share between 0 and 1")
    if not documents and not (positive and negative):
        raise ValueError(
            "classifier: nothing to train on; give labelled documents, or both positive and "
            "negative ones"
        )
    say(f"classifier: reading {', '.join((*documents, *positive, *negative))}")
    rows, counts = gather(documents, positive, negative, columns, seed, max_bytes)
    role = roles(rows.column("group"), seed, holdout)
    truth = rows.column("positive").to_numpy()
    _check_classes(truth, role)
    asked = reference_rows(reference, columns.text, seed, max_bytes) if reference else rows
    request = {
        "columns": {"text": columns.text, "label": columns.label, "group": columns.group},
        "positive": list(columns.positive),
        "settings": repr(settings),
        "newline": newline,
        "seed": seed,
        "holdout": holdout,
        "max_bytes": max_bytes,
        "documents": _digest(rows),
        "reference": _digest(asked) if reference else "labelled documents",
    }
    target = Path(out)
    found = finished(target, request)
    if found is not None:
        say(f"classifier: {out} is finished; nothing to do")
        return found
    with written_folder(target) as folder:
        lines = folder / "train.txt"
        write_lines(rows.filter(pa.array(role == 0)), lines, newline)
        say(f"classifier: training on {int((role == 0).sum()):,} documents")
        train_model(lines, folder / MODEL, settings)
        lines.unlink()
        write_card(folder, GOOD, newline, [])
        model = load_quality(str(folder / CARD))
        load_quality.cache_clear()  # the card changes below
        scores = _known(model.scores(rows.column("text").combine_chunks()))
        edges = reference_edges(model, asked)
        write_card(folder, GOOD, newline, edges)
        result = _measured(rows, scores, role)
        _write(folder / METRICS, result)
        _write(folder / EXAMPLES, extremes(rows.filter(pa.array(role == 2)), scores[role == 2]))
        files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
        counts |= {
            name: int((role == k).sum()) for k, name in enumerate(("train", "calibrate", "test"))
        }
        manifest = {
            "kind": "quality classifier",
            "request": request,
            "counts": counts,
            "distinct_edges": len(set(edges)),
            "metrics": result["test"],
            "files": files,
        }
        _write(folder / MANIFEST, manifest)
    say(f"classifier: test ROC AUC {result['test']['roc_auc']}, in {out}")
    return manifest


def evaluate_classifier(
    model: str,
    documents: Sequence[str] = (),
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
    columns: Columns = Columns(),  # noqa: B008 - frozen
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> dict[str, Any]:
    """Measures a trained classifier on labelled documents that it has not seen.

    Args:
        model: the classifier's folder.
        documents: datasets, Parquet or JSON Lines with a label column.
        positive: the same without labels: good documents.
        negative: bad documents.
        columns: names of the text and label columns, and which labels are good.
        seed: of the sample.
        max_bytes: text of each class that is used at most.

    Returns:
        `metrics`, `by_label`, `reliability`, `counts`, `bins` (documents of each class in each)
        and `examples` (the highest and lowest scores), ready for JSON.
    """
    chosen = load_quality(card_path(model))
    rows, counts = gather(documents, positive, negative, columns, seed, max_bytes)
    truth = rows.column("positive").to_numpy()
    raw = chosen.scores(rows.column("text").combine_chunks())
    scores = _known(raw)
    places = chosen.bins(raw.astype(np.float32))
    bins = len(chosen.edges) + 1
    return {
        "metrics": classification_metrics(scores, truth),
        "by_label": by_label(rows, scores),
        "reliability": reliability(scores, truth),
        "counts": counts,
        "bins": {
            "positive": np.bincount(places[truth], minlength=bins).tolist(),
            "negative": np.bincount(places[~truth], minlength=bins).tolist(),
        },
        "examples": extremes(rows, scores),
    }


def write_lines(rows: pa.Table, path: Path, newline: str) -> None:
    """Writes documents as fastText reads them: a label, then the text on one line."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for batch in rows.to_batches(256):
            texts = newlines_replaced(batch.column("text"), newline).to_pylist()
            for text, good in zip(texts, batch.column("positive").to_pylist(), strict=True):
                words = RESERVED.sub(" ", text.replace("\n", " "))  # a label in a text is none
                stream.write(f"__label__{GOOD if good else BAD} {words}\n")


def reference_rows(paths: Sequence[str], text: str, seed: int, max_bytes: int) -> pa.Table:
    """Returns id and text of a sample of documents, at most max_bytes of text."""
    rows, _ = gather((), paths, (), Columns(text=text), seed, max_bytes)
    return rows


def reference_edges(model: QualityModel, rows: pa.Table) -> list[float]:
    """Returns the 19 scores that cut the text of these documents, by bytes, into 20 equal parts."""
    text = rows.column("text").combine_chunks()
    scores = model.scores(text)
    known = ~np.isnan(scores)
    sizes = pc.binary_length(text).to_numpy()
    return weighted_edges(scores[known], sizes[known])


def extremes(rows: pa.Table, scores: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    """Returns the documents of the highest and lowest scores and the worst mistakes, shortened."""
    ties = keyed(rows.column("id"), 0, "examples")
    order = np.lexsort((ties, scores))
    truth = rows.column("positive").to_numpy()
    chosen = {
        "highest": order[::-1],
        "lowest": order,
        "bad_with_high_score": order[~truth[order]][::-1],
        "good_with_low_score": order[truth[order]],
    }
    return {
        name: [
            {
                "id": rows.column("id")[i].as_py(),
                "group": rows.column("group")[i].as_py(),
                "score": round(float(scores[i]), 6),
                "positive": bool(truth[i]),
                "text": rows.column("text")[i].as_py()[:EXCERPT],
            }
            for i in places[:NUM_EXAMPLES].tolist()
        ]
        for name, places in chosen.items()
    }


def finished(folder: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the manifest of a folder that the same request made, None where there is none.

    Raises:
        ValueError: another request made the folder, or it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    path = folder / MANIFEST
    there = json.loads(path.read_bytes()) if path.is_file() else {}
    if there.get("kind") != "quality classifier":
        raise ValueError(f"{folder} holds something else; choose another folder or delete that one")
    for name, value in request.items():
        if there["request"].get(name) != value:
            raise ValueError(
                f"{folder} holds a classifier that another request made: {name} is "
                f"{there['request'].get(name)!r} there and {value!r} here. Choose another folder "
                f"or delete that one."
            )
    return there


def _measured(rows: pa.Table, scores: np.ndarray, role: np.ndarray) -> dict[str, Any]:
    """Returns the figures of metrics.json; Platt's scaling is fitted on the calibration part."""
    truth = rows.column("positive").to_numpy()
    train, calibrate, test = (role == k for k in range(3))
    ab = platt(scores[calibrate], truth[calibrate])
    after = reliability(calibrated(scores[test], ab), truth[test])
    return {
        "test": classification_metrics(scores[test], truth[test]),
        "test_by_label": by_label(rows.filter(pa.array(test)), scores[test]),
        "reliability": reliability(scores[test], truth[test]),
        "platt": {"a": ab[0], "b": ab[1], "reliability": after},
        "train": classification_metrics(scores[train], truth[train]),
    }


def by_label(rows: pa.Table, scores: np.ndarray) -> dict[str, dict[str, float]]:
    """Returns for each label its documents, their mean score and the share that is called good."""
    labels = np.array(rows.column("label").to_pylist())
    return {
        str(label): {
            "documents": int((labels == label).sum()),
            "mean_score": round(float(scores[labels == label].mean()), 6),
            "called_good": round(float((scores[labels == label] >= 0.5).mean()), 6),
        }
        for label in np.unique(labels)
    }


def _check_classes(truth: np.ndarray, role: np.ndarray) -> None:
    for name, side in (("positive", truth), ("negative", ~truth)):
        count = int((side & (role == 0)).sum())
        if count < LEAST_OF_CLASS:
            raise ValueError(
                f"classifier: {count} {name} documents to train on, wanted {LEAST_OF_CLASS} or "
                f"more; give more labelled documents, or check the labels that mean good"
            )
        for k, use in ((1, "calibrate"), (2, "test")):
            if not (side & (role == k)).any():
                raise ValueError(
                    f"classifier: no {name} document to {use} on; give a larger holdout, or more "
                    f"groups"
                )


def _known(scores: np.ndarray) -> np.ndarray:
    """Returns the scores in float64; a document without a word counts as surely bad."""
    return np.nan_to_num(scores.astype(np.float64), nan=0.0)


def _digest(rows: pa.Table) -> str:
    """Returns a hash of the documents: ids, texts and labels in order."""
    digest = hashlib.sha256()
    for batch in rows.to_batches():
        for row in batch.to_pylist():
            digest.update(json.dumps(list(row.values())).encode())
    return digest.hexdigest()


def _write(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", "utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
