"""Linear layers whose three products (forward, by input, by weight) run in FP8.

Two published recipes. "fp8_tensor": one scale for a tensor, taken from the tensor as it is (current
scaling), E4M3 for inputs and weights and E5M2, which reaches further down, for gradients. A product
is 1.6 to 2 times as fast as in BF16 on an H100. "fp8_block": E4M3 everywhere, a scale for each 128
values along the inner dimension of inputs and gradients and for each 128 x 128 of a weight, so that
an outlier coarsens only its block; 1.5 to 1.65 times as fast, 1.1 to 1.3 by weight. Two variants:
"fp8_tensor_e4m3" has E4M3 for gradients, too, whose error of a product is 0.037 instead of 0.059.
"fp8_delayed" takes the scales of inputs and gradients from the largest values of the last 16 steps,
so that no pass looks for them; what has become larger since then is cut to the format's largest.

Inputs, outputs and gradients between layers stay in the model's dtype; gradients of weights come
out of the product in the weight's own FP32. A weight's cast is given: the training loop makes it
once a step for all micro batches (`linear`). What is kept for the backward pass are the transposed
casts, half of what BF16 keeps. With 8 micro batches of 16k tokens a step a model of 1.05 B does
109 k tokens/s by tensor on an H200 where BF16 does 93 k (benchmarks/results/bench_gpu.json); the
last of 300 losses of one of 154 M differ from BF16's by 0.04% at most (fp8_gpu.json).

Sources: "fp8_tensor" Nemotron-H, arXiv:2504.03624; "fp8_block" Nemotron Nano 2, arXiv:2508.14444,
after DeepSeek-V3, arXiv:2412.19437, section 3.3. Accumulation, fast in the forward pass of
"fp8_tensor" and "fp8_delayed" only, as in TransformerEngine; delayed scaling as its DelayedScaling,
but one entry of the history is a step, not a micro batch, and weights have their own scale.
"""

from typing import Any

import torch
from torch import Tensor

from training_hook.fp8_scaling import NOT_DELAYED, SCALINGS, Cast, Delayed
from training_hook.linear_recipe import MULTIPLES


def fp8_linear(
    x: Tensor, weight: Tensor, cast: Cast, recipe: str, delayed: Delayed = NOT_DELAYED
) -> Tensor:
    """Returns x weight^T, computed in FP8, and differentiable in FP8.

    Args:
        x: (tokens, in_features).
        weight: (out_features, in_features); nothing reads it, it receives the gradient.
        cast: the weight's, of the recipe.
        recipe: one of the FP8 recipes.
        delayed: for delayed scaling.

    Returns:
        (tokens, out_features) in the dtype of x. An infinity or NaN in an operand makes NaN of
        everything that shares a scale with it.

    Raises:
        ValueError: the number of tokens, which the gradient by the weight adds over, does not
            divide into the recipe's blocks.
    """
    check_tokens(x, recipe)
    return _Linear.apply(x, weight, recipe, *delayed, *cast)  # pyright: ignore[reportReturnType]


def cast_weight(weight: Tensor, recipe: str) -> Cast:
    """Returns the cast of a weight (out_features, in_features) that a recipe multiplies."""
    return SCALINGS[recipe].weight(weight.detach())


def check_tokens(x: Tensor, recipe: str) -> None:
    """Checks that the tokens of (tokens, in_features) divide into a recipe's blocks.

    Raises:
        ValueError: they do not.
    """
    multiple = MULTIPLES[recipe]
    if x.shape[0] % multiple:
        raise ValueError(
            f"{recipe}: got {x.shape[0]} tokens at once; wanted a multiple of {multiple}. "
            "Choose micro_batch_size * sequence_length so"
        )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        recipe: str,
        expected: Tensor | None,
        probe: Tensor | None,
        *cast: Tensor,
    ) -> Tensor:
        scaling, weight_cast = SCALINGS[recipe], Cast(*cast)
        of_x, of_dy = expect(expected)
        x_cast, seen = scaling.input(x, of_x)
        ctx.save_for_backward(*x_cast[2:], *weight_cast[2:], of_dy, None if probe is None else seen)
        ctx.recipe, ctx.dtypes = recipe, (x.dtype, weight.dtype)
        return scaling.output(x_cast, weight_cast, x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, x_scales, weight, weight_scales, of_dy, x_seen = ctx.saved_tensors
        scaling, (x_dtype, weight_dtype) = SCALINGS[ctx.recipe], ctx.dtypes
        cast, seen = scaling.gradient(grad_outputs[0], of_dy)
        by_input = scaling.by_input(cast, weight, weight_scales, x_dtype)
        by_weight = scaling.by_weight(cast, x, x_scales, weight_dtype)
        return by_input, by_weight, None, None, by_probe(x_seen, seen), *(None,) * 4


def expect(expected: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Returns what is expected of a product's input and of its gradient, scalars, or nothing."""
    return (None, None) if expected is None else (expected[0], expected[1])


def by_probe(x_seen: Tensor | None, dy_seen: Tensor | None) -> Tensor | None:
    """Returns the gradient of `Delayed.probe`, if there is one."""
    return None if x_seen is None or dy_seen is None else torch.stack([x_seen, dy_seen])
