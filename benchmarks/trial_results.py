"""What finished trials measured, and how far two kinds of them are apart.

Losses are nats for each target token. Training losses are means over blocks of steps, held-out
losses are of all evaluated documents of a part; HEADLINE names the part that stands for the run.
Seconds are those of training steps, without compiling before the first one's end, evaluations and
checkpoints.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from benchmarks.trial_runs import to_run
from training_hook.metrics import read_evaluations, read_metrics
from training_hook.model import forward_flops
from training_hook.schedule import WarmupStableDecay

HEADLINE = "text"
BLOCKS = 48
RATE_FROM = 0.2
"""Share of the steps after which the tokens per second count: the first ones compile."""


def measured(folder: Path) -> dict[str, Any]:
    """Returns what a finished trial measured."""
    recall = folder / "phonebook.json"
    asked = json.loads(recall.read_text()) if recall.exists() else None
    return measured_of(folder / "run") | {"phonebook": asked}


def measured_of(out: Path) -> dict[str, Any]:
    """Returns what a finished run measured."""
    summary = json.loads((out / "manifest.json").read_text())
    run = to_run(summary["run"])
    steps = read_metrics(out)
    late = steps.slice(round(RATE_FROM * len(steps)))
    seconds, joules = pc.sum(late["seconds"]).as_py(), pc.sum(late["joules"]).as_py()
    tokens = len(late) * run.tokens_per_step
    return {
        "name": run.name,
        "pattern": run.model.hybrid_override_pattern,
        "linear_recipe": run.linear_recipe,
        "seed": run.seed,
        "peak_learning_rate": run.peak_learning_rate,
        "parameters": summary["parameters"],
        "steps": len(steps),
        "tokens": summary["tokens"],
        "skipped_steps": pc.sum(steps["skipped"]).as_py(),
        "train_seconds": round(summary["seconds"], 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "mfu": pc.mean(late["mfu"]).as_py(),
        "forward_flops_per_token": forward_flops(run.model, run.sequence_length),
        "joules": pc.sum(steps["joules"]).as_py(),
        "joules_per_1000_tokens": None if joules is None else round(1e3 * joules / tokens, 3),
        "memory_bytes": pc.max(steps["memory_bytes"]).as_py(),
        "loss_of_last_tenth": mean_of_last_tenth(steps["loss"].to_numpy()),
        "held_out": held_out(out)[-1],
        "evaluations": held_out(out),
        "curve": curve(out),
        "environment": summary["environment"],
    }


def held_out(out: Path) -> list[dict[str, Any]]:
    """Returns the evaluations of a run by step: loss and bits per byte of each part."""
    rows: dict[int, dict[str, Any]] = {}
    for row in read_evaluations(out).to_pylist():
        found = rows.setdefault(row["step"], {"step": row["step"], "parts": {}})
        found["parts"][row["part"]] = {
            "loss": row["nats"] / row["tokens"],
            "bits_per_byte": row["bits_per_byte"],
            "tokens": row["tokens"],
        }
    return list(rows.values())


def curve(out: Path) -> list[dict[str, float]]:
    """Returns the training loss in blocks: tokens and seconds at their ends, mean loss."""
    steps = read_metrics(out)
    tokens, seconds, losses = (steps[name].to_numpy() for name in ("tokens", "seconds", "loss"))
    clock, points = seconds.cumsum(), []
    for rows in np.array_split(np.arange(len(steps)), min(BLOCKS, len(steps))):
        points.append(
            {
                "tokens": int(tokens[rows[-1]]),
                "seconds": round(float(clock[rows[-1]]), 3),
                "loss": round(float(losses[rows].mean()), 5),
            }
        )
    return points


def mean_of_last_tenth(losses: np.ndarray) -> float:
    return float(losses[-max(1, len(losses) // 10) :].mean())


def plateau_end(folder: Path) -> float:
    """Returns the training seconds of a trial up to the last step before its rate decays."""
    run = to_run(json.loads((folder / "trial.json").read_text()))
    schedule: WarmupStableDecay = run.schedule
    last = schedule.total_steps - schedule.decay_steps
    seconds = read_metrics(folder / "run")["seconds"].to_numpy()
    return float(seconds[:last].sum())


def loss_at(folder: Path, seconds: float) -> dict[str, Any]:
    """Returns the training loss of a trial after some seconds: the mean of the last tenth by then.

    Seconds before the learning rate decays compare runs of different speed: neither has had the
    gain of the decay.
    """
    steps = read_metrics(folder / "run")
    clock = steps["seconds"].to_numpy().cumsum()
    done = max(1, int(np.searchsorted(clock, seconds, "right")))
    loss = mean_of_last_tenth(steps["loss"].to_numpy()[:done])
    return {"seconds": round(seconds, 2), "tokens": steps["tokens"][done - 1].as_py(), "loss": loss}


def at_equal_time(one: Path, other: Path) -> dict[str, Any]:
    """Returns two trials' training losses after the seconds of the shorter plateau."""
    seconds = min(plateau_end(one), plateau_end(other))
    found = [loss_at(folder, seconds) for folder in (one, other)]
    return {"one": found[0], "other": found[1], "gap": found[1]["loss"] - found[0]["loss"]}


def gaps(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how much higher the losses of `other` are than those of `one`, same data and seed."""
    parts = one["held_out"]["parts"]
    differences = {
        part: other["held_out"]["parts"][part]["loss"] - score["loss"]
        for part, score in parts.items()
    }
    by_step = [
        {
            "step": a["step"],
            "gap": b["parts"][HEADLINE]["loss"] - a["parts"][HEADLINE]["loss"],
        }
        for a, b in zip(one["evaluations"], other["evaluations"], strict=True)
    ]
    blocks = [b["loss"] - a["loss"] for a, b in zip(one["curve"], other["curve"], strict=True)]
    after_warmup = blocks[len(blocks) // 8 :]
    return {
        "seed": one["seed"],
        "held_out": differences,
        "held_out_relative": {part: d / parts[part]["loss"] for part, d in differences.items()},
        "bits_per_byte": {
            part: other["held_out"]["parts"][part]["bits_per_byte"] - score["bits_per_byte"]
            for part, score in parts.items()
        },
        "loss_of_last_tenth": other["loss_of_last_tenth"] - one["loss_of_last_tenth"],
        "held_out_by_step": by_step,
        "curve_mean": statistics.fmean(after_warmup),
        "curve_largest": max(after_warmup, key=abs),
        "curve": [round(gap, 5) for gap in blocks],
    }


def compare(ones: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> dict:
    """Returns the mean gap over seeds of two kinds of trials, and its noise.

    Noise is told in three ways: how far the seeds of one kind are apart, the standard deviation
    that follows for the difference of two runs, and the spread of the gaps themselves, which have
    the seeds in common and so may be closer than runs of different seeds.
    """
    pairs = [gaps(one, other) for one, other in zip(ones, others, strict=True)]
    found: dict[str, Any] = {"pairs": pairs}
    for name, of in {
        "held_out_loss": lambda record: record["held_out"]["parts"][HEADLINE]["loss"],
        "loss_of_last_tenth": lambda record: record["loss_of_last_tenth"],
    }.items():
        here, there = [of(record) for record in ones], [of(record) for record in others]
        differences = [b - a for a, b in zip(here, there, strict=True)]
        several = len(pairs) > 1
        found[name] = {
            "one": here,
            "other": there,
            "mean_gap": statistics.fmean(differences),
            "mean_gap_relative": statistics.fmean(differences) / statistics.fmean(here),
            "gaps": differences,
            "range_over_seeds": [max(here) - min(here), max(there) - min(there)],
            "sd_of_difference": (statistics.variance(here) + statistics.variance(there)) ** 0.5
            if several
            else None,
            "sd_of_gaps": statistics.stdev(differences) if several else None,
        }
    return found
