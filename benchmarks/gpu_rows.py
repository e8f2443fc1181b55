"""The rows of the training benchmark on one GPU, each in a process of its own.

    python -m benchmarks.gpu_rows ROW --mixture FOLDER --out FILE [--peers FOLDER] [--tiny]

Every row is `train_step` of our own loop on the same samples: micro batches of the same size, FP32
masters, clipping, fused AdamW, our loss. What differs is the row's model or one part of it. First
everything is compiled and tried; then the process says "ready" on stdout and waits for a line on
stdin, so that rows compile side by side and are measured alone. The record goes to --out, with the
traceback if the row failed, and the exit code is then 1.
"""

import argparse
import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch

from benchmarks import kernel_rows, peer_float8, peer_nemotron, peer_scan
from benchmarks.training_runs import short_1b, tiny_1b, transformer_of
from benchmarks.training_steps import TimedTraining, fresh_model
from mixtures.plan import Plan
from training_hook.determinism import deterministic_algorithms
from training_hook.device import energy_counter
from training_hook.model import num_parameters
from training_hook.run import PretrainRun

STEPS = {8: 5, 1: 20}
"""Timed steps by the micro batches of each."""

Measurement = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One process of the benchmark."""

    what: str
    recipe: str = "plain"
    transformer: bool = False
    """Attention and MLP alone, as wide and with as many parameters as the hybrid."""
    peer: str = ""
    """Whose part stands in for ours."""
    deterministic: bool = False
    """What that costs is measured only where such a row is named."""
    micro_batches: tuple[int, ...] = (8,)
    profile: bool = False
    wanted: int = 0
    """Tokens per second at the first number of micro batches."""
    gib: float = 38
    """Memory while it compiles and tries one micro batch: 33 to 36 on an H200."""


ROWS = {
    "errors": Row("each kernel against float64", gib=12),
    "kernels": Row("the time of each kernel", gib=12),
    "bf16": Row("ours, BF16", micro_batches=(8, 1), profile=True, wanted=90_000),
    "fp8_tensor": Row(
        "ours, FP8", "fp8_tensor", micro_batches=(8, 1), profile=True, wanted=105_000
    ),
    "mamba_ssm": Row("mamba-ssm's scan, the rest ours, BF16", peer="mamba_ssm", profile=True),
    "transformer_bf16": Row("Transformer, BF16", transformer=True),
    "transformer_fp8": Row("Transformer, FP8", "fp8_tensor", transformer=True),
    "torchao_tensor": Row("torchao's float8 by tensor", peer="torchao tensorwise", profile=True),
    "fp8_delayed": Row("ours, FP8 with delayed scales", "fp8_delayed"),
    "fp8_block": Row("ours, FP8 in blocks", "fp8_block"),
    "torchao_transformer": Row(
        "Transformer, torchao's float8 by tensor", transformer=True, peer="torchao tensorwise"
    ),
    "bf16_deterministic": Row("ours, BF16, deterministic", deterministic=True, profile=True),
    "fp8_deterministic": Row(
        "ours, FP8, deterministic", "fp8_tensor", deterministic=True, profile=True
    ),
    "nemotron_h": Row("transformers' NemotronH, BF16", peer="transformers", gib=inf),
}


def run_of(row: Row, tiny: bool) -> PretrainRun:
    """Returns what a row trains; peers' parts are put in later."""
    run = tiny_1b() if tiny else short_1b()
    if row.transformer:
        run = transformer_of(run)
    return replace(run, name=row.what, linear_recipe=row.recipe, deterministic=row.deterministic)


def prepare(
    row: Row, mixture: Path, peers: Path | None, device: torch.device, tiny: bool
) -> Measurement:
    """Compiles and tries a row; returns what measures it."""
    run, checked = run_of(row, tiny), {}
    make_model = fresh_model
    kind, _, how = row.peer.partition(" ")
    if kind == "mamba_ssm":
        peer_scan.load(peers)
        checked = {"agreement": peer_scan.agreement(run, mixture, device)}
        peer_scan.put_in()
    elif kind == "torchao":
        make_model = partial(peer_float8.converted_model, recipe=how, peers=peers, emulate=tiny)
    training = TimedTraining(run, mixture, device, make_model)
    size = sum(parameter.numel() for parameter in training.model.parameters())
    if size != num_parameters(run.model):
        raise ValueError(f"{row.what}: {size:,} parameters; wanted {num_parameters(run.model):,}")
    numbers = (1,) if tiny else row.micro_batches
    runs = {n: replace(run, batch_size=n * run.micro_batch_size) for n in numbers}
    small = replace(run, batch_size=run.micro_batch_size)
    training.warm(small, 1 if tiny else 2)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the rows that are measured before this one need it

    def measure() -> dict[str, Any]:
        if kind == "mamba_ssm":
            checked["tuning"] = peer_scan.tune(lambda: training.warm(small, 1))
        record = {"what": row.what, "peer": row.peer, **checked, "micro_batches": {}}
        with energy_counter(device) as joules:
            for number, wanted in runs.items():
                training.warm(wanted, 1)
                steps = 1 if tiny else STEPS[number]
                measured = training.measure(wanted, steps, joules, row.profile)
                record["micro_batches"][number] = measured
        return record

    return measure


def measurement(name: str, options: argparse.Namespace, device: torch.device) -> Measurement:
    """Prepares a row by its name."""
    if name == "errors":
        return kernel_rows.prepare_errors(device)
    if name == "kernels":
        return kernel_rows.prepare_times(device, options.tiny)
    if name == "nemotron_h":
        run = run_of(ROWS[name], options.tiny)
        return partial(peer_nemotron.measure, run, options.mixture, device, options.tiny)
    Plan(options.mixture)  # says what is wrong with it before anything is built
    return prepare(ROWS[name], options.mixture, options.peers, device, options.tiny)


def main() -> int:
    """Writes the record of a row and returns the exit code."""
    parser = argparse.ArgumentParser(description="One row of the training benchmark.")
    parser.add_argument("row", choices=tuple(ROWS))
    parser.add_argument("--mixture", type=Path, required=True)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on the CPU")
    options = parser.parse_args()
    device = torch.device("cpu") if options.tiny else torch.device("cuda", 0)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    try:
        with deterministic_algorithms(ROWS[options.row].deterministic):
            measure = measurement(options.row, options, device)
            print("ready", file=answers, flush=True)
            if not sys.stdin.readline():
                return 1  # whoever was to say when is gone
            record = measure()
    except Exception:
        record = {"error": traceback.format_exc()}
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    return int("error" in record)


if __name__ == "__main__":
    sys.exit(main())
