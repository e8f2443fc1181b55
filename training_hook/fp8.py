"""Linear layers whose three products (forward, by input, by weight) run in FP8.

Two published recipes. "fp8_tensor": one scale for a tensor, taken from the tensor as it is (current
scaling), E4M3 for inputs and weights and E5M2, which reaches further down, for gradients. A product
is 1.6 to 2 times as fast as in BF16 on an H100. "fp8_block": E4M3 everywhere, a scale for each 128
values along the inner dimension of inputs and gradients and for each 128 x 128 of a weight, so that
an outlier coarsens only its block; 1.5 to 1.65 times as fast, 1.1 to 1.3 by weight.

Inputs, outputs and gradients between layers stay in the model's dtype; gradients of weights come
out of the product in the weight's own FP32. Weights are cast from their FP32 masters at each call.
What is kept for the backward pass are the transposed casts, half of what BF16 keeps. The casts eat
most of what the products gain: on an H100, one micro batch of 12k tokens a step, a model of 1.05 B
does 1.06 times BF16's tokens/s by tensor and 1.03 by block, one of 154 M 0.95 and 0.97; the last of
300 losses differ from BF16's by 0.04% at most (benchmarks/results/fp8_gpu.json).

Sources: "fp8_tensor" Nemotron-H, arXiv:2504.03624; "fp8_block" Nemotron Nano 2, arXiv:2508.14444,
after DeepSeek-V3, arXiv:2412.19437, section 3.3. Accumulation, fast in the forward pass of
"fp8_tensor" only, as in TransformerEngine.
"""

from typing import Any

import torch
from torch import Tensor

from training_hook.fp8_emulation import E4M3, E5M2
from training_hook.fp8_operators import (
    cast_blocks,
    cast_squares,
    cast_tensor,
    multiply_blocks,
    multiply_tensor,
)
from training_hook.linear_recipe import MULTIPLES


def fp8_linear(x: Tensor, weight: Tensor, recipe: str) -> Tensor:
    """Returns x weight^T, computed in FP8, and differentiable in FP8.

    Args:
        x: (tokens, in_features).
        weight: (out_features, in_features).
        recipe: "fp8_tensor" or "fp8_block".

    Returns:
        (tokens, out_features) in the dtype of x. An infinity or NaN in an operand makes NaN of
        everything that shares a scale with it.

    Raises:
        ValueError: the number of tokens, which the gradient by the weight adds over, does not
            divide into the recipe's blocks.
    """
    multiple = MULTIPLES[recipe]
    if x.shape[0] % multiple:
        raise ValueError(
            f"{recipe}: got {x.shape[0]} tokens at once; wanted a multiple of {multiple}. "
            "Choose micro_batch_size * sequence_length so"
        )
    return _FUNCTIONS[recipe].apply(x, weight)  # pyright: ignore[reportReturnType]


class _TensorScaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x_cast, x_turned, x_scale = cast_tensor(x, _largest(x), E4M3)
        w_cast, w_turned, w_scale = cast_tensor(weight, _largest(weight), E4M3)
        ctx.save_for_backward(x_turned, x_scale, w_turned, w_scale)
        ctx.dtypes = x.dtype, weight.dtype
        return multiply_tensor(x_cast, w_cast, x_scale, w_scale, x.dtype, True)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dy,), (x_turned, x_scale, w_turned, w_scale) = grad_outputs, ctx.saved_tensors
        x_dtype, w_dtype = ctx.dtypes
        cast, turned, scale = cast_tensor(dy, _largest(dy), E5M2)
        return (
            multiply_tensor(cast, w_turned, scale, w_scale, x_dtype, False),
            multiply_tensor(turned, x_turned, scale, x_scale, w_dtype, False),
        )


class _BlockScaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x_cast, x_scales, x_turned, x_turned_scales = cast_blocks(x)
        w_cast, w_scales, w_turned, w_turned_scales = cast_squares(weight)
        ctx.save_for_backward(x_turned, x_turned_scales, w_turned, w_turned_scales)
        ctx.dtypes = x.dtype, weight.dtype
        return multiply_blocks(x_cast, w_cast, x_scales, w_scales, True, x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dy,), (x_turned, x_scales, w_turned, w_scales) = grad_outputs, ctx.saved_tensors
        x_dtype, w_dtype = ctx.dtypes
        cast, scales, turned, turned_scales = cast_blocks(dy)
        return (
            multiply_blocks(cast, w_turned, scales, w_scales, True, x_dtype),
            multiply_blocks(turned, x_turned, turned_scales, x_scales, False, w_dtype),
        )


def _largest(x: Tensor) -> Tensor:
    # plain operators: compiled, this joins what makes x, and x is not read for it
    return x.detach().abs().amax().float()


_FUNCTIONS = {"fp8_tensor": _TensorScaled, "fp8_block": _BlockScaled}
