"""A run in its folder: claimed for one run and one mixture, trained to its end, summed up.

Pretraining and fine-tuning share it; they differ in what they start from and what they refuse.
"""

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
from training_hook.evaluate import PartScore, total_score
from training_hook.loop import Training, check_identity, environment, mixture_identity
from training_hook.memory import GIB, check_memory, count_memory, free_memory
from training_hook.metrics import read_evaluations, read_metrics
from training_hook.model import num_parameters
from training_hook.run import PretrainRun
from training_hook.start import Start
from training_hook.stop import Stop, stop_on_signals


def carry_out(
    run: PretrainRun, plan: Plan, out: Path, device: str | None, start: Start | None = None
) -> dict[str, Any]:
    """Trains to the end, or until a signal; returns what `pretrain` or `sft` does.

    Raises:
        ValueError: the folder is another run's, or the run does not fit into the GPU's memory.
        torch.OutOfMemoryError: it did not, after all; the last checkpoint is whole.
    """
    where = pick_device(device)
    with exclusive(out):
        if where.type == "cuda" and not (out / "manifest.json").exists():
            check_memory(run, free_memory(where))  # before the folder is this run's
        summary = claim(out, run, plan, start)
        if summary is not None:
            say(f"{run.name}: {out} is finished already")
        else:
            with deterministic_algorithms(run.deterministic), stop_on_signals() as stop:
                training = train(run, plan, out, where, start, stop)
            summary = summarise(training)
            if summary["status"] == "finished":
                write_json(out / "manifest.json", summary)
    name = summary["checkpoint"]  # below the folder, which may be moved
    return {**summary, "out": str(out), "checkpoint": name and str(out / name)}


def train(
    run: PretrainRun, plan: Plan, out: Path, device: torch.device, start: Start | None, stop: Stop
) -> Training:
    """Trains to the end or until a stop is requested.

    Raises:
        torch.OutOfMemoryError: the GPU's memory ran out; the message says what to change.
    """
    try:
        training = Training(run, plan, out, device, start)
        training.train(stop)
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"{run.name}: the GPU's memory ran out: {error} About "
            f"{count_memory(run).estimate / GIB:.1f} GiB were expected. Take a smaller "
            f"micro_batch_size than {run.micro_batch_size} and another --out, or end what else "
            "runs on this GPU and give the same command again; the last checkpoint is whole"
        ) from error
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
    finished = training.step == run.total_steps and run.total_steps in evaluations
    learnt = steps.filter(~pc.field("skipped"))  # another step's loss may be no number
    seconds = pc.sum(steps["seconds"]).as_py() or 0.0
    tokens = run.batches.tokens(training.step)
    summary = {
        "status": "finished" if finished else "stopped",
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
        "environment": environment(training.device),
    }
    if training.start is not None:
        summary["start"] = training.start.identity
        summary["held_out_loss"] = {
            name: found and {score.part: score.loss for score in found}
            for name, found in ends.items()
        }
    return summary
