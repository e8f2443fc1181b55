"""Checkpoints: a directory `step-N` that is either complete or not there.

The tensors (FP32 master weights, exp_avg, exp_avg_sq) lie in a folder each, as safetensors under
Hugging Face tensor names and shapes, in the layout of torch.distributed.checkpoint's Hugging Face
storage: whole tensors, or shards with their offsets in the header. Either side reads what the other
wrote, so ranks of a sharded run may write theirs into the same folders and load on any number of
GPUs, and the file of a single process is what export and other tools open. It is written by
safetensors itself: 0.33 s for 512 MB, where PyTorch's writer, which first serialises everything to
a second copy in memory, takes 2 to 3 s and its import doubles the start of a program. Everything
else is JSON, so loading executes no code: neither pickle nor torch.load is involved.

A checkpoint is written under a temporary name, its manifest last, flushed to disk and renamed. A
process killed anywhere before the rename leaves a folder that the next save removes. 16 bytes a
parameter are in memory while training, 12 of them are saved: 12.6 GB for 1.05 billion parameters.
"""

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipelines.atomic import PREFIX, sweep, written_folder

FORMAT = 1
MANIFEST = "manifest.json"
MODEL = "model"
SHARD = "model-00001-of-00001.safetensors"
_NAME = re.compile(r"step-(\d{8,})")
OFFSETS = "DCP_SHARDING_INFO"
"""Header entry in which torch.distributed.checkpoint notes where a shard begins."""
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F64": torch.float64}


def checkpoint_name(step: int) -> str:
    """Returns the directory name of a step's checkpoint."""
    return f"step-{step:08d}"


def checkpoints(directory: Path) -> dict[int, Path]:
    """Returns the complete checkpoints in a directory by step, in ascending order."""
    found = {}
    for path in directory.glob("step-*"):
        match = _NAME.fullmatch(path.name)
        if match and (path / MANIFEST).is_file():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def save_checkpoint(
    directory: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> Path:
    """Writes a checkpoint and returns its path.

    Args:
        directory: where the run's checkpoints lie; made if missing.
        step: number of optimizer steps done.
        tensors: folder name to {Hugging Face tensor name: tensor}.
        state: everything else, as JSON-safe data; stored in the manifest.

    Raises:
        OSError: the disk is full or cannot be written; no checkpoint of this step is left behind.
    """
    sweep(directory)
    target = directory / checkpoint_name(step)
    if target.exists():
        _remove(target)
    with written_folder(target) as aside:
        for folder, named in tensors.items():
            _write(aside / folder, named)
        files = {
            path.relative_to(aside).as_posix(): path.stat().st_size
            for path in sorted(aside.rglob("*"))
            if path.is_file()
        }
        manifest = {"format": FORMAT, "step": step, "files": files, **state}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return target


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Returns the manifest of a checkpoint after checking that its files are all there.

    Raises:
        ValueError: no manifest, another format, or a file that is missing or of a wrong size.
    """
    if not (path / MANIFEST).is_file():
        raise ValueError(f"checkpoint: {path} has no {MANIFEST}; wanted a complete step-N folder")
    manifest = json.loads((path / MANIFEST).read_text())
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"checkpoint: {path} has format {manifest.get('format')}; this version reads {FORMAT}"
        )
    for name, size in manifest["files"].items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            raise ValueError(
                f"checkpoint: {file} has {'no file' if found is None else f'{found} bytes'}, its "
                f"manifest says {size} bytes; remove {path} to go on from an earlier checkpoint"
            )
    return manifest


def load_tensors(path: Path, folder: str, into: Mapping[str, Tensor]) -> None:
    """Copies the tensors of one folder of a checkpoint into tensors of the same names and shapes.

    Raises:
        ValueError: names, shapes or types differ (the message lists the first few), a file is no
            safetensors file, or shards do not make up a tensor.
    """
    shards = _shards(path / folder)
    stored = {name: (_full_shape(parts), parts[0].dtype) for name, parts in shards.items()}
    wanted = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in into.items()}
    if stored != wanted:
        raise ValueError(
            f"checkpoint: {path / folder} does not fit this model: "
            + "; ".join(_differences(stored, wanted))
        )
    for name, parts in shards.items():
        for shard in parts:
            where = tuple(slice(o, o + n) for o, n in zip(shard.offset, shard.shape, strict=True))
            with safe_open(shard.file, framework="pt") as file:
                into[name].detach()[where].copy_(file.get_tensor(name))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Returns the FP32 master weights of a checkpoint by Hugging Face tensor name, on the CPU."""
    read_checkpoint(path)
    weights = {
        name: torch.empty(_full_shape(parts), dtype=parts[0].dtype)
        for name, parts in _shards(path / MODEL).items()
    }
    load_tensors(path, MODEL, weights)
    return weights


def prune_checkpoints(directory: Path, keep_last: int, keep_every: int) -> list[int]:
    """Removes all but the newest `keep_last` and multiples of `keep_every`; returns their steps."""
    steps = checkpoints(directory)
    kept = set(list(steps)[-keep_last:])
    gone = [step for step in steps if step not in kept and step % keep_every]
    for step in gone:
        _remove(steps[step])
    return gone


@dataclass(frozen=True)
class _Shard:
    """A tensor, or a block of one, in a file."""

    file: Path
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype


def _shards(folder: Path) -> dict[str, list[_Shard]]:
    """Reads the headers of a folder: the shards of each tensor."""
    found: dict[str, list[_Shard]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                offsets = json.loads((file.metadata() or {}).get(OFFSETS, "{}"))
                for name in file.keys():  # noqa: SIM118 (it is no dict)
                    shape = tuple(file.get_slice(name).get_shape())
                    start = offsets.get(name, {"saved_offsets": [0] * len(shape)})["saved_offsets"]
                    dtype = _DTYPES[file.get_slice(name).get_dtype()]
                    found.setdefault(name, []).append(_Shard(path, tuple(start), shape, dtype))
        except SafetensorError as error:
            raise ValueError(f"checkpoint: {path} is no safetensors file: {error}") from error
    for name, parts in found.items():
        shape = _full_shape(parts)
        if sum(math.prod(part.shape) for part in parts) != math.prod(shape):
            raise ValueError(
                f"checkpoint: {len(parts)} shards in {folder} do not make up {name} {list(shape)}"
            )
    return found


def _full_shape(parts: Sequence[_Shard]) -> tuple[int, ...]:
    ends = [[o + n for o, n in zip(p.offset, p.shape, strict=True)] for p in parts]
    return tuple(max(axis) for axis in zip(*ends, strict=True))


def _write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    folder.mkdir()
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, folder / SHARD, metadata={"format": "pt"})
    except SafetensorError as failure:  # its own type for a full disk, too
        raise OSError(f"checkpoint: {folder / SHARD} could not be written: {failure}") from failure
    # safetensors makes its files 0600; a checkpoint follows the umask like everything else
    (folder / SHARD).chmod(folder.stat().st_mode & 0o666)


def _remove(path: Path) -> None:
    """Removes a checkpoint; a process killed on the way leaves no half of it under `step-N`."""
    hidden = path.with_name(f"{PREFIX}removed-{path.name}")
    path.rename(hidden)
    shutil.rmtree(hidden)


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    lines = []
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            lines.append(
                f"{name} is {_shape(stored.get(name))} there and {_shape(wanted.get(name))} here"
            )
    return lines[:5] + ([f"and {len(lines) - 5} more"] if len(lines) > 5 else [])


def _shape(tensor: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "missing" if tensor is None else f"{tensor[1]} {list(tensor[0])}".removeprefix("torch.")
