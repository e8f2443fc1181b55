"""transformers' own NemotronH beside our model, at the longest sequence that its fallback fits.

Without mamba-ssm and causal-conv1d, which need a compiler to install, transformers scans in plain
PyTorch and forms products that we never write. It knows no packed documents, so both get rows as
one document. It runs as its users run it: FP32 weights under autocast to BF16, not compiled. One of
its steps takes 16 s on an H200, three of them differed by 0.04%: one is timed.
"""

import gc
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.training_steps import TimedTraining, drawn_model, fresh_model
from mixtures.special_tokens import SpecialIds
from pipelines.progress import say
from training_hook.batches import HostBatch
from training_hook.device import energy_counter
from training_hook.export import served_config
from training_hook.model import Loss
from training_hook.run import PretrainRun

LENGTHS = (8192, 4096, 2048, 1024, 512)
MICRO_BATCHES = 8
_STEPS = {"theirs": 1, "ours": 3}
_WARM_STEPS = 1


class Nemotron(nn.Module):
    """transformers' model with what `train_step` calls, and our weights."""

    def __init__(self, run: PretrainRun, device: torch.device) -> None:
        super().__init__()
        from transformers import NemotronHConfig, NemotronHForCausalLM

        self.precision = getattr(torch, run.precision)
        ours = drawn_model(run, device)
        settings = {**served_config(run.model, torch.float32, SpecialIds()), "use_cache": False}
        for name in ("architectures", "model_type", "num_hidden_layers", "torch_dtype"):
            settings.pop(name, None)
        with device:
            self.model = NemotronHForCausalLM(NemotronHConfig(**settings))
        self.model.float()
        prefix = self.model.base_model_prefix
        weights = {
            name.replace("backbone.", f"{prefix}.", 1): value
            for name, value in ours.state_dict().items()
        }
        self.model.load_state_dict(weights, strict=True)
        self.model.train()

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        loss_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        z_loss: float = 0.0,
    ) -> Loss:
        """Returns the loss as `HybridModel.loss`; documents see one another, and no z-loss."""
        mask = torch.ones_like(targets, dtype=torch.bool) if loss_mask is None else loss_mask
        with torch.autocast(tokens.device.type, self.precision, self.precision.itemsize == 2):
            logits = self.model(input_ids=tokens, use_cache=False).logits
        nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        nats = nats.unflatten(0, targets.shape) * mask
        return Loss(nats.sum(), mask.sum(), nats.detach().sum(1))

    def amax_histories(self) -> dict[str, Any]:
        """Returns no histories."""
        return {}

    def held_weights(self, adds: bool) -> Any:
        """Holds nothing, and nothing adds."""
        return nullcontext()


class OneDocument(TimedTraining):
    """Steps on rows that are one document each."""

    def prepared(self, batch: HostBatch, length: int) -> HostBatch:
        batch = super().prepared(batch, length)
        boundaries = torch.full_like(batch.boundaries, length + 1)
        boundaries[:, 0] = 0
        return replace(batch, boundaries=boundaries)


def shape_of(run: PretrainRun, length: int, micro_batches: int) -> PretrainRun:
    """Returns a run of micro batches of one row of a length."""
    return replace(run, sequence_length=length, micro_batch_size=1, batch_size=micro_batches)


def release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Says whether an allocation failed, PyTorch's or one of a library's own."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


def timed(
    run: PretrainRun, mixture: Path, device: torch.device, make_model: Any, steps: int
) -> dict[str, Any]:
    """Builds, warms and times a model."""
    training = OneDocument(run, mixture, device, make_model)
    training.warm(run, _WARM_STEPS)
    with energy_counter(device) as joules:
        return training.measure(run, steps, joules, profile=False)


def measure(run: PretrainRun, mixture: Path, device: torch.device, tiny: bool) -> dict[str, Any]:
    """Finds the longest sequence, times theirs and ours at it and compares the losses.

    Raises:
        ValueError: no length fits, or the first losses are not the same.
    """
    record: dict[str, Any] = {"what": run.name, "tried": {}}
    micro_batches = 1 if tiny else MICRO_BATCHES
    for length in (64,) if tiny else LENGTHS:
        shape = shape_of(run, length, micro_batches)
        try:
            theirs = timed(shape, mixture, device, Nemotron, _STEPS["theirs"])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            record["tried"][length] = str(error).partition(". ")[0]
            say(f"{run.name}: {length} tokens do not fit")
            continue
        finally:
            release(device)
        record["tried"][length] = "fits"
        named = replace(shape, name="ours at its shape")
        ours = timed(named, mixture, device, fresh_model, _STEPS["ours"])
        release(device)
        first = theirs["losses"][0], ours["losses"][0]
        if abs(first[0] / first[1] - 1) > 0.005:
            raise ValueError(f"peer_nemotron: the first losses differ: {first}")
        return {
            **record,
            "times_faster": round(ours["tokens_per_second"] / theirs["tokens_per_second"], 2),
            "micro_batches": {micro_batches: theirs},
            "ours": ours,
        }
    raise ValueError(f"peer_nemotron: no length fits: {record['tried']}")
