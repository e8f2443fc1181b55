"""Checkpoints: a directory `step-N` that is either complete or not there.

The tensors (FP32 master weights, exp_avg, exp_avg_sq) lie in a folder each, as safetensors under
Hugging Face tensor names and shapes, in the layout of torch.distributed.checkpoint's Hugging Face
storage: whole tensors, or shards with their offsets in the header. Either side reads what the other
wrote. Each rank of a sharded run writes a file with its rows into the same folders, and any number
of ranks reads them; the file of a single process is what other tools open. They are written by
safetensors itself: 0.33 s for 512 MB, where PyTorch's writer, which first serialises everything to
a second copy in memory, takes 2 to 3 s and its import doubles the start of a program. Everything
else is JSON, so loading executes no code: neither pickle nor torch.load is involved.

A checkpoint is written under a temporary name, its manifest last, flushed to disk and renamed by
the first rank, when all have written. A process killed anywhere before the rename leaves a folder
that the next save removes. 16 bytes a
parameter are in memory while training, 12 of them are saved: 12.6 GB for 1.05 billion parameters.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipelines.atomic import PREFIX, flush, remove_folder, sweep
from training_hook.ranks import ALONE, Ranks
from training_hook.rows import Rows, whole

FORMAT = 1
MANIFEST = "manifest.json"
MODEL = "model"
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


def last_checkpoint(folder: Path) -> Path:
    """Returns the last checkpoint of a run, or of a folder of them; a checkpoint is its own.

    Raises:
        ValueError: there is no finished one.
    """
    if (folder / MODEL).is_dir():
        return folder
    found = checkpoints(folder / "checkpoints") or checkpoints(folder)
    if not found:
        raise ValueError(
            f"{folder} holds no finished checkpoint (step-N); wanted the folder that "
            "`gristmill pretrain` or `gristmill sft` wrote"
        )
    return found[max(found)]


def save_checkpoint(
    directory: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor | Rows]],
    state: Mapping[str, Any],
    ranks: Ranks = ALONE,
) -> Path:
    """Writes a checkpoint and returns its path; every rank calls it with what it holds.

    Args:
        directory: where the run's checkpoints lie, for all ranks the same; made if missing.
        step: number of optimizer steps done.
        tensors: folder name to {Hugging Face tensor name: tensor}; of several ranks each writes its
            `Rows`, the first one also what is given as a whole.
        state: everything else, as JSON-safe data; the first rank's is stored in the manifest.
        ranks: whose checkpoint it is.

    Raises:
        OSError: the disk is full or cannot be written, for this rank or another; no checkpoint of
            this step is left behind.
    """
    target = directory / checkpoint_name(step)
    aside = target.with_name(f"{PREFIX}{target.name}")

    def begin() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        sweep(directory)
        if target.exists():
            remove_folder(target)
        aside.mkdir()

    def write() -> None:
        for folder, named in tensors.items():
            _write(aside / folder, named, ranks)

    def commit() -> None:
        files = {
            path.relative_to(aside).as_posix(): path.stat().st_size
            for path in sorted(aside.rglob("*"))
            if path.is_file()
        }
        manifest = {"format": FORMAT, "step": step, "files": files, **state}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for path in (aside / MANIFEST, *(aside / folder for folder in tensors), aside):
            flush(path)
        aside.replace(target)
        flush(directory)

    try:
        for do, by_first_alone in ((begin, True), (write, False), (commit, True)):
            _attempt(do if ranks.is_first or not by_first_alone else None, ranks)
    finally:
        if ranks.is_first:
            shutil.rmtree(aside, ignore_errors=True)
    return target


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Returns the manifest of a checkpoint after checking that its files are all there.

    Raises:
        ValueError: no manifest, another format, or a file that is missing or of a wrong size.
    """
    if not (path / MANIFEST).is_file():
        raise ValueError(f"checkpoint: {path} has no {MANIFEST}; wanted a complete step-N folder")
    manifest = json.loads((path / MANIFEST).read_text())
    if "format" not in manifest or "step" not in manifest:
        raise ValueError(
            f"checkpoint: {path} is no checkpoint: its manifest is of something else, with "
            f"{', '.join(sorted(manifest)[:5])}. Give a step-N folder or that of a training run"
        )
    if manifest["format"] != FORMAT:
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


def load_tensors(path: Path, folder: str, into: Mapping[str, Tensor | Rows]) -> None:
    """Copies the tensors of one folder of a checkpoint into tensors of the same names and shapes.

    Of tensors that are given as `Rows` only those are read, however many ranks wrote them.

    Raises:
        ValueError: names, shapes or types differ (the message lists the first few), a file is no
            safetensors file, or shards do not make up a tensor.
    """
    shards = _shards(path / folder)
    targets = {name: t if isinstance(t, Rows) else whole(t) for name, t in into.items()}
    stored = {name: (_full_shape(parts), parts[0].dtype) for name, parts in shards.items()}
    wanted = {name: (rows.shape, rows.local.dtype) for name, rows in targets.items()}
    if stored != wanted:
        raise ValueError(
            f"checkpoint: {path / folder} does not fit this model: "
            + "; ".join(_differences(stored, wanted))
        )
    for name, parts in shards.items():
        for shard in parts:
            _copy(name, shard, targets[name])


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
        remove_folder(steps[step])
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


def _copy(name: str, shard: _Shard, into: Rows) -> None:
    """Copies what a shard has of some rows."""
    if not shard.shape:
        with safe_open(shard.file, framework="pt") as file:
            into.local.copy_(file.get_tensor(name))
        return
    begin = max(shard.offset[0], into.first)
    end = min(shard.offset[0] + shard.shape[0], into.first + len(into.local))
    if begin >= end:
        return
    inner = (slice(o, o + n) for o, n in zip(shard.offset[1:], shard.shape[1:], strict=True))
    with safe_open(shard.file, framework="pt") as file:
        rows = file.get_slice(name)[begin - shard.offset[0] : end - shard.offset[0]]
        into.local[slice(begin - into.first, end - into.first), *inner].copy_(rows)


def _attempt(do: Callable[[], None] | None, ranks: Ranks) -> None:
    """Does a part of a save on this rank, if there is one, and learns whether all ranks could.

    Raises:
        OSError: this rank or another could not.
    """
    failure = None
    try:
        if do is not None:
            do()
    except OSError as error:
        failure = error
    if ranks.any(failure is not None):
        raise failure or OSError(
            "checkpoint: another rank could not write its part; its own message says why"
        )


def _write(folder: Path, tensors: Mapping[str, Tensor | Rows], ranks: Ranks) -> None:
    """Writes what this rank has to write of one folder, down to the disk."""
    mine = {name: t for name, t in tensors.items() if isinstance(t, Rows) or ranks.is_first}
    rows = {name: t if isinstance(t, Rows) else whole(t) for name, t in mine.items()}
    rows = {name: block for name, block in rows.items() if block.local.numel() or ranks.is_first}
    if not rows:
        return
    folder.mkdir(exist_ok=True)
    file = folder / f"model-{ranks.rank + 1:05}-of-{ranks.world_size:05}.safetensors"
    metadata = {"format": "pt"}
    if ranks.world_size > 1:
        offsets = {name: {"saved_offsets": block.offsets} for name, block in rows.items()}
        metadata |= {"DCP_VERSION": "1.0", OFFSETS: json.dumps(offsets)}
    contiguous = {name: block.local.detach().contiguous() for name, block in rows.items()}
    try:
        save_file(contiguous, file, metadata=metadata)
    except SafetensorError as failure:  # its own type for a full disk, too
        raise OSError(f"checkpoint: {file} could not be written: {failure}") from failure
    # safetensors makes its files 0600; a checkpoint follows the umask like everything else
    file.chmod(folder.stat().st_mode & 0o666)
    flush(file)


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
