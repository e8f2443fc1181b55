"""Pretraining from end to end: a run and a mixture in, a trained and evaluated checkpoint out.

Weights are drawn, or those of a checkpoint or a Hugging Face folder: continued pretraining on
another mixture of the same vocabulary, with a fresh optimizer and the run's own schedule.

The output folder is the run: it is made for one run and one mixture, refused to any other, and the
same command goes on with it until its manifest, written last, says that it is finished. It runs
with `python -m training_hook.pretrain` where there is only torch, numpy, numba and pyarrow.
"""

import sys
from pathlib import Path
from typing import Any

from mixtures.plan import Plan
from training_hook.carry_out import carry_out, check_fit
from training_hook.command import run_command
from training_hook.run import PretrainRun
from training_hook.sft_run import SftRun
from training_hook.start import read_start


def pretrain(
    run: PretrainRun,
    mixture: Path,
    out: Path,
    vocabulary: Path | None = None,
    device: str | None = None,
    start: Path | None = None,
) -> dict[str, Any]:
    """Trains a run on a mixture, or goes on with it, and returns a summary.

    The folder gets `run.json` (what the run is), `checkpoints/step-N`, `metrics/` and, once the
    last step is done and evaluated, `manifest.json` with the summary. Processes that torchrun
    started train together, each on its GPU; they share the folder, and the first has the summary.

    Args:
        run: what to train.
        mixture: folder of a mixture.
        out: folder of the run; one that holds this run is continued, another one's is refused.
        vocabulary: folder of the vocabulary, to prove that it is the mixture's; needed only to
            start from a Hugging Face folder of others whose tokenizer was not imported.
        device: "cuda" or "cpu"; a GPU if there is one, where not given.
        start: what to take the first weights from instead of drawing them: folder of a checkpoint,
            of a training run, whose last one is taken, or a Hugging Face folder. It has to be there
            when the run goes on, too: its weights are part of what the run is.

    Returns:
        JSON-safe: `status` is "finished", or "stopped" after SIGTERM or Ctrl-C (the same call goes
        on); parameters, steps, tokens, tokens_per_second, seconds, loss, bits_per_byte before and
        after by part, checkpoint, out; of a run with a start what it was started from and the
        loss on held-out documents, too.

    Raises:
        ValueError: run, mixture and start do not fit together, or the folder holds something else.
        FloatingPointError: a loss or gradient is not finite; the message names step and samples.
        OSError: the disk is full; the last checkpoint is whole.
    """
    if isinstance(run, SftRun):
        raise ValueError(
            f"{run.name} is an SftRun, which trains on conversations; wanted a PretrainRun. Use "
            "sft for that one"
        )
    plan = Plan(mixture)
    check_fit(run, plan, vocabulary)
    begin = None if start is None else read_start(start, run, plan, vocabulary)
    return carry_out(run, plan, out, device, begin)


def main(arguments: list[str] | None = None) -> int:
    """Runs `python -m training_hook.pretrain`; returns the exit code."""
    return run_command(
        "pretrain",
        PretrainRun,
        pretrain,
        ("mixture", "out"),
        "Trains a run on a mixture",
        "flows.runs.hybrid_tiny:run --mixture mixtures/first --out runs/tiny",
        arguments,
    )


if __name__ == "__main__":
    sys.exit(main())
