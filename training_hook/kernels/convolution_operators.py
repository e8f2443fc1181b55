"""The convolution of a CUDA tensor as an operator that the compiler takes whole, with gradients.

An operator is opaque to the compiler: a slice of a projection comes in as it lies, and nothing but
the input itself, which the projection keeps alive anyway, is saved for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor


def has_kernel(x: Tensor, kernel: int) -> bool:
    """Says whether the kernel can have an input: from 9 taps on it would run out of registers."""
    return x.is_cuda and x.dtype != torch.float64 and 2 <= kernel <= 8


@torch.library.custom_op("gristmill::convolve", mutates_args=())
def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    document_ids: Tensor | None,
    initial_state: Tensor | None,
) -> Tensor:
    """Filters a batch and applies SiLU; computed in FP32, see `convolution.plain_convolution`.

    Args:
        x: (batch, length, channels), FP32, BF16 or FP16; a slice of wider rows is read in place.
        weight: (channels, 1, kernel), kernel of 2 at least.
        bias: (channels,).
        document_ids: int, (batch, length), never falling along a row.
        initial_state: in the dtype of x, (batch, kernel - 1, channels).

    Returns:
        Like x, contiguous.
    """
    # Triton is there only where there is a GPU
    from training_hook.kernels import convolution_kernels

    return convolution_kernels.forward(x, weight, bias, document_ids, initial_state)


@convolve.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    document_ids: Tensor | None,
    initial_state: Tensor | None,
) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("gristmill::convolve_backward", mutates_args=())
def convolve_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    document_ids: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of x, weight, bias and initial state from that of y, contiguous.

    That of the initial state is empty if there is none.
    """
    from training_hook.kernels import convolution_backward_kernels

    return convolution_backward_kernels.backward(dy, x, weight, bias, document_ids, initial_state)


@convolve_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    document_ids: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    initial_shape = 0 if initial_state is None else initial_state.shape
    shapes = (x, x.shape), (weight, weight.shape), (bias, bias.shape), (x, initial_shape)
    dx, dweight, dbias, dinitial = (like.new_empty(shape) for like, shape in shapes)
    return dx, dweight, dbias, dinitial


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, document_ids, initial_state = ctx.saved_tensors
    dx, dweight, dbias, dinitial = convolve_backward(
        dy, x, weight, bias, document_ids, initial_state
    )
    return dx, dweight, dbias, None, None if initial_state is None else dinitial


convolve.register_autograd(_gradients, setup_context=_save)
