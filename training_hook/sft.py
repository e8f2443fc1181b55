"""Supervised fine-tuning: a model and a mixture of conversations in, a chat model out.

The loop, its folder and its guarantees are those of pretraining (training_hook.pretrain); what
differs is where the weights come from and that only what the assistant writes is a target. The loss
is the mean over those tokens of the global batch, so a long answer weighs more than a short one.
It runs with `python -m training_hook.sft` where there is only torch, numpy, numba and pyarrow.
"""

import sys
from pathlib import Path
from typing import Any

from mixtures.plan import Plan
from training_hook.carry_out import carry_out, check_fit
from training_hook.command import run_command
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
        start: folder of a checkpoint, of a training run, whose last one is taken, or a Hugging Face
            folder. It has to be there when the run goes on, too: its weights are part of what the
            run is.
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
    return carry_out(run, plan, out, device, read_start(start, run, plan, vocabulary))


def main(arguments: list[str] | None = None) -> int:
    """Runs `python -m training_hook.sft`; returns the exit code."""
    return run_command(
        "sft",
        SftRun,
        sft,
        ("mixture", "from", "out"),
        "Fine-tunes a checkpoint on a mixture of conversations",
        "flows.runs.sft_tiny:run --mixture mixtures/chat --from runs/tiny --out runs/chat",
        arguments,
    )


if __name__ == "__main__":
    sys.exit(main())
