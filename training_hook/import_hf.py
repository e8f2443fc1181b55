"""Hugging Face folders read back: configuration, tensors by name, and whether the files are whole.

Only JSON and safetensors are read, so nothing in a folder is executed. What is wrong with a folder
shows in its configuration and in the headers of its files, which say where every tensor lies and
how long the file has to be: a few kilobytes, read before anything is built.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from training_hook.config import HybridConfig
from training_hook.model import tensor_shapes
from training_hook.rows import Rows

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ORIGIN = "gristmill.json"
"""What export says of a folder of ours: vocabulary, run, step and mixture."""
HEAD, EMBEDDINGS = "lm_head.weight", "backbone.embeddings.weight"

INITIAL_TIME_STEP_MIN = "initial_time_step_min"  # our key in config.json, read by no one else

# What the architecture fixes, under the names that transformers and vLLM ask for.
FIXED = {
    "model_type": "nemotron_h",
    "attention_bias": False,
    "mamba_hidden_act": "silu",
    "mamba_proj_bias": False,
    "mlp_bias": False,
    "mlp_hidden_act": "relu2",
    "use_bias": False,
    "use_conv_bias": True,
}
_OLDER_NAMES = {"head_dim": "attention_head_dim"}  # Nemotron-H as first released


@dataclass(frozen=True)
class StoredModel:
    """A folder whose configuration and files were checked."""

    path: Path
    config: HybridConfig
    """Untied where we exported it, see `training_hook.export.served_config`."""
    files: dict[str, Path]
    """The file of each tensor, by name."""
    dtypes: tuple[str, ...]
    """In which the tensors are stored, as safetensors writes them (BF16, F32), ascending."""

    def load_into(self, parameters: Mapping[str, Rows]) -> None:
        """Copies tensors into (rows of) parameters of the same names, cast to their dtype.

        One tensor at a time is in memory beside them. A head of the folder that `parameters` has
        not, because it is tied there, is left out.
        """
        for file in sorted(set(self.files.values())):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (it is no dict)
                    if name in parameters:
                        rows = parameters[name]
                        stored = opened.get_slice(name)[rows.first : rows.first + len(rows.local)]
                        rows.local.copy_(stored)

    def is_tied(self) -> bool:
        """Says whether head and embeddings are the same table, value for value."""
        tables = []
        for name in (HEAD, EMBEDDINGS):
            with safe_open(self.files[name], framework="pt") as opened:
                tables.append(opened.get_tensor(name))
        return torch.equal(*tables)


def is_hf_folder(folder: Path) -> bool:
    """Says whether a folder has what every Hugging Face model has."""
    return (folder / CONFIG).is_file()


def read_config(folder: Path) -> HybridConfig:
    """Reads the shape of a model.

    Raises:
        ValueError: there is no configuration, or it is of another architecture.
    """
    if not is_hf_folder(folder):
        raise ValueError(f"import_hf: {folder} has no {CONFIG}; is it a Hugging Face folder?")
    written = json.loads((folder / CONFIG).read_text("utf-8"))
    for key, wanted in FIXED.items():
        if written.get(key, wanted) != wanted:
            raise ValueError(
                f"import_hf: {folder}/{CONFIG} has {key} {written[key]!r}; "
                f"this model has {wanted!r} and no other"
            )
    if "hybrid_override_pattern" not in written:
        raise ValueError(
            f"import_hf: {folder}/{CONFIG} has no hybrid_override_pattern; transformers drops "
            f"it on saving, take it from the folder that was loaded there"
        )
    known = {
        field.name: written[name]
        for field in fields(HybridConfig)
        for name in (_OLDER_NAMES.get(field.name), field.name)
        if name in written
    }
    known["time_step_min"] = written.get(INITIAL_TIME_STEP_MIN, HybridConfig.time_step_min)
    try:
        return HybridConfig(**known)
    except TypeError as error:
        raise ValueError(f"import_hf: {folder}/{CONFIG} is incomplete: {error}") from None


def open_hf(folder: Path, config: HybridConfig) -> StoredModel:
    """Finds the tensors of a folder by the headers of its files, and checks that all are whole.

    Raises:
        ValueError: a file is missing or cut off, or tensors are missing, unknown or of another
            shape.
    """
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: set[str] = set()
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (it is no dict)
                    files[name] = path
                    shapes[name] = tuple(opened.get_slice(name).get_shape())
                    dtypes.add(opened.get_slice(name).get_dtype())
        except SafetensorError as error:
            raise ValueError(
                f"import_hf: {path} ({path.stat().st_size:,} bytes) is cut off or no safetensors "
                f"file: {error}. Copy or download it again"
            ) from error
    check_shapes(shapes, config, f"import_hf: {folder}")
    return StoredModel(folder, config, files, tuple(sorted(dtypes)))


def import_hf(folder: Path) -> tuple[HybridConfig, dict[str, Tensor]]:
    """Reads a folder of the nemotron_h family, from safetensors and JSON only.

    Returns:
        The shape (untied, see `training_hook.export.served_config`) and the tensors by name, in
        the dtypes stored.

    Raises:
        ValueError: the folder is of another architecture, a file is missing or cut off, or tensors
            are missing, unknown or of another shape.
    """
    stored = open_hf(folder, read_config(folder))
    tensors: dict[str, Tensor] = {}
    for path in sorted(set(stored.files.values())):
        with safe_open(path, framework="pt") as file:
            tensors.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    return stored.config, tensors


def check_shapes(shapes: Mapping[str, tuple[int, ...]], config: HybridConfig, who: str) -> None:
    """Checks that tensors are those of a configuration, head included.

    Raises:
        ValueError: they are not.
    """
    wanted = tensor_shapes(config)
    wanted[HEAD] = wanted[EMBEDDINGS]
    missing, unknown = (
        sorted(wanted.keys() - shapes.keys()),
        sorted(shapes.keys() - wanted.keys()),
    )
    if missing or unknown:
        raise ValueError(
            f"{who}: {len(missing)} tensors are missing (first: {missing[:3]}) and {len(unknown)} "
            f"are unknown (first: {unknown[:3]}); the configuration is of another model"
        )
    for name, shape in wanted.items():
        if tuple(shapes[name]) != shape:
            raise ValueError(
                f"{who}: {name} has shape {tuple(shapes[name])}; the configuration wants {shape}"
            )


def read_origin(folder: Path) -> dict[str, Any] | None:
    """Returns what our export said of a folder; None if it is not ours."""
    path = folder / ORIGIN
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def _weight_files(folder: Path) -> list[Path]:
    """Returns the files of weights.

    Raises:
        ValueError: there are none, or the index names one that is not there.
    """
    if not (folder / INDEX).is_file():
        if (folder / WEIGHTS).is_file():
            return [folder / WEIGHTS]
        raise ValueError(
            f"import_hf: {folder} has neither {WEIGHTS} nor {INDEX}; pickled weights are not "
            f"read, convert them to safetensors"
        )
    index = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
    names = sorted(set(index.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"import_hf: {folder} lacks {len(missing)} of the {len(names)} files that {INDEX} "
            f"names (first: {missing[0]}); copy or download the missing ones"
        )
    return [folder / name for name in names]
