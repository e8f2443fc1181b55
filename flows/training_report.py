"""What the report says of a training run: curves and held-out bits per byte, finished or not."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from flows.charts import line_plot
from pipelines.dataset import MANIFEST
from training_hook.metrics import read_evaluations, read_metrics

CURVES = {
    "loss": "loss, nats per token",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
}
ALL_PARTS = "all parts"


def training_page(folder: Path) -> dict[str, Any]:
    """Returns curves, held-out scores and facts of a training run, finished or not."""
    steps, evaluations = read_metrics(folder), read_evaluations(folder)
    about = {"run": json.loads((folder / "run.json").read_text("utf-8"))["run"]}
    if (folder / MANIFEST).is_file():
        about |= json.loads((folder / MANIFEST).read_text("utf-8"))
    curves = []
    if len(steps) > 1:
        tokens = np.asarray(steps["tokens"], np.float64)
        for name, label in CURVES.items():
            curves.append(line_plot(tokens, np.asarray(steps[name], np.float64), label))
    total = steps["tokens"][-1].as_py() if len(steps) else 0
    return {"about": about, "curves": curves, "tokens": total, "held_out": _held_out(evaluations)}


def _held_out(evaluations: pa.Table) -> list[dict[str, Any]]:
    """Returns bits per byte of each part and of all, at the first and the last evaluation."""
    sums: dict[str, dict[int, Counter[str]]] = {}
    for row in evaluations.to_pylist():
        for part in (row["part"], ALL_PARTS):
            total = sums.setdefault(part, {}).setdefault(row["step"], Counter())
            total.update({name: row[name] for name in ("documents", "tokens", "bytes", "nats")})
    if len(sums) == 2:  # one part and, equal to it, all of them
        del sums[ALL_PARTS]
    order = [*(part for part in sums if part != ALL_PARTS), *(p for p in sums if p == ALL_PARTS)]
    rows = []
    for part in order:
        scores = {step: s["nats"] / (math.log(2) * s["bytes"]) for step, s in sums[part].items()}
        first, last = min(scores), max(scores)
        row = {"part": part, "before": scores[first], "after": scores[last], "step": last}
        rows.append(row | dict(sums[part][last]))
    return rows
