"""The 1.05 B hybrid on one GPU: tokens per second, MFU, memory and energy by recipe.

    OUT=DIR python -m benchmarks.hybrid_gpu --mixture FOLDER [--commit HASH] [--profile]
        [--only plain:8 fp8_tensor:8 fp8_delayed:8 fp8_block:8 plain:1 fp8_tensor:1]

Needs torch, triton, numpy, numba, pyarrow, rich, safetensors and, for energy, nvidia-ml-py. A row
is a recipe and the micro batches of an optimizer step, 16k tokens each at a sequence length of
8,192, that of the mixture (of `gristmill mix`, at most 65,536 ids). `training_steps` says what is
measured. Each row is in $OUT/hybrid_gpu.json as soon as it is done; one that fails is recorded with
its traceback and the next one runs, and the exit code is then 1.
"""

import argparse
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.fp8_gpu import Report, free
from benchmarks.training_runs import short_1b
from benchmarks.training_steps import find_commit, measure, versions
from mixtures.plan import Plan
from pipelines.progress import say
from training_hook.device import device_name, energy_counter
from training_hook.run import PretrainRun

ROWS = ("plain:8", "fp8_tensor:8", "fp8_delayed:8", "fp8_block:8", "plain:1", "fp8_tensor:1")
STEPS = {8: 6, 1: 20}


def row_run(row: str) -> PretrainRun:
    """Returns the run of a row, RECIPE:MICRO_BATCHES."""
    recipe, _, number = row.partition(":")
    run = short_1b()
    return replace(
        run,
        name=f"{run.name} {recipe}",
        linear_recipe=recipe,
        batch_size=int(number) * run.micro_batch_size,
    )


def main() -> int:
    """Writes $OUT/hybrid_gpu.json and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixture", type=Path, required=True)
    parser.add_argument("--commit", help="commit of this tree, where git cannot be asked")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--profile", action="store_true", help="the kernels of one step, too")
    options = parser.parse_args()
    device = torch.device("cuda")
    samples = Plan(options.mixture).num_samples
    say(f"hybrid_gpu: {options.mixture} has {samples} samples")
    report = Report(
        Path(os.environ["OUT"]) / "hybrid_gpu.json",
        {
            "what": "optimizer steps of the 1.05 B hybrid, 8k context, 16k tokens a micro batch",
            "device": device_name(device),
            "commit": find_commit(options.commit),
            "versions": versions(),
            "rows": {},
        },
    )
    with energy_counter(device) as joules:
        for row in options.only:
            run = row_run(row)
            steps = STEPS[run.batch_size // run.micro_batch_size]
            timed = partial(measure, run, options.mixture, device, steps, joules, options.profile)
            report.add(report.content["rows"], row, timed)
            free(device)
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
