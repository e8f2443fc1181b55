"""kill -9 in the middle of GPU training, and the same command again: are the numbers the same?

    OUT=DIR python -m benchmarks.kill_gpu --mixture FOLDER --work DIR [--gpus 2] [--commit HASH]
        [--steps 240] [--kills 3]
    OUT=DIR python -m benchmarks.kill_gpu --mixture FOLDER --work DIR --tiny    (on the CPU)

A run of 25 million parameters is trained three times with deterministic algorithms and three times
without: twice undisturbed, once killed at random moments between checkpoints and begun again each
time. With deterministic algorithms, losses, scores, weights and moments have to be the same bits;
without, the killed run is to be no further from an undisturbed one than those two are from each
other. Tokens and joules of the rows have to add up to the run's, whatever was thrown away. With two
GPUs both modes run side by side. $OUT/kill_gpu.json is written when a mode has ended. What the
deterministic mode costs is measured by `bench_gpu --only bf16 bf16_deterministic`: a model as small
as this one waits for the host.
"""

import argparse
import hashlib
import itertools
import json
import random
import shutil
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from benchmarks.trial_command import Report, fitted, place_of, trial_parser
from benchmarks.trial_queue import Place, Trial, log_tail, start_worker, visible_gpus
from benchmarks.trial_runs import base
from pipelines.progress import say
from training_hook.checkpoint import checkpoints
from training_hook.metrics import read_evaluations, read_metrics
from training_hook.run import PretrainRun

MODES = {"deterministic": True, "default": False}
CLOCKS = ["seconds", "tokens_per_second", "mfu", "joules", "memory_bytes"]
CHECKPOINTS = 8
"""Of a run; it is killed after the first, the third and so on, at the latest this much later:"""
LONGEST_WAIT_S = 2.0
RATE_FROM = 0.2


@contextmanager
def board(gpu: int, place: Place):
    """Yields a function that reads the joules of a GPU so far, None on a CPU."""
    if not place.gpus:
        yield lambda: None
        return
    import pynvml  # pyright: ignore[reportMissingImports]

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(int(visible_gpus()[gpu]))
    yield lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    pynvml.nvmlShutdown()


def train(trial: Trial, place: Place, gpu: int, kills: int) -> dict[str, Any]:
    """Trains a trial from its start to its end, killed on the way; returns what that took.

    Raises:
        RuntimeError: the process failed.
    """
    folder = place.folder(trial.name)
    shutil.rmtree(folder, ignore_errors=True)
    begin, killed = time.perf_counter(), []
    moments = random.Random(trial.name)
    with board(gpu, place) as joules:
        before = joules()
        for number in range(kills):
            step = trial.run.checkpoint_interval * (1 + 2 * number)
            if record := kill(trial, place, gpu, step, moments.random() * LONGEST_WAIT_S):
                killed.append(record)
        if start_worker([trial], place, gpu).wait():
            raise RuntimeError(f"{trial.name} failed\n{log_tail(folder)}")
        after = joules()
    return {
        "wall_s": round(time.perf_counter() - begin, 2),
        "board_joules": None if before is None or after is None else after - before,
        "kills": killed,
    }


def kill(trial: Trial, place: Place, gpu: int, step: int, wait_s: float) -> dict[str, Any] | None:
    """Starts a trial and kills it some time after a step's checkpoint; None if it had ended."""
    out = place.folder(trial.name) / "run"
    process = start_worker([trial], place, gpu)
    while process.poll() is None and max(checkpoints(out / "checkpoints"), default=0) < step:
        time.sleep(0.02)
    time.sleep(wait_s if place.gpus else 0.1 * wait_s)
    if process.poll() is not None:
        return None
    process.kill()
    process.wait()
    saved = max(checkpoints(out / "checkpoints"))
    steps = read_metrics(out)
    lost = steps.filter(pc.field("step") > saved)
    say(f"{trial.name}: killed after the checkpoint of step {saved}")
    return {
        "last_checkpoint": saved,
        "rows_after_it": len(lost),
        "joules_of_these": pc.sum(lost["joules"]).as_py(),
    }


def numbers(out: Path) -> Any:
    """Returns everything that a run recorded but for its clocks."""
    return read_metrics(out).drop_columns(CLOCKS)


def tensor_hashes(out: Path) -> dict[str, str]:
    """Returns the SHA-256 of the files of the last checkpoint, by folder."""
    last = max(checkpoints(out / "checkpoints").items())[1]
    hashes = {}
    for path in sorted(last.glob("*/*.safetensors")):
        with path.open("rb") as stream:
            hashes[path.parent.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes


def same_bits(one: Path, other: Path) -> dict[str, bool]:
    """Says which numbers of two runs are the same bits."""
    hashes, others = tensor_hashes(one), tensor_hashes(other)
    return {
        "steps": numbers(one).equals(numbers(other)),
        "evaluations": read_evaluations(one).equals(read_evaluations(other)),
        **{name: digest == others.get(name) for name, digest in hashes.items()},
    }


def distance(one: Path, other: Path) -> dict[str, Any]:
    """Returns how far the losses of two runs are apart."""
    losses, others = (read_metrics(out)["loss"].to_numpy() for out in (one, other))
    apart = np.abs(losses - others)
    differ = np.flatnonzero(apart)
    last = [read_evaluations(out).to_pylist() for out in (one, other)]
    ends = [sum(row["nats"] for row in rows if row["step"] == len(losses)) for rows in last]
    return {
        "first_step_that_differs": int(differ[0]) + 1 if len(differ) else None,
        "largest": float(apart.max()),
        "root_mean_square": float(np.sqrt((apart**2).mean())),
        "last_tenth": float(apart[-max(1, len(apart) // 10) :].mean()),
        "held_out_relative": abs(ends[1] / ends[0] - 1),
    }


def sums(trial: Trial, place: Place) -> dict[str, Any]:
    """Returns what the rows of a run add up to, and whether that is the run's."""
    run, out = trial.run, place.folder(trial.name) / "run"
    summary = json.loads((out / "manifest.json").read_text())
    steps = read_metrics(out)
    samples = pc.sum(steps["samples"]).as_py()
    tokens = samples * run.sequence_length
    each_once = steps["step"].to_pylist() == list(range(1, run.total_steps + 1))
    late = steps.slice(round(RATE_FROM * len(steps)))
    return {
        "each_step_once": each_once,
        "tokens": tokens,
        "tokens_add_up": each_once and tokens == summary["tokens"] == steps["tokens"][-1].as_py(),
        "joules_of_rows": pc.sum(steps["joules"]).as_py(),
        "seconds_of_rows": pc.sum(steps["seconds"]).as_py(),
        "tokens_per_second": len(late) * run.tokens_per_step / pc.sum(late["seconds"]).as_py(),
    }


def mode_record(mode: str, run: PretrainRun, place: Place, gpu: int, kills: int) -> dict[str, Any]:
    """Trains three times in a mode and compares; what an earlier call has finished stays."""
    run = replace(run, deterministic=MODES[mode])
    found: dict[str, Any] = {}
    for kind in ("first", "second", "killed"):
        trial = Trial(f"kill-{mode}-{kind}", run)
        note = place.folder(trial.name) / "taken.json"
        if not note.exists():
            say(f"{trial.name}: {run.total_steps} steps")
            taken = train(trial, place, gpu, kills if kind == "killed" else 0)
            note.write_text(json.dumps(taken))
        found[kind] = json.loads(note.read_text()) | sums(trial, place)
    outs = {kind: place.folder(f"kill-{mode}-{kind}") / "run" for kind in found}
    for one, other in itertools.combinations(outs, 2):
        found[f"{one}_{other}"] = {
            "same_bits": same_bits(outs[one], outs[other]),
            "distance": distance(outs[one], outs[other]),
        }
    return found


def verdicts(modes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns what the two modes say together."""
    found: dict[str, Any] = {}
    if "first" in modes.get("deterministic", {}):
        exact = modes["deterministic"]
        found["deterministic_bit_equal"] = all(
            all(exact[pair]["same_bits"].values()) for pair in ("first_killed", "second_killed")
        )
    if "first" in modes.get("default", {}):
        loose = modes["default"]
        own = loose["first_second"]["distance"]
        found["default_within_the_spread"] = {
            name: {"undisturbed": own[name], "killed": loose["first_killed"]["distance"][name]}
            for name in ("root_mean_square", "last_tenth", "held_out_relative")
        }
    return found


def main() -> int:
    """Writes $OUT/kill_gpu.json and returns the exit code."""
    parser = trial_parser(__doc__)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=tuple(MODES), default=tuple(MODES))
    options = parser.parse_args()
    place = replace(place_of(options), vocabulary=None)
    run = run_of(options)
    report = Report(
        "kill_gpu", "a run that is killed and resumed beside two that are not", options, place
    )
    report.content |= {"run": run.parameters(), "modes": {}, "failed": {}}
    lock = threading.Lock()

    def carry_out(mode: str, gpu: int) -> None:
        try:
            record = mode_record(mode, run, place, gpu, options.kills)
        except RuntimeError as error:
            record = {"error": str(error)}
            report.content["failed"][mode] = str(error)
        with lock:
            report.content["modes"][mode] = record
            report.content["verdicts"] = verdicts(report.content["modes"])
            report.write()

    if place.gpus > 1:
        threads = [
            threading.Thread(target=carry_out, args=(mode, number % place.gpus))
            for number, mode in enumerate(options.only)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        for mode in options.only:
            carry_out(mode, 0)
    say(f"kill_gpu: {json.dumps(report.content.get('verdicts'))}")
    return int(bool(report.content["failed"]))


def run_of(options: argparse.Namespace) -> PretrainRun:
    run = fitted(base(), options)
    if not options.tiny:
        run = run.with_steps(options.steps)
    interval = max(1, run.total_steps // CHECKPOINTS)
    return replace(run, checkpoint_interval=interval, evaluation_interval=run.total_steps)


if __name__ == "__main__":
    sys.exit(main())
