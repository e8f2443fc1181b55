"""Pretraining from end to end: a run and a mixture in, a trained and evaluated checkpoint out.

The output folder is the run: it is made for one run and one mixture, refused to any other, and the
same command goes on with it until its manifest, written last, says that it is finished. It runs
with `python -m training_hook.pretrain` where there is only torch, numpy, numba and pyarrow.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch

from mixtures.artifact import exclusive, read_manifest
from mixtures.plan import Plan
from pipelines.atomic import sweep
from pipelines.dataset import write_json
from pipelines.progress import human, say
from training_hook.checkpoint import checkpoints
from training_hook.evaluate import PartScore, total_score
from training_hook.loop import Training, build_model, check_identity, environment, mixture_identity
from training_hook.metrics import read_evaluations, read_metrics
from training_hook.model import forward_flops, num_parameters
from training_hook.run import PretrainRun, load_run
from training_hook.sft_run import SftRun
from training_hook.start import Start
from training_hook.stop import stop_on_signals


def pretrain(
    run: PretrainRun,
    mixture: Path,
    out: Path,
    vocabulary: Path | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Trains a run on a mixture, or goes on with it, and returns a summary.

    The folder gets `run.json` (what the run is), `checkpoints/step-N`, `metrics/` and, once the
    last step is done and evaluated, `manifest.json` with the summary.

    Args:
        run: what to train.
        mixture: folder of a mixture.
        out: folder of the run; one that holds this run is continued, another one's is refused.
        vocabulary: folder of the vocabulary, to prove that it is the mixture's; not needed.
        device: "cuda" or "cpu"; a GPU if there is one, where not given.

    Returns:
        JSON-safe: `status` is "finished", or "stopped" after SIGTERM or Ctrl-C (the same call goes
        on); parameters, steps, tokens, tokens_per_second, seconds, loss, bits_per_byte before and
        after by part, checkpoint, out.

    Raises:
        ValueError: the run does not fit the mixture, or the folder holds something else.
        FloatingPointError: a loss or gradient is not finite; the message names step and samples.
        OSError: the disk is full; the last checkpoint is whole.
    """
    if isinstance(run, SftRun):
        raise ValueError(
            f"{run.name} is an SftRun, which starts from a checkpoint; wanted a PretrainRun. Use "
            "sft for that one"
        )
    plan = Plan(mixture)
    check_fit(run, plan, vocabulary)
    return carry_out(run, plan, out, device)


def carry_out(
    run: PretrainRun, plan: Plan, out: Path, device: str | None, start: Start | None = None
) -> dict[str, Any]:
    """Trains to the end, or until a signal; returns what `pretrain` or `sft` does."""
    with exclusive(out):
        summary = claim(out, run, plan, start)
        if summary is not None:
            say(f"{run.name}: {out} is finished already")
        else:
            with stop_on_signals() as stop:
                training = Training(run, plan, out, pick_device(device), start)
                training.train(stop)
            summary = summarise(training)
            if summary["status"] == "finished":
                write_json(out / "manifest.json", summary)
    name = summary["checkpoint"]  # below the folder, which may be moved
    return {**summary, "out": str(out), "checkpoint": name and str(out / name)}


def check_fit(run: PretrainRun, plan: Plan, vocabulary: Path | None) -> None:
    """Checks that a mixture is one that the run can train on, to its last step.

    Raises:
        ValueError: it is not; the message says what to change.
    """
    size, samples = plan.manifest["vocabulary_size"], run.total_steps * run.batch_size
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
    seconds = pc.sum(steps["seconds"]).as_py() or 0.0
    tokens = training.step * run.tokens_per_step
    summary = {
        "status": "finished" if finished else "stopped",
        "name": run.name,
        "step": training.step,
        "total_steps": run.total_steps,
        "parameters": num_parameters(run.model),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        "loss": steps["loss"][-1].as_py() if len(steps) else None,
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


def estimate(run: PretrainRun, device: str | None = None) -> dict[str, Any]:
    """Returns what a run would take, without training: sizes by counting, time by one product.

    `seconds_at_40_percent` supposes that training reaches 40% of the rate at which this machine
    multiplies two matrices in the run's precision: 0.39 was measured for 1B on an H100.
    """
    flops = 3 * forward_flops(run.model, run.sequence_length)
    tokens = run.total_steps * run.tokens_per_step
    rate = matrix_rate(pick_device(device), getattr(torch, run.precision))
    parameters = num_parameters(run.model)
    return {
        "name": run.name,
        "parameters": parameters,
        "tokens": tokens,
        "steps": run.total_steps,
        "tokens_per_step": run.tokens_per_step,
        "flops_per_token": flops,
        "flops": flops * tokens,
        "state_bytes": 16 * parameters,
        "activation_bytes": activation_bytes(run),
        "matrix_flops_per_second": rate,
        "seconds_at_40_percent": flops * tokens / (0.4 * rate),
    }


def activation_bytes(run: PretrainRun) -> int:
    """Returns what one micro batch keeps for its backward pass, without compiling, in bytes.

    Counted on tensors without data. Compiled blocks keep less: pointwise chains are recomputed.
    """
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.device("meta"):
        model = build_model(run)
        tokens = torch.zeros((run.micro_batch_size, run.sequence_length), dtype=torch.long)
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.loss(tokens, tokens, None, tokens.int())
    return sum(size for storage, size in kept.items() if storage not in weights)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the FLOPs per second of a matrix product on a device: the best within 0.3 s."""
    size = 8192 if device.type == "cuda" else 256
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(size, size, generator=generator, device=device).to(dtype)
    best, begin = 0.0, time.perf_counter()
    while time.perf_counter() - begin < 0.3:
        start = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


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


def main(arguments: list[str] | None = None) -> int:
    """Runs `python -m training_hook.pretrain`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training_hook.pretrain",
        description="Trains a run on a mixture; the same command goes on where it stopped.",
        epilog="example: python -m training_hook.pretrain flows.runs.hybrid_tiny:hybrid_tiny "
        "--mixture mixtures/first --out runs/tiny",
    )
    parser.add_argument("run", help="MODULE:FUNCTION that returns a PretrainRun")
    parser.add_argument("--mixture", type=Path, help="folder of a mixture")
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
    if not options.dry_run and (options.mixture is None or options.out is None):
        parser.error("--mixture and --out are needed (or --dry-run)")
    try:
        if options.dry_run:
            result = estimate(run, options.device)
        else:
            result = pretrain(run, options.mixture, options.out, device=options.device)
    except (ValueError, OSError, FloatingPointError) as error:
        say(f"pretrain: failed: {error}")
        return 1
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        say(describe(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
