"""What the report says of a training run: progress, curves and held-out scores, finished or not."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flows.curves import Line, curve_plot
from pipelines.dataset import MANIFEST
from training_hook.batch_sizes import BatchSizes
from training_hook.metrics import read_evaluations, read_metrics

RUN = "run.json"
ALL_PARTS = "all parts"
PACE_STEPS = 50
"""Last steps whose median speed says how long the others will take."""
GIB = 1 << 30


def training_page(folder: Path) -> dict[str, Any]:
    """Returns progress, curves, held-out scores and facts of a training run, finished or not."""
    steps, evaluations = read_metrics(folder), read_evaluations(folder)
    about = {"run": json.loads((folder / RUN).read_text("utf-8"))["run"]}
    if (folder / MANIFEST).is_file():
        about |= json.loads((folder / MANIFEST).read_text("utf-8"))
    total = steps["tokens"][-1].as_py() if len(steps) else 0
    return {
        "about": about,
        "progress": progress(about["run"], steps),
        "curves": training_curves(steps) if len(steps) > 1 else [],
        "unmeasured": [
            name for name in ("mfu", "memory_bytes", "joules") if _is_empty(steps, name)
        ],
        "tokens": total,
        "held_out": _held_out(evaluations),
        "held_out_curve": _held_out_curve(evaluations, batch_sizes(about["run"])),
        "checkpoints": saved_checkpoints(folder),
    }


def batch_sizes(run: dict[str, Any]) -> BatchSizes:
    """Returns the batches of a run, of its parameters as run.json has them."""
    sizes = (run["total_tokens"], run["sequence_length"], run["batch_size"])
    return BatchSizes(*sizes, run.get("batch_ramp", ()))


def progress(run: dict[str, Any], steps: pa.Table) -> dict[str, Any]:
    """Returns how far a run is, and what its last step measured."""
    batches = batch_sizes(run)
    total = batches.total_steps
    done = steps["step"][-1].as_py() if len(steps) else 0
    last = steps.slice(max(0, len(steps) - 1)).drop_columns(["loss_by_part"]).to_pylist()
    left = batches.tokens(total) - batches.tokens(done)
    rates = np.asarray(steps["tokens_per_second"])[-PACE_STEPS:]
    return {
        "step": done,
        "total_steps": total,
        "seconds": pc.sum(steps["seconds"]).as_py() or 0.0,
        "seconds_left": float(left / np.median(rates)) if len(steps) else None,
        "skipped": pc.sum(steps["skipped"]).as_py() or 0,
        "last": last[0] if last else None,
    }


def training_curves(steps: pa.Table) -> list[dict[str, Any]]:
    """Returns the plots of what was measured at each step, over the tokens seen.

    Loss and learning rate come first; what was never measured has no plot.
    """
    tokens = _column(steps, "tokens")
    of_a_step = _column(steps, "tokens_per_second") * _column(steps, "seconds")
    skipped = np.asarray(pc.fill_null(steps["skipped"], False), bool)
    norms = _column(steps, "gradient_norm")
    plots = [
        curve_plot(loss_lines(steps, tokens), "loss, nats per token"),
        *(
            curve_plot({label: (tokens, values)}, label, marks)
            for label, values, marks in (
                ("learning rate", _column(steps, "learning_rate"), []),
                (
                    "gradient norm, before clipping",
                    np.where(skipped, np.nan, norms),
                    list(zip(tokens[skipped].tolist(), norms[skipped].tolist(), strict=True)),
                ),
                ("tokens per second", _column(steps, "tokens_per_second"), []),
                ("model FLOPs utilization, percent", 100 * _column(steps, "mfu"), []),
                ("peak memory, GiB", _column(steps, "memory_bytes") / GIB, []),
                (
                    "board energy, joules per 1,000 tokens",
                    1000 * _column(steps, "joules") / of_a_step,
                    [],
                ),
            )
        ),
    ]
    return [plot for plot in plots if plot is not None]


def saved_checkpoints(folder: Path) -> list[dict[str, Any]]:
    """Returns the complete checkpoints on disk, ascending by step: their size and place."""
    rows = []
    for note in sorted(folder.glob(f"checkpoints/step-*/{MANIFEST}")):
        manifest = json.loads(note.read_text("utf-8"))
        place = note.parent.relative_to(folder).as_posix()
        size = sum(manifest["files"].values())
        rows.append({"step": manifest["step"], "bytes": size, "place": place})
    return rows


def loss_lines(steps: pa.Table, tokens: np.ndarray) -> dict[str, Line]:
    """Returns the loss of all tokens and, of a mixture of several parts, of each part."""
    total = _column(steps, "loss")
    lines: dict[str, Line] = {ALL_PARTS: (tokens, total)}
    found = steps["loss_by_part"].combine_chunks()
    # flat, because 100,000 steps as dictionaries take seconds
    offsets = found.offsets.to_numpy()
    inside = slice(offsets[0], offsets[-1])
    names = found.keys.dictionary_encode()
    numbers = names.indices.to_numpy()[inside]
    losses = found.items.to_numpy(zero_copy_only=False)[inside]
    rows = np.repeat(np.arange(len(steps)), np.diff(offsets))
    parts = names.dictionary.to_pylist()
    if len(parts) > 1:
        for number, part in enumerate(parts):
            line = np.full(len(steps), math.nan)
            line[rows[numbers == number]] = losses[numbers == number]
            lines[part] = tokens, line
    return lines


def _column(steps: pa.Table, name: str) -> np.ndarray:
    """Returns a column as float64, NaN for null."""
    return np.asarray(pc.cast(steps[name], pa.float64()), np.float64)


def _is_empty(steps: pa.Table, name: str) -> bool:
    return len(steps) > 0 and steps[name].null_count == len(steps)


def _sums(evaluations: pa.Table) -> dict[str, dict[int, Counter[str]]]:
    """Returns for each part, and all of them last, what each evaluation counted, by step."""
    sums: dict[str, dict[int, Counter[str]]] = {}
    for row in evaluations.to_pylist():
        for part in (row["part"], ALL_PARTS):
            total = sums.setdefault(part, {}).setdefault(row["step"], Counter())
            total.update({name: row[name] for name in ("documents", "tokens", "bytes", "nats")})
    if len(sums) == 2:  # one part and, equal to it, all of them
        del sums[ALL_PARTS]
    if ALL_PARTS in sums:
        sums[ALL_PARTS] = sums.pop(ALL_PARTS)
    return sums


def _bits_per_byte(counts: Counter[str]) -> float:
    return counts["nats"] / (math.log(2) * counts["bytes"])


def _held_out(evaluations: pa.Table) -> list[dict[str, Any]]:
    """Returns bits per byte of each part and of all, at the first and the last evaluation."""
    rows = []
    for part, by_step in _sums(evaluations).items():
        first, last = min(by_step), max(by_step)
        scores = {"before": _bits_per_byte(by_step[first]), "after": _bits_per_byte(by_step[last])}
        rows.append({"part": part, **scores, "step": last, **by_step[last]})
    return rows


def _held_out_curve(evaluations: pa.Table, batches: BatchSizes) -> dict[str, Any] | None:
    """Returns bits per byte of each part over the tokens seen, from three evaluations on."""
    sums = _sums(evaluations)
    if len({step for by_step in sums.values() for step in by_step}) < 3:
        return None
    order = [name for name in (ALL_PARTS, *sums) if name in sums]
    lines = {
        part: (
            np.array([batches.tokens(step) for step in sums[part]], float),
            np.array([_bits_per_byte(counts) for counts in sums[part].values()]),
        )
        for part in dict.fromkeys(order)
    }
    return curve_plot(lines, "held-out bits per byte")
