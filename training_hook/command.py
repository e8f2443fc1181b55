"""The command line of pretraining and fine-tuning where flows and its libraries are not installed.

`python -m training_hook.pretrain` and `python -m training_hook.sft` need only torch, numpy, numba
and pyarrow.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipelines.load import load
from pipelines.progress import console, human, say
from training_hook.estimate import estimate
from training_hook.ranks import is_first_rank
from training_hook.run import PretrainRun

PATHS = {
    "mixture": "folder of a mixture",
    "from": "checkpoint, training folder or Hugging Face folder to start from",
    "out": "folder of the run",
    "tokenizer": "folder of the mixture's vocabulary, to be checked",
}
OPTIONAL = {"from": "start", "tokenizer": "vocabulary"}
"""Paths that may be given to some verb, and the names of the arguments that they are."""


def run_command(
    verb: str,
    kind: type[PretrainRun],
    train: Callable[..., dict[str, Any]],
    paths: tuple[str, ...],
    about: str,
    example: str,
    arguments: list[str] | None,
) -> int:
    """Runs a training verb and returns its exit code: 0 done, 1 failed, 2 wrong usage.

    Args:
        verb: pretrain or sft.
        kind: of the runs that it takes.
        train: called with the run, the paths in order, and by name `device` and what is given of
            OPTIONAL.
        paths: which of PATHS it needs.
        about: what it does, a sentence.
        example: arguments that run.
        arguments: of the command line; this process's if None.
    """
    prog = f"python -m training_hook.{verb}"
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"{about}; the same command goes on where it stopped.",
        epilog=f"example: {prog} {example}",
    )
    parser.add_argument("run", help=f"module:function (or file.py:function) of a {kind.__name__}")
    optional = [name for name in OPTIONAL if name not in paths]
    for name in (*paths, *optional):
        parser.add_argument(f"--{name}", type=Path, help=PATHS[name])
    parser.add_argument("--steps", type=int, help="another length for the run, schedule included")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--dry-run", action="store_true", help="say what it would take, and end")
    parser.add_argument("--json", action="store_true", help="the summary as JSON on stdout")
    options = parser.parse_args(arguments)
    try:
        run = load(options.run, "run", kind)
        run = run if options.steps is None else run.with_steps(options.steps)
    except ValueError as error:
        parser.error(str(error))
    given = [getattr(options, name) for name in paths]
    if not options.dry_run and None in given:
        parser.error(f"{' and '.join(f'--{name}' for name in paths)} are needed (or --dry-run)")
    try:
        if options.dry_run:
            result = estimate(run, options.device)
        else:
            more = {OPTIONAL[name]: getattr(options, name) for name in optional}
            result = train(run, *given, device=options.device, **more)
    except (ValueError, OSError, FloatingPointError, torch.OutOfMemoryError) as error:
        console.quiet = False  # whichever rank it is
        say(f"{verb}: failed: {error}")
        return 1
    if not is_first_rank():
        return 0
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        say(describe(result))
    return 0


def describe(result: dict[str, Any]) -> str:
    """Returns a plan or a summary as lines for a terminal."""
    skipped = ("run", "mixture", "environment", "start")
    width = max(len(key) for key in result)
    lines = []
    for key, value in result.items():
        if key in skipped:
            continue
        if isinstance(value, dict):
            value = json.dumps(value)
        elif isinstance(value, float) or (isinstance(value, int) and value >= 10_000):
            value = f"{value:.4g}" if value < 1e4 else human(value, "").strip()
        lines.append(f"{key:{width}}  {value}")
    return "\n".join(lines)
