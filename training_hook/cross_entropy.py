"""Cross-entropy of a linear head without the logits of a whole batch.

At 16k tokens and a vocabulary of 131k the logits are 8 GiB in FP32. Rows go through the head a few
thousand at a time, and their gradient is formed while the logits are there: one product less than
recomputing them later, for a gradient of the head that is held from forward to backward.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor, rows: int
) -> Tensor:
    """Returns the sum of negative log likelihoods of the tokens that count, in nats, FP32.

    Args:
        hidden: (tokens, hidden_size); products run in its dtype.
        weight: of the head, (vocab_size, hidden_size).
        targets: ids of the tokens to predict, all of them in the vocabulary, (tokens,).
        mask: true where a token counts, (tokens,).
        rows: tokens whose logits exist at a time.
    """
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(hidden, weight, targets, mask, rows)
    cast = weight.to(hidden.dtype)
    losses = hidden.new_zeros((), dtype=_exact(weight))
    for h, t, m in zip(hidden.split(rows), targets.split(rows), mask.split(rows), strict=True):
        logits = (h @ cast.T).to(losses.dtype)
        losses += F.cross_entropy(logits, t.long(), reduction="none").where(m, 0).sum()
    return losses


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor, rows: int
    ) -> Tensor:
        cast = weight.to(hidden.dtype)
        loss = hidden.new_zeros((), dtype=_exact(weight))
        by_hidden = torch.empty_like(hidden)
        by_weight = torch.zeros_like(weight, dtype=_exact(weight))
        chunk = _compiled_chunk() if hidden.is_cuda else _chunk
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = hidden[part] @ cast.T
            chunk_loss, by_logits = chunk(logits, targets[part], mask[part], loss.dtype)
            loss += chunk_loss
            # the mask goes on the narrow sides of the products, not on the logits
            by_hidden[part] = (by_logits @ cast) * mask[part, None]
            _add_product(by_weight, by_logits, hidden[part] * mask[part, None])
        ctx.save_for_backward(by_hidden, by_weight.to(weight.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (scale,), (by_hidden, by_weight) = grad_outputs, ctx.saved_tensors
        scaled = by_hidden * scale.to(by_hidden.dtype), by_weight * scale.to(by_weight.dtype)
        return *scaled, None, None, None


def _chunk(
    logits: Tensor, targets: Tensor, mask: Tensor, exact: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Returns the loss over rows that count, and the gradient by the logits of every row."""
    log_likelihoods = F.log_softmax(logits.to(exact), dim=-1)
    index = targets[:, None].long()
    loss = -log_likelihoods.gather(1, index)[:, 0].where(mask, 0).sum()
    by_logits = log_likelihoods.exp_().scatter_add_(
        1, index, torch.full_like(index, -1, dtype=exact)
    )
    return loss, by_logits.to(logits.dtype)


@cache
def _compiled_chunk() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(_chunk, dynamic=False)  # importing the compiler takes seconds


def _add_product(total: Tensor, by_logits: Tensor, hidden: Tensor) -> None:
    """Adds by_logits^T hidden in FP32: sums of a head in BF16 have let long runs diverge."""
    if hidden.dtype == total.dtype:
        total.addmm_(by_logits.T, hidden)
    elif hidden.is_cuda:
        total += torch.mm(by_logits.T, hidden, out_dtype=total.dtype)
    else:
        total += by_logits.T @ hidden


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
