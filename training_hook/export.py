"""Hugging Face folders: written so that transformers and vLLM load them without remote code.

`config.json` is ours, because what transformers saves drops hybrid_override_pattern, which vLLM and
older transformers read. Its time_step_min is 1e-12: transformers 5.15 and later clamp time steps to
it in prefill but not in decoding (with 0.001 the logits of the two differ by 1.4e-2), and a fresh
start there takes its logarithm, so it is not 0. `probe.json` holds what our own forward pass
says, and a server that loads the folder can be checked against that without the trainer.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from mixtures.special_tokens import SpecialIds
from pipelines.atomic import written_folder
from training_hook.config import HybridConfig
from training_hook.import_hf import (
    CONFIG,
    EMBEDDINGS,
    FIXED,
    HEAD,
    INDEX,
    INITIAL_TIME_STEP_MIN,
    ORIGIN,
    WEIGHTS,
    check_shapes,
)
from training_hook.model import HybridModel

SERVED_TIME_STEP_MIN = 1e-12

# What they expect to find besides; the forward pass does not depend on it.
SERVING = {
    "architectures": ["NemotronHForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "mamba_ssm_cache_dtype": "float32",
    "num_logits_to_keep": 1,
    "residual_in_fp32": False,
    "use_cache": True,
}
# Not for a server: it would take them for positions that the architecture does not have.
POSITIONS = ("position_embedding_type", "rope_theta")
# Kept in FP32 in a BF16 folder: decays are exponentials of exponentials, and there are few.
EXACT = ("A_log", "D", "dt_bias")


class HuggingFaceVocabulary(Protocol):
    """A vocabulary that can write the tokenizer files of a Hugging Face folder."""

    fingerprint: str
    special_ids: SpecialIds

    def write_hf(self, out: Path) -> None:
        """Writes tokenizer.json and what belongs to it."""
        ...


def export(
    weights: HybridModel | Mapping[str, Tensor],
    config: HybridConfig,
    vocabulary: HuggingFaceVocabulary | None,
    out: Path,
    probe_prompts: Sequence[Sequence[int]],
    *,
    probe_tokens: int = 16,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = 5_000_000_000,
    origin: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a Hugging Face folder aside and renames it; an older export there is replaced.

    Args:
        weights: a model, or its tensors by name.
        config: the shape of the model.
        vocabulary: writes the tokenizer files; None for a model of ids only.
        out: the folder.
        probe_prompts: token ids, one non-empty sequence a prompt, for probe.json.
        probe_tokens: greedy tokens to record after each prompt.
        dtype: of the weights in the folder, except A_log, D and dt_bias. BF16 rounds each to 8
            bits, a relative error of up to 2^-8: what is loaded again differs from the checkpoint
            by that much.
        max_shard_bytes: tensors are spread over files of at most this size, or of one tensor.
        origin: of the weights, JSON-safe; gristmill.json holds it beside the vocabulary's
            fingerprint, for a run that starts from the folder.

    Raises:
        ValueError: the tensors do not fit the configuration, a prompt is empty or out of the
            vocabulary, the model has position embeddings, or `out` holds something that is no
            export.
    """
    if config.position_embedding_type != "nope":
        raise ValueError(
            f"export: position_embedding_type is {config.position_embedding_type!r}; a nemotron_h "
            "has none, so a server would compute another model. Train with 'nope'"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not _is_export(out):
        raise ValueError(
            f"export: {out} holds something else; choose another folder or delete that one"
        )
    for prompt in probe_prompts:
        if not prompt or not all(0 <= token < config.vocab_size for token in prompt):
            raise ValueError(
                f"export: a probe prompt is {list(prompt)}; wanted one or more ids below "
                f"vocab_size {config.vocab_size}"
            )
    special = SpecialIds() if vocabulary is None else vocabulary.special_ids
    given = weights.state_dict() if isinstance(weights, HybridModel) else weights
    tensors = _served(given, config, dtype)
    with written_folder(out) as folder:
        _write_weights(folder, tensors, max_shard_bytes)
        _write_json(folder / CONFIG, served_config(config, dtype, special))
        _write_json(
            folder / "generation_config.json",
            {
                "bos_token_id": special.bos,
                "eos_token_id": list(special.stops),
                "pad_token_id": special.pad,
            },
        )
        if vocabulary is not None:
            vocabulary.write_hf(folder)
            made_of = {"vocabulary": vocabulary.fingerprint, **(origin or {})}
            _write_json(folder / ORIGIN, made_of)
        probes = _probes(tensors, config, probe_prompts, probe_tokens)
        _write_json(folder / "probe.json", {"dtype": _name(dtype), "probes": probes})
    return out


def served_config(config: HybridConfig, dtype: torch.dtype, special: SpecialIds) -> dict[str, Any]:
    """Returns the contents of config.json."""
    shape = {name: value for name, value in asdict(config).items() if name not in POSITIONS}
    return {
        **FIXED,
        **SERVING,
        **shape,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "pad_token_id": special.pad,
        "num_hidden_layers": config.num_hidden_layers,
        "tie_word_embeddings": False,  # both tables are written: transformers 5.20 ties nothing
        "time_step_min": SERVED_TIME_STEP_MIN,
        INITIAL_TIME_STEP_MIN: config.time_step_min,
        "torch_dtype": _name(dtype),
    }


def _served(
    given: Mapping[str, Tensor], config: HybridConfig, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Returns the tensors of the folder: checked, on the CPU, in their dtype, head included."""
    tensors = dict(given)
    if config.tie_word_embeddings and EMBEDDINGS in tensors:
        tensors[HEAD] = tensors[EMBEDDINGS].clone()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_shapes(shapes, config, "export")
    return {
        name: tensor.detach()
        .to("cpu", torch.float32 if name.endswith(EXACT) else dtype)
        .contiguous()
        for name, tensor in tensors.items()
    }


def _write_weights(folder: Path, tensors: Mapping[str, Tensor], max_shard_bytes: int) -> None:
    shards = list(_shards(tensors, max_shard_bytes))
    names = [WEIGHTS]
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        index = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        size = sum(tensor.nbytes for tensor in tensors.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": index})
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})


def _shards(tensors: Mapping[str, Tensor], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


@torch.no_grad()
def _probes(
    tensors: Mapping[str, Tensor],
    config: HybridConfig,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
) -> list[dict[str, Any]]:
    """Decodes greedily in FP32 from the weights as written.

    A margin is the log probability by which a token leads the runner-up: where it is smaller than
    the rounding of the server's precision, another token is no error.
    """
    model = HybridModel(replace(config, tie_word_embeddings=False))
    model.load_state_dict(tensors)
    probes = []
    for prompt in prompts:
        logits, state = model(torch.tensor([prompt]), None, model.decode_state(1))
        ids, likelihoods, margins = [], [], []
        for _ in range(new_tokens):
            best = logits[0, -1].log_softmax(-1).topk(2)
            ids.append(int(best.indices[0]))
            likelihoods.append(float(best.values[0]))
            margins.append(float(best.values[0] - best.values[1]))
            logits, state = model(best.indices[:1, None], None, state)
        probes.append(
            {
                "prompt_ids": list(prompt),
                "greedy_ids": ids,
                "log_probabilities": likelihoods,
                "margins": margins,
            }
        )
    return probes


def _is_export(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / "probe.json").is_file()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _write_json(path: Path, contents: dict[str, Any]) -> None:
    path.write_text(json.dumps(contents, indent=2, sort_keys=True) + "\n")
