"""The gated norm of CUDA tensors as an operator that the compiler takes whole, with gradients.

An operator is opaque to the compiler: slices of a projection come in as they lie, and besides the
inputs only the inverse root mean squares are saved for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("gristmill::gated_norm", mutates_args=())
def gated_norm(
    x: Tensor, gate: Tensor, weight: Tensor, groups: int, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Normalizes x * silu(gate) group by group, in FP32; see `norm.GatedGroupNorm`.

    Args:
        x: (..., size), FP32, BF16 or FP16; a slice of wider rows is read in place.
        gate: like x.
        weight: (size,).
        groups: that size divides into.
        epsilon: added to the mean square.

    Returns:
        Like x, contiguous; and the inverse root mean squares, (..., groups), FP32.
    """
    from training_hook.kernels import norm_kernels  # Triton is there only where there is a GPU

    return norm_kernels.forward(x, gate, weight, groups, epsilon)


@gated_norm.register_fake
def _(
    x: Tensor, gate: Tensor, weight: Tensor, groups: int, epsilon: float
) -> tuple[Tensor, Tensor]:
    inverse = x.new_empty(*x.shape[:-1], groups, dtype=torch.float32)
    return x.new_empty(x.shape), inverse


@torch.library.custom_op("gristmill::gated_norm_backward", mutates_args=())
def gated_norm_backward(
    dy: Tensor, x: Tensor, gate: Tensor, weight: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of x, gate and weight from that of y, contiguous."""
    from training_hook.kernels import norm_kernels

    return norm_kernels.backward(dy, x, gate, weight, inverse)


@gated_norm_backward.register_fake
def _(
    dy: Tensor, x: Tensor, gate: Tensor, weight: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), gate.new_empty(x.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, gate, weight, _, _ = inputs
    ctx.save_for_backward(x, gate, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *gated_norm_backward(dy, *ctx.saved_tensors), None, None


gated_norm.register_autograd(_gradients, setup_context=_save)
