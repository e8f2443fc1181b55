"""The same run on one GPU and, by torchrun, on two: tokens per second, efficiency, memory, losses.

    OUT=DIR python -m benchmarks.two_gpus --mixture FOLDER [--work DIR] [--commit HASH]
        [--shape 1b|150m] [--steps 300] [--only one one_half two_reshard two]

`one` is one GPU, `one_half` one GPU with half the global batch, which is what each of two has,
`two` two GPUs with weights gathered once a step, `two_reshard` by layer. `two` times --steps steps
and the others --short-steps, all of one schedule; `training_steps` says what is measured.
Efficiency is tokens/s of two GPUs over twice those of one, at an equal global batch (`one`) and at
an equal batch for each GPU (`one_half`).

Each row is a process of its own and in $OUT/two_gpus.json as soon as it is done. The rows are kept
in --work, too, and not done again: the same command goes on. --tiny tries it on a CPU with gloo.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fp8_gpu import check_mixture
from benchmarks.training_runs import in_blocks_of_128, short_1b, tiny
from benchmarks.training_steps import WARM_STEPS, find_commit, measure, versions
from flows.runs import hybrid_150m
from mixtures.plan import Plan
from pipelines.progress import say
from training_hook.device import device_name, energy_counter
from training_hook.ranks import join_ranks
from training_hook.run import PretrainRun

GPUS = {"one": 1, "one_half": 1, "two_reshard": 2, "two": 2}
"""Row to its number of processes, in the order in which they run."""


def row_run(row: str, options: argparse.Namespace) -> PretrainRun:
    """Returns the run of a row: 16 micro batches in a global batch, but for `one_half`."""
    if options.tiny:
        length = Plan(options.mixture).sequence_length
        run = replace(tiny(), sequence_length=length, micro_batch_size=2, backend="eager")
    elif options.shape == "1b":
        run = short_1b()
    else:
        small = in_blocks_of_128(hybrid_150m.run())
        run = replace(small, micro_batch_size=8, peak_learning_rate=6e-4)
    batch = run.micro_batch_size * options.micro_batches
    run = replace(run, batch_size=batch, linear_recipe=options.recipe, name=f"{run.name} {row}")
    run = run.with_steps(options.steps + WARM_STEPS)
    if row == "one_half":
        return replace(run, batch_size=batch // 2)
    return replace(run, reshard=row == "two_reshard")


def timed_steps(row: str, options: argparse.Namespace) -> int:
    """Returns how many steps of a row are timed."""
    return options.steps if row == "two" else options.short_steps


def do_row(row: str, options: argparse.Namespace, out: Path) -> None:
    """Measures a row in this process, one of its ranks, and has the first one write it."""
    run, steps = row_run(row, options), timed_steps(row, options)
    device = torch.device("cpu" if options.tiny else "cuda")
    with join_ranks(device) as (ranks, own), energy_counter(own) as energy:
        record = measure(run, options.mixture, own, steps, energy, options.profile, ranks)
        own_share = [record["peak_memory_gib"] or 0, record["watts"] or 0]
        memory, watts = ranks.gather(np.array(own_share, float)).T
        record |= {"gpus": ranks.world_size, "peak_memory_gib": memory.tolist()}
        joules = round(1e3 * watts.sum() / record["tokens_per_second"], 3) if watts.any() else None
        record |= {"watts": watts.tolist(), "joules_per_1000_tokens": joules}
        record["device"] = device_name(own)
        if ranks.is_first:
            out.write_text(json.dumps(record))


def launch(row: str, arguments: list[str]) -> dict[str, Any]:
    """Runs a row in processes of its own and returns its record, or how it failed."""
    begin = time.perf_counter()
    module = ["-m", "benchmarks.two_gpus", *arguments, "--row", row]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, *module, "--row-out", str(out)]
        if GPUS[row] > 1:
            torchrun = ["-m", "torch.distributed.run", "--standalone"]
            torchrun.append(f"--nproc-per-node={GPUS[row]}")
            command[1:1] = torchrun
        code = subprocess.run(command).returncode
        record = json.loads(out.read_text()) if out.exists() else {"error": f"exit code {code}"}
    return {"section_s": round(time.perf_counter() - begin, 1), **record}


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns efficiencies and distances of losses, of the rows that are there."""
    rates = {row: found["tokens_per_second"] for row, found in rows.items() if "losses" in found}
    found: dict[str, Any] = {}
    for row in ("two", "two_reshard"):
        for base, name in (("one", "global batch"), ("one_half", "batch for each GPU")):
            if row in rates and base in rates:
                share = rates[row] / (2 * rates[base])
                found[f"{row}: efficiency at equal {name}"] = round(share, 4)
        if row in rates and "one" in rates:
            ours, theirs = (np.array(rows[name]["losses"]) for name in (row, "one"))
            steps = min(len(ours), len(theirs))
            apart = np.abs(ours[:steps] / theirs[:steps] - 1)
            found[f"{row}: losses relative to one GPU"] = {
                "steps": steps,
                "largest": float(apart.max()),
                "mean": float(apart.mean()),
                "of_last_tenth": float(
                    ours[:steps][-max(1, steps // 10) :].mean()
                    / theirs[:steps][-max(1, steps // 10) :].mean()
                    - 1
                ),
            }
    return found


def main() -> int:
    """Writes $OUT/two_gpus.json and returns the exit code."""
    parser = argparse.ArgumentParser(description="The same run on one GPU and on two.")
    parser.add_argument("--mixture", type=Path, required=True, help="folder of `gristmill mix`")
    parser.add_argument("--work", type=Path, help="folder that keeps rows for the next call")
    parser.add_argument("--commit", help="commit of this tree, where git cannot be asked")
    parser.add_argument("--shape", choices=("1b", "150m"), default="1b")
    parser.add_argument("--recipe", default="fp8_tensor", help="linear recipe")
    parser.add_argument("--micro-batches", type=int, default=16, help="in a global batch")
    parser.add_argument("--steps", type=int, default=300, help="timed steps of `two`")
    parser.add_argument("--short-steps", type=int, default=20, help="timed steps of other rows")
    parser.add_argument("--only", nargs="+", choices=tuple(GPUS), default=tuple(GPUS))
    parser.add_argument("--profile", action="store_true", help="the kernels of one step, too")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on the CPU")
    parser.add_argument("--row", choices=tuple(GPUS), help=argparse.SUPPRESS)
    parser.add_argument("--row-out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        do_row(options.row, options, options.row_out)
        return 0
    for row in options.only:
        taken = WARM_STEPS + timed_steps(row, options) + 1  # one for the profile
        check_mixture(row_run(row, options).with_steps(taken), Plan(options.mixture))
    out = Path(os.environ["OUT"]) / "two_gpus.json"
    kept = (options.work or out.parent) / "two_gpus.json"
    settings = {
        name: getattr(options, name) for name in ("shape", "recipe", "micro_batches", "tiny")
    }
    report = json.loads(kept.read_text()) if kept.exists() else {}
    if report.get("settings") != settings:
        report = {"settings": settings, "rows": {}}
    report |= {
        "what": "optimizer steps of one run on one and on two GPUs",
        "commit": find_commit(options.commit),
        "versions": versions(),
    }
    for row in GPUS:
        if row not in options.only or "losses" in report["rows"].get(row, {}):
            continue
        say(f"two_gpus: {row}")
        report["rows"][row] = launch(row, sys.argv[1:])
        report["summary"] = summary(report["rows"])
        for path in (kept, out):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(report, indent=1) + "\n")
    if kept.exists() and kept != out:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(kept, out)
    say(json.dumps(report.get("summary"), indent=1))
    return int(any("error" in row for row in report["rows"].values()))


if __name__ == "__main__":
    sys.exit(main())
