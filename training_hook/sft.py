"""Supervised fine-tuning: a checkpoint and a mixture of conversations in, a chat model out.

The loop, its folder and its guarantees are those of pretraining (training_hook.pretrain); what
differs is where the weights come from and that only what the assistant writes is a target. The loss
is the mean over those tokens of the global batch, so a long answer weighs more than a short one.
It runs with `python -m training_hook.sft` where there is only torch, numpy, numba and pyarrow.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mixtures.plan import Plan
from pipelines.progress import say
from training_hook.pretrain import carry_out, check_fit, describe, estimate
from training_hook.run import load_run
from training_hook.sft_run import SftRun
from training_hook.start import read_start


def sft(
    run: SftRun,
    mixture: Path,
    start: Path,
    out: Path,
    vocabulary: Path | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Fine-tunes a checkpoint on a mixture, or goes on with it, and returns a summary.

    Args:
        run: what to train.
        mixture: folder of a mixture with conversations (`tokenize` with messages, then `mix`);
            parts of plain text may be among them, all of their tokens count.
        start: folder of a checkpoint, or of a training run, whose last one is taken. It has to be
            there when the run goes on, too: its weights are part of what the run is.
        out: folder of the run; one that holds this run is continued, another one's is refused.
        vocabulary: folder of the vocabulary, to prove that it is the mixture's; not needed.
        device: "cuda" or "cpu"; a GPU if there is one, where not given.

    Returns:
        As `pretrain`, and `start` (what was started from) and `held_out_loss`, nats for each target
        token of the held-out conversations before and after, by part.

    Raises:
        ValueError: run, mixture and checkpoint do not fit together, or the folder holds something
            else.
        FloatingPointError: a loss or gradient is not finite; the message names step and samples.
        OSError: the disk is full; the last checkpoint is whole.
    """
    if not isinstance(run, SftRun):
        raise ValueError(
            f"{run.name} is a {type(run).__name__}; wanted an SftRun. Use pretrain for that one"
        )
    plan = Plan(mixture)
    check_fit(run, plan, vocabulary)
    if not any(part.get("masked") for part in plan.parts):
        raise ValueError(
            f"{run.name}: no part of {plan.path} holds conversations, so every token would be "
            "trained on. Tokenize a dataset with messages and mix that, or use pretrain"
        )
    return carry_out(run, plan, out, device, read_start(start, run, plan))


def main(arguments: list[str] | None = None) -> int:
    """Runs `python -m training_hook.sft`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training_hook.sft",
        description="Fine-tunes a checkpoint; the same command goes on where it stopped.",
        epilog="example: python -m training_hook.sft flows.runs.sft_tiny:run "
        "--mixture mixtures/chat --from runs/tiny --out runs/chat",
    )
    parser.add_argument("run", help="MODULE:FUNCTION that returns an SftRun")
    parser.add_argument("--mixture", type=Path, help="folder of a mixture with conversations")
    parser.add_argument("--from", type=Path, dest="start", help="checkpoint or run to start from")
    parser.add_argument("--out", type=Path, help="folder of the run")
    parser.add_argument("--steps", type=int, help="another length for the run, schedule included")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--dry-run", action="store_true", help="say what it would take, and end")
    parser.add_argument("--json", action="store_true", help="the summary as JSON on stdout")
    options = parser.parse_args(arguments)
    try:
        run = load_run(options.run)
        run = run if options.steps is None else run.with_steps(options.steps)
    except ValueError as error:
        parser.error(str(error))
    if not isinstance(run, SftRun):
        parser.error(f"{options.run} returns a {type(run).__name__}; wanted an SftRun")
    if not options.dry_run and None in (options.mixture, options.start, options.out):
        parser.error("--mixture, --from and --out are needed (or --dry-run)")
    try:
        if options.dry_run:
            result = estimate(run, options.device)
        else:
            result = sft(run, options.mixture, options.start, options.out, device=options.device)
    except (ValueError, OSError, FloatingPointError) as error:
        say(f"sft: failed: {error}")
        return 1
    sys.stdout.write(json.dumps(result) + "\n") if options.json else say(describe(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
