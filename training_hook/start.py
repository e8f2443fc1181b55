"""Where a run takes its first weights from: a checkpoint, known by what it holds.

The optimizer starts afresh, so of a checkpoint only the FP32 master weights count; their SHA-256 is
what `run.json` and every later checkpoint record, beside the run, step and mixture that made them.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtures.plan import Plan
from training_hook.checkpoint import MODEL, checkpoints, read_checkpoint
from training_hook.run import PretrainRun, run_fingerprint

# Fields of a model's shape that its weights do not depend on.
_FREE = (
    "chunk_size",
    "max_position_embeddings",
    "initializer_range",
    "rescale_prenorm_residual",
    "time_step_min",
    "time_step_max",
    "time_step_floor",
)


@dataclass(frozen=True)
class Start:
    """A checkpoint to start from."""

    path: Path
    identity: dict[str, Any]
    """Of what it holds, JSON-safe; the same wherever the folder lies."""


def read_start(path: Path, run: PretrainRun, plan: Plan) -> Start:
    """Reads what a checkpoint is and checks that a run can start from it.

    Args:
        path: folder of a checkpoint (step-N), or of a training run, whose last one is taken.
        run: what to train.
        plan: the mixture to train it on.

    Raises:
        ValueError: there is no complete checkpoint, it is of another model or another vocabulary.
    """
    found = checkpoints(path / "checkpoints")
    path = found[max(found)] if found else path
    manifest = read_checkpoint(path)
    there, here = manifest["run"]["model"], run.parameters()["model"]
    differences = [
        f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted(there.keys() | here.keys())
        if name not in _FREE and there.get(name) != here.get(name)
    ]
    if differences:
        raise ValueError(
            f"{run.name}: {path} is of another model; {'; '.join(differences)}. Give the run that "
            "checkpoint's model, or start from another"
        )
    vocabulary, wanted = manifest["mixture"]["vocabulary"], plan.manifest["vocabulary"]
    if vocabulary != wanted:
        raise ValueError(
            f"{run.name}: {path} was trained on the vocabulary {vocabulary[:12]}, {plan.path} is "
            f"of {wanted[:12]}. Tokenize and mix with the checkpoint's vocabulary"
        )
    identity = {
        "run": manifest["run"]["name"],
        "run_fingerprint": run_fingerprint(manifest["run"]),
        "step": manifest["step"],
        "mixture": manifest["mixture"],
        "weights_sha256": _weights_sha256(path / MODEL),
    }
    return Start(path, identity)


def _weights_sha256(folder: Path) -> str:
    """Returns a hash of the files of weights, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
