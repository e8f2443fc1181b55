"""A run in its folder: claimed for one run and one mixture, trained to its end, summed up.

Pretraining and fine-tuning share it; they differ in what they start from and what they refuse.
"""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch

from mixtures.artifact import exclusive, read_manifest
from mixtures.plan import Plan
from pipelines.atomic import sweep
from pipelines.dataset import write_json
from pipelines.progress import say
from training_hook.checkpoint import checkpoints
from training_hook.determinism import deterministic_algorithms
from training_hook.evaluation.bits_per_byte import PartScore, total_score
from training_hook.identity import check_identity, environment, mixture_identity
from training_hook.loop import Training
from training_hook.memory import GIB, check_memory, count_memory, free_memory
from training_hook.metrics import read_evaluations, read_metrics
from training_hook.model import num_parameters
from training_hook.ranks import Ranks, join_ranks
from training_hook.roll_backs import Diverged, RollBack, go_back
from training_hook.run import PretrainRun
from training_hook.start import Start
from training_hook.stop import Stop, stop_on_signals


def carry_out(
    run: PretrainRun, plan: Plan, out: Path, device: str | None, start: Start | None = None
) -> dict[str, Any]:
    """Trains to the end, or until a signal; returns what `pretrain` or `sft` does.

    Of several ranks the first one has the summary, the others its status alone.

    Raises:
        ValueError: the folder is another run's, or the run does not fit into the GPU's memory.
        torch.OutOfMemoryError: it did not, after all; the last checkpoint is whole.
    """
    with join_ranks(pick_device(device)) as (ranks, own_device):
        check_ranks(run, ranks)
        with exclusive(out) if ranks.is_first else nullcontext():
            summary = _claim(out, run, plan, start, ranks, own_device)
            if summary is not None:
                say(f"{run.name}: {out} is finished already")
            else:
                with deterministic_algorithms(run.deterministic), stop_on_signals() as stop:
                    begin = partial(Training, run, plan, out, own_device, start, ranks)
                    training = train(begin, run, ranks, stop)
                summary = summarise(training) if ranks.is_first else {"status": training.status}
                if ranks.is_first and summary["status"] == "finished":
                    write_json(out / "manifest.json", summary)
    if not ranks.is_first:
        return summary
    name = summary["checkpoint"]  # below the folder, which may be moved
    return {**summary, "out": str(out), "checkpoint": name and str(out / name)}


def check_ranks(run: PretrainRun, ranks: Ranks) -> None:
    """Checks that every global batch is a number of micro batches for each rank.

    Raises:
        ValueError: one is not.
    """
    for size in (*(size for _, size in run.batch_ramp), run.batch_size):
        if size % (run.micro_batch_size * ranks.world_size):
            raise ValueError(
                f"{run.name}: batch_size {size} does not divide into micro batches of "
                f"{run.micro_batch_size} for {ranks.world_size} ranks; wanted a multiple of "
                f"{run.micro_batch_size * ranks.world_size}. Start another number of processes, "
                "or choose another micro_batch_size"
            )


def _claim(
    out: Path,
    run: PretrainRun,
    plan: Plan,
    start: Start | None,
    ranks: Ranks,
    device: torch.device,
) -> dict[str, Any] | None:
    """Does what `claim` does on the first rank; the others learn whether the run has ended.

    Before that, and so before the folder is this run's, every rank looks at its GPU's memory.

    Raises:
        ValueError: the folder is another run's, or the run does not fit into a rank's memory.
    """
    refusal, summary = None, None
    try:
        if device.type == "cuda" and not (out / "manifest.json").exists():
            check_memory(run, free_memory(device), ranks.world_size)
        if ranks.is_first:
            summary = claim(out, run, plan, start)
    except ValueError as error:
        refusal = error
    if ranks.any(refusal is not None):
        raise refusal or ValueError(f"{run.name}: another rank refused {out}; it says why")
    if ranks.any(summary is not None):
        return summary or {"status": "finished"}
    return None


def train(begin: Callable[[], Training], run: PretrainRun, ranks: Ranks, stop: Stop) -> Training:
    """Trains to the end or until a stop is requested, and goes back where the run diverges.

    Raises:
        torch.OutOfMemoryError: the GPU's memory ran out; the message says what to change.
        Diverged: going back has not helped, or is not allowed.
    """
    try:
        while isinstance(ended := _try(begin, stop), RollBack):
            say(
                f"{run.name}: goes back from step {ended.from_step} to {ended.to_step} and past "
                f"the samples up to {ended.samples[1]:,}: {ended.reason}"
            )
            gc.collect()  # or the last try's tensors may still be there
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"{run.name}: the GPU's memory ran out: {error} About "
            f"{count_memory(run, ranks.world_size).estimate / GIB:.1f} GiB were expected. Take a "
            f"smaller micro_batch_size than {run.micro_batch_size} and another --out, or end what "
            "else runs on this GPU and give the same command again; the last checkpoint is whole"
        ) from error
    return ended


def _try(begin: Callable[[], Training], stop: Stop) -> Training | RollBack:
    """Trains until the end, or goes back to a checkpoint for the next try to begin with.

    The next try is built like that of a new process, so a run that is killed between the two is no
    other run; this one's weights are free by then.
    """
    training = begin()
    try:
        training.train(stop)
    except Diverged as error:
        roll_back = training.roll_back(error)
        if training.ranks.is_first:
            go_back(training.out, [*training.roll_backs, roll_back])
        training.ranks.any(False)  # none begins before it is written
        return roll_back
    return training


def check_fit(run: PretrainRun, plan: Plan, vocabulary: Path | None) -> None:
    """Checks that a mixture is one that the run can train on, to its last step.

    Raises:
        ValueError: it is not; the message says what to change.
    """
    size, samples = plan.manifest["vocabulary_size"], run.total_samples
    if plan.sequence_length != run.sequence_length:
        raise ValueError(
            f"{run.name}: sequence_length is {run.sequence_length}, {plan.path} was mixed for "
            f"{plan.sequence_length}. Mix for this run, or change the run"
        )
    if size > run.model.vocab_size:
        raise ValueError(
            f"{run.name}: vocab_size is {run.model.vocab_size}, the tokens of {plan.path} go up "
            f"to {size}. Raise vocab_size, or train a smaller vocabulary"
        )
    if samples > plan.num_samples:
        raise ValueError(
            f"{run.name}: {run.total_steps:,} steps take {samples:,} samples, {plan.path} has "
            f"{plan.num_samples:,}. Mix more, or train fewer steps"
        )
    if vocabulary is not None:
        found = read_manifest(vocabulary / "vocabulary.json", "vocabulary")["fingerprint"]
        if found != plan.manifest["vocabulary"]:
            raise ValueError(
                f"{vocabulary} is not the vocabulary of {plan.path}: its fingerprint is "
                f"{found[:12]}, wanted {plan.manifest['vocabulary'][:12]}"
            )


def pick_device(name: str | None) -> torch.device:
    """Returns the named device, or the GPU if there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def claim(
    out: Path, run: PretrainRun, plan: Plan, start: Start | None = None
) -> dict[str, Any] | None:
    """Makes a folder this run's, or returns the summary if it is and has ended.

    Raises:
        ValueError: it is another run's, or not a run's at all.
    """
    sweep(out)
    note = out / "run.json"
    if note.exists():
        check_identity(out, read_manifest(note, "run"), run, plan, start)
        done = out / "manifest.json"
        return read_manifest(done, "run") if done.exists() else None
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is no run's folder and not empty; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    made = {"run": run.parameters(), "mixture": mixture_identity(plan)}
    write_json(note, made if start is None else {**made, "start": start.identity})
    return None


def summarise(training: Training) -> dict[str, Any]:
    """Returns the summary of a run as far as it has come."""
    run, out = training.run, training.out
    steps = read_metrics(out)
    evaluations: dict[int, list[PartScore]] = {}
    table = read_evaluations(out)
    for step in dict.fromkeys(table["step"].to_pylist()):
        rows = table.filter(pc.field("step") == step).drop_columns(["step", "bits_per_byte"])
        scores = [PartScore(**row) for row in rows.to_pylist()]
        evaluations[step] = [*scores, total_score(scores)]
    ends = {"before": evaluations.get(0), "after": evaluations.get(run.total_steps)}
    done = checkpoints(out / "checkpoints")
    learnt = steps.filter(~pc.field("skipped"))  # another step's loss may be no number
    seconds = pc.sum(steps["seconds"]).as_py() or 0.0
    tokens = run.batches.tokens(training.step)
    summary = {
        "status": training.status,
        "name": run.name,
        "step": training.step,
        "total_steps": run.total_steps,
        "parameters": num_parameters(run.model),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        "loss": learnt["loss"][-1].as_py() if len(learnt) else None,
        "bits_per_byte": {
            name: found and {score.part: score.bits_per_byte for score in found}
            for name, found in ends.items()
        },
        "checkpoint": done[max(done)].relative_to(out).as_posix() if done else None,
        "run": run.parameters(),
        "mixture": mixture_identity(training.plan),
        "environment": environment(training.device, training.ranks.world_size),
    }
    if training.start is not None:
        summary["start"] = training.start.identity
        summary["held_out_loss"] = {
            name: found and {score.part: score.loss for score in found}
            for name, found in ends.items()
        }
    return summary
