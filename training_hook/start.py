"""Where a run takes its first weights from: a checkpoint or a Hugging Face folder.

The optimizer starts afresh, so of a checkpoint only the FP32 master weights count; their SHA-256 is
what `run.json` and every later checkpoint record, beside the run, step and mixture that made them.
A Hugging Face folder is read as it is and its weights are cast to FP32: what BF16 has rounded away
does not come back. Everything that can be wrong is looked for here, in manifests, configurations
and the headers of files, before anything is built.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixtures.plan import Plan
from mixtures.tokenizer_json import TOKENIZER, imported_fingerprint, tokenizer_identity
from training_hook.checkpoint import MODEL, checkpoints, load_tensors, read_checkpoint
from training_hook.import_hf import (
    StoredModel,
    is_hf_folder,
    open_hf,
    read_config,
    read_origin,
)
from training_hook.rows import Rows
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
    """A checkpoint or a Hugging Face folder to start from."""

    path: Path
    identity: dict[str, Any]
    """Of what it holds, JSON-safe; the same wherever the folder lies."""
    stored: StoredModel | None = None
    """The Hugging Face folder, if it is one."""

    def load_into(self, parameters: Mapping[str, Rows]) -> None:
        """Copies the weights into (rows of) a model's FP32 parameters by their names."""
        if self.stored is None:
            load_tensors(self.path, MODEL, parameters)
        else:
            self.stored.load_into(parameters)


def read_start(path: Path, run: PretrainRun, plan: Plan, vocabulary: Path | None = None) -> Start:
    """Reads what a start is and checks that a run can start from it.

    Args:
        path: folder of a checkpoint (step-N), of a training run, whose last one is taken, or a
            Hugging Face folder of the nemotron_h family, ours or another's.
        run: what to train.
        plan: the mixture to train it on.
        vocabulary: folder of the mixture's vocabulary, for a Hugging Face folder that is not ours
            and whose tokenizer was not imported.

    Raises:
        ValueError: there is no such thing or it is cut off, it is of another model or another
            vocabulary.
    """
    if is_hf_folder(path):
        return _read_folder(path, run, plan, vocabulary)
    found = checkpoints(path / "checkpoints")
    if not found and not (path / "manifest.json").is_file():
        raise ValueError(
            f"{run.name}: {path} holds nothing to start from: it has no manifest.json, so it is no "
            "complete checkpoint (step-N), no checkpoints/step-N, so no training run that has "
            "saved one, and no config.json, so no Hugging Face folder. Check the path"
        )
    path = found[max(found)] if found else path
    manifest = read_checkpoint(path)
    _check_shape(path, run, manifest["run"]["model"])
    _check_trained_vocabulary(path, run, plan, manifest["mixture"]["vocabulary"])
    identity = {
        "run": manifest["run"]["name"],
        "run_fingerprint": run_fingerprint(manifest["run"]),
        "step": manifest["step"],
        "mixture": manifest["mixture"],
        "weights_sha256": _sha256(sorted((path / MODEL).glob("*.safetensors"))),
    }
    return Start(path, identity)


def _read_folder(path: Path, run: PretrainRun, plan: Plan, vocabulary: Path | None) -> Start:
    config = read_config(path)
    there = asdict(config)
    tied = run.model.tie_word_embeddings and not config.tie_word_embeddings
    if tied:  # export writes both tables
        there["tie_word_embeddings"] = True
    _check_shape(path, run, there)
    origin = read_origin(path)
    if origin is None:
        _check_foreign_vocabulary(path, run, plan, vocabulary)
    else:
        _check_trained_vocabulary(path, run, plan, origin["vocabulary"])
    stored = open_hf(path, config)
    if tied and not stored.is_tied():
        raise ValueError(
            f"{run.name}: the run ties head and embeddings (tie_word_embeddings), and {path} has "
            "two tables. Give the run tie_word_embeddings=False"
        )
    identity = {
        "hugging_face": {"model": asdict(config), "dtypes": list(stored.dtypes)},
        "origin": origin,
        "vocabulary": plan.manifest["vocabulary"],
        "weights_sha256": _sha256(sorted(set(stored.files.values()))),
    }
    return Start(path, identity, stored)


def _check_shape(path: Path, run: PretrainRun, there: Mapping[str, Any]) -> None:
    here = run.parameters()["model"]
    differences = [
        f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted(there.keys() | here.keys())
        if name not in _FREE and there.get(name) != here.get(name)
    ]
    if differences:
        raise ValueError(
            f"{run.name}: {path} is of another model; {'; '.join(differences)}. Give the run that "
            "model, or start from another"
        )


def _check_trained_vocabulary(path: Path, run: PretrainRun, plan: Plan, vocabulary: str) -> None:
    wanted = plan.manifest["vocabulary"]
    if vocabulary != wanted:
        raise ValueError(
            f"{run.name}: {path} was trained on the vocabulary {vocabulary[:12]}, {plan.path} is "
            f"of {wanted[:12]}. Tokenize and mix with the checkpoint's vocabulary"
        )


def _check_foreign_vocabulary(
    path: Path, run: PretrainRun, plan: Plan, vocabulary: Path | None
) -> None:
    """Compares the tokenizer.json of a folder that no export of ours wrote."""
    file = path / TOKENIZER
    if not file.is_file():
        raise ValueError(
            f"{run.name}: {path} has neither gristmill.json nor {TOKENIZER}, so nothing says which "
            f"text its ids mean. Put the model's {TOKENIZER} beside its config.json"
        )
    wanted = plan.manifest["vocabulary"]
    if imported_fingerprint(file, plan.manifest["end_of_document"]) == wanted:
        return
    if vocabulary is not None and tokenizer_identity(vocabulary / TOKENIZER) == tokenizer_identity(
        file
    ):
        return
    raise ValueError(
        f"{run.name}: {file} is not the vocabulary of {plan.path} ({wanted[:12]}), so its ids mean "
        f"other text. Make a vocabulary of it (gristmill tokenizer import {path} --out "
        "TOKENIZER), tokenize and mix with that; if the mixture's vocabulary has that very "
        "tokenizer.json, name its folder (--tokenizer)"
    )


def _sha256(files: Iterable[Path]) -> str:
    """Returns a hash of files, in their order."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
