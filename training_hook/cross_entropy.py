"""Cross-entropy of a linear head without the logits of a whole batch, with z-loss by choice.

At 16k tokens and a vocabulary of 131k the logits are 8 GiB in FP32. Rows go through the head a few
thousand at a time, and their gradient is formed while the logits are there, in their place: one
product less than recomputing them later, for a gradient of the head that is held from forward to
backward.

The z-loss adds z_loss * log(Z)^2 for each token, Z the sum of the exponentials of its logits, which
keeps logits from drifting where the softmax does not see it (PaLM, arXiv:2204.02311, section 5,
has 1e-4).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from training_hook.products import multiply

LOGIT_ROWS = 4096
"""Tokens whose logits are there at a time on a GPU, which they fill; more are not faster."""


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
        _likelihoods((h @ cast.T).to(exact), t, m)[:2]
        for h, t, m in zip(hidden.split(rows), targets.split(rows), mask.split(rows), strict=True)
    ]
    nats, log_z = (torch.cat(values) for values in zip(*parts, strict=True))
    return _loss(nats, log_z, mask, z_loss), nats


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
        exact = _exact(weight)
        nats, log_z = (torch.empty_like(targets, dtype=exact) for _ in range(2))
        by_hidden = torch.empty_like(hidden)
        by_weight = torch.empty_like(weight, dtype=exact)
        run = differentiate
        if hidden.is_cuda and exact == torch.float32:
            from training_hook.kernels import cross_entropy_kernels  # Triton is only there

            run = cross_entropy_kernels.differentiate
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = hidden[part] @ cast.T
            nats[part], log_z[part] = run(logits, targets[part], mask[part], z_loss)
            torch.mm(logits, cast, out=by_hidden[part])
            # in FP32, because sums of a head in BF16 have let long runs diverge
            multiply(logits.T, hidden[part], by_weight, add=start > 0)
        ctx.save_for_backward(by_hidden, by_weight.to(weight.dtype))
        ctx.mark_non_differentiable(nats)
        return _loss(nats, log_z, mask, z_loss), nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale, *_ = grad_outputs
        # a product with a scalar on the device runs at a quarter of the memory's speed, this not
        multiply_all = torch._foreach_mul  # pyright: ignore[reportPrivateImportUsage]
        scaled = (multiply_all([t], scale.to(t.dtype))[0] for t in ctx.saved_tensors)
        return *scaled, *(None,) * 5


def differentiate(
    logits: Tensor, targets: Tensor, mask: Tensor, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Returns nats and log Z of each row, and writes the loss's gradient in place of the logits.

    This is what the kernel is held to, and what runs without one.
    """
    nats, log_z, log_likelihoods = _likelihoods(logits.to(_exact(logits)), targets, mask)
    by_logits = log_likelihoods.exp_()
    if z_loss:
        by_logits *= 1 + 2 * z_loss * log_z[:, None]
    index = targets[:, None].long()
    by_logits.scatter_add_(1, index, torch.full_like(index, -1, dtype=by_logits.dtype))
    logits.copy_(by_logits.masked_fill_(~mask[:, None], 0))
    return nats, log_z


def _likelihoods(logits: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the nats and log Z of each row, and the log likelihoods of all tokens in it."""
    log_likelihoods = F.log_softmax(logits, dim=-1)
    index = targets[:, None].long()
    chosen = log_likelihoods.gather(1, index)[:, 0]
    # log Z is a logit less its log likelihood
    return -chosen.where(mask, 0), logits.gather(1, index)[:, 0] - chosen, log_likelihoods


def _loss(nats: Tensor, log_z: Tensor, mask: Tensor, z_loss: float) -> Tensor:
    if not z_loss:
        return nats.sum()
    return nats.sum() + z_loss * log_z.square().where(mask, 0).sum()


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
