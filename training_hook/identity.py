"""What a folder or a checkpoint belongs to: one run, one mixture, one start."""

from pathlib import Path
from typing import Any

import torch

from mixtures.plan import Plan
from training_hook.device import device_name
from training_hook.run import PretrainRun, run_differences
from training_hook.start import Start


def environment(device: torch.device, world_size: int = 1) -> dict[str, Any]:
    """Returns what rounding depends on beside the run; only an equal one resumes bit for bit."""
    return {
        "torch": torch.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "ranks": world_size,
    }


def environment_changes(stored: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Returns one line for each thing that differs from a stored environment."""
    there = {"ranks": 1, **stored}
    return [f"{k} {there.get(k)} then, {here[k]} now" for k in here if there.get(k) != here[k]]


def mixture_identity(plan: Plan) -> dict[str, str]:
    """Returns the fingerprints of a mixture and of its vocabulary."""
    return {"fingerprint": plan.fingerprint, "vocabulary": plan.manifest["vocabulary"]}


def check_identity(
    where: Path, stored: dict[str, Any], run: PretrainRun, plan: Plan, start: Start | None
) -> None:
    """Checks that a folder or checkpoint is of this run, this mixture and this start.

    Raises:
        ValueError: it is not; the message names what differs.
    """
    differences = run_differences(stored["run"], run.parameters())
    if differences:
        raise ValueError(
            f"{where} belongs to another run; {'; '.join(differences)}. "
            "Choose another --out, or give the settings that it was started with"
        )
    here = mixture_identity(plan)
    if stored["mixture"] != here:
        raise ValueError(
            f"{where} was trained on another mixture: {stored['mixture']} there, {here} here. "
            "Choose another --out, or give that mixture"
        )
    started = None if start is None else start.identity
    if stored.get("start") != started:
        raise ValueError(
            f"{where} was started from {stored.get('start') or 'fresh weights'}, here it is "
            f"{started or 'fresh weights'}. Choose another --out, or give that start"
        )
