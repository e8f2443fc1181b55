"""Cross-entropy of a linear head without the logits of a whole batch, with z-loss by choice.

At 16k tokens and a vocabulary of 131k the logits are 8 GiB in FP32. Rows go through the head a few
thousand at a time, and their gradient is formed while the logits are there: one product less than
recomputing them later, for a gradient of the head that is held from forward to backward.

The z-loss adds z_loss * log(Z)^2 for each token, Z the sum of the exponentials of its logits, which
keeps logits from drifting where the softmax does not see it (PaLM, arXiv:2204.02311, section 5,
has 1e-4).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    mask: Tensor,
    rows: int,
    z_loss: float = 0.0,
    cast: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the summed loss of the tokens that count, and the nats of each token.

    Args:
        hidden: (tokens, hidden_size); products run in its dtype.
        weight: of the head, (vocab_size, hidden_size).
        targets: ids of the tokens to predict, all of them in the vocabulary, (tokens,).
        mask: true where a token counts, (tokens,).
        rows: tokens whose logits exist at a time.
        z_loss: weight of the z-loss.
        cast: the weight in the dtype of `hidden`; made if not given.

    Returns:
        The sum of negative log likelihoods and z-losses, a scalar; and, not differentiable, the
        negative log likelihoods, 0 where a token does not count, (tokens,). Both FP32.
    """
    cast = weight.detach().to(hidden.dtype) if cast is None else cast
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(hidden, weight, targets, mask, rows, z_loss, cast)
    exact = _exact(weight)
    parts = [
        _chunk_losses((h @ cast.T).to(exact), t, m, z_loss)[:2]
        for h, t, m in zip(hidden.split(rows), targets.split(rows), mask.split(rows), strict=True)
    ]
    losses, nats = zip(*parts, strict=True)
    return torch.stack(losses).sum(), torch.cat(nats)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        mask: Tensor,
        rows: int,
        z_loss: float,
        cast: Tensor,
    ) -> tuple[Tensor, Tensor]:
        loss = hidden.new_zeros((), dtype=_exact(weight))
        nats = torch.empty_like(targets, dtype=loss.dtype)
        by_hidden = torch.empty_like(hidden)
        by_weight = torch.zeros_like(weight, dtype=loss.dtype)
        chunk = _compiled_chunk() if hidden.is_cuda else _chunk
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = hidden[part] @ cast.T
            chunk_loss, nats[part], by_logits = chunk(
                logits, targets[part], mask[part], loss.dtype, z_loss
            )
            loss += chunk_loss
            # the mask goes on the narrow sides of the products, not on the logits
            by_hidden[part] = (by_logits @ cast) * mask[part, None]
            _add_product(by_weight, by_logits, hidden[part] * mask[part, None])
        ctx.save_for_backward(by_hidden, by_weight.to(weight.dtype))
        ctx.mark_non_differentiable(nats)
        return loss, nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (scale, _), (by_hidden, by_weight) = grad_outputs, ctx.saved_tensors
        scaled = by_hidden * scale.to(by_hidden.dtype), by_weight * scale.to(by_weight.dtype)
        return *scaled, *(None,) * 5


def _chunk(
    logits: Tensor, targets: Tensor, mask: Tensor, exact: torch.dtype, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns loss and nats over rows that count, and the gradient by the logits of every row."""
    loss, nats, log_likelihoods, log_z = _chunk_losses(logits.to(exact), targets, mask, z_loss)
    by_logits = log_likelihoods.exp_()
    if log_z is not None:
        by_logits = by_logits * (1 + 2 * z_loss * log_z)
    index = targets[:, None].long()
    by_logits = by_logits.scatter_add_(1, index, torch.full_like(index, -1, dtype=exact))
    return loss, nats, by_logits.to(logits.dtype)


def _chunk_losses(
    logits: Tensor, targets: Tensor, mask: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Returns the loss, the nats and log likelihoods of each row, and log Z if there is z-loss."""
    log_likelihoods = F.log_softmax(logits, dim=-1)
    index = targets[:, None].long()
    nats = -log_likelihoods.gather(1, index)[:, 0].where(mask, 0)
    if not z_loss:
        return nats.sum(), nats, log_likelihoods, None
    # log Z is a logit less its log likelihood
    log_z = (logits - log_likelihoods).gather(1, index)
    loss = nats.sum() + z_loss * log_z[:, 0].square().where(mask, 0).sum()
    return loss, nats, log_likelihoods, log_z


@cache
def _compiled_chunk() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
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
