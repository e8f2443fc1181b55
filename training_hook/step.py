"""One optimizer step: a global batch through the model in micro batches, and the update.

The loss of a step is summed over all its micro batches and divided by the target tokens of the
global batch, known on the host before the first forward pass: neither the size of the micro batch
nor the number of ranks nor a mask that falls unevenly weighs a token differently.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from training_hook.batches import HostBatch, document_ids
from training_hook.guard import Guard
from training_hook.model import HybridModel
from training_hook.run import PretrainRun
from training_hook.shards import Shards


class StepResult(NamedTuple):
    """What a step gave: FP32 on the device, scalars but for the last."""

    loss: Tensor
    """Mean negative log likelihood of the target tokens of the global batch."""
    gradient_norm: Tensor
    """Before clipping."""
    skipped: Tensor
    """1 if the guard left the update out, else 0."""
    nats: Tensor
    """Summed negative log likelihood of each row's target tokens, of all ranks, (batch,)."""


def train_step(
    model: HybridModel,
    optimizer: torch.optim.Optimizer,
    guard: Guard,
    batch: HostBatch,
    run: PretrainRun,
    shards: Shards | None = None,
) -> StepResult:
    """Does one optimizer step of a run, whose update the guard may leave out.

    Nothing here waits for the device, so the next step is queued while this one runs.

    Args:
        model: in training on this device.
        optimizer: of this rank's parameters.
        guard: judges the step; it has seen the same on all ranks.
        batch: this rank's rows; what it says of targets and samples is of the global batch.
        run: says how large a micro batch is, and where gradients are clipped.
        shards: of the model, if it may have several ranks.

    Raises:
        ValueError: the batch has no target tokens.
    """
    if batch.num_targets == 0:
        raise ValueError(
            f"pretrain: samples {batch.sample_indices.tolist()} have no target tokens. If all of "
            f"their documents were masked after they were mixed, mix again and go on with that"
        )
    shards = shards or Shards(model)
    device = next(model.parameters()).device
    sequence_length = batch.tokens.shape[1] - 1
    nats = []
    histories = list(model.amax_histories().values())
    starts = range(0, len(batch.tokens), run.micro_batch_size)
    with shards.step():
        for start in starts:
            shards.begin_micro_batch(last=start == starts[-1])
            rows = slice(start, start + run.micro_batch_size)
            tokens = batch.tokens[rows].to(device, non_blocking=True).long()
            boundaries = batch.boundaries[rows].to(device, non_blocking=True)
            mask = batch.loss_mask
            if mask is not None:
                mask = mask[rows].to(device, non_blocking=True)
            loss = model.loss(
                tokens[:, :-1].contiguous(),
                tokens[:, 1:].contiguous(),
                mask,
                document_ids(boundaries, sequence_length),
                run.z_loss,
            )
            # gradients are FP32 like the parameters, and add up in .grad
            (loss.total / batch.num_targets).backward()
            nats.append(loss.nats)
            for history in histories:
                history.record()
    parameters = shards.collect_gradients()
    norm = shards.gradient_norm(parameters)
    torch.nn.utils.clip_grads_with_norm_(parameters, run.clip_norm, norm, foreach=True)
    nats = shards.ranks.gather_rows(torch.cat(nats))
    loss = nats.sum() / batch.num_targets
    skipped = guard.judge(loss, norm)
    optimizer.found_inf = skipped  # pyright: ignore[reportAttributeAccessIssue] (of fused ones)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, norm, skipped, nats)
