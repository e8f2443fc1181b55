"""The MLP down(relu(up(x))^2) in FP8, with the squared ReLU inside the casts of its neighbours.

Left to the compiler, relu(up)^2 is written in BF16 for the cast to read, and so is its gradient.
Here the cast reads `up` and squares on the way. By tensor that is 6 bytes a value instead of 8 in
the forward pass (`up` is read once more for its largest value) and 10 as before in the backward
pass, where the largest value needs both operands; by block, 4 instead of 8 and 6 instead of 10. For
the backward pass it keeps `up` and the transposed casts of x and of the square, and no square in
BF16.

The square is rounded to the dtype of `up` before it is cast, as if it had been written: results
equal those of two `fp8_linear` and plain operators between them bit for bit.
"""

from typing import Any

import torch
from torch import Tensor

from training_hook.fp8 import by_probe, check_tokens, expect
from training_hook.fp8_scaling import NOT_DELAYED, SCALINGS, Cast, Delayed


def fp8_squared_relu_mlp(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    up_cast: Cast,
    down_cast: Cast,
    recipe: str,
    up_delayed: Delayed = NOT_DELAYED,
    down_delayed: Delayed = NOT_DELAYED,
) -> Tensor:
    """Returns relu(x up^T)^2 down^T, computed in FP8, and differentiable in FP8.

    Args:
        x: (tokens, features).
        up: (inner, features); nothing reads it, it receives the gradient.
        down: (out_features, inner), likewise.
        up_cast: the cast of `up`, of the recipe.
        down_cast: the cast of `down`.
        recipe: one of the FP8 recipes.
        up_delayed: for delayed scaling, of the product with `up`.
        down_delayed: of the product with `down`.

    Returns:
        (tokens, out_features) in the dtype of x.

    Raises:
        ValueError: the number of tokens does not divide into the recipe's blocks.
    """
    check_tokens(x, recipe)
    flat = (*up_delayed, *down_delayed, *up_cast, *down_cast)
    return _MLP.apply(x, up, down, recipe, *flat)  # pyright: ignore[reportReturnType]


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        up: Tensor,
        down: Tensor,
        recipe: str,
        up_expected: Tensor | None,
        up_probe: Tensor | None,
        down_expected: Tensor | None,
        down_probe: Tensor | None,
        *casts: Tensor,
    ) -> Tensor:
        scaling, up_cast, down_cast = SCALINGS[recipe], Cast(*casts[:4]), Cast(*casts[4:])
        (of_x, of_raised), (of_inner, of_dy) = expect(up_expected), expect(down_expected)
        x_cast, x_seen = scaling.input(x, of_x)
        raised = scaling.output(x_cast, up_cast, x.dtype)
        inner_cast, inner_seen = scaling.squared_relu(raised, of_inner)
        seen = (None, None) if up_probe is None else (x_seen, inner_seen)
        turned = (*x_cast[2:], *inner_cast[2:], *up_cast[2:], *down_cast[2:])
        ctx.save_for_backward(raised, *turned, of_raised, of_dy, *seen)
        ctx.recipe, ctx.dtypes = recipe, (x.dtype, up.dtype, down.dtype)
        return scaling.output(inner_cast, down_cast, x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raised, x, x_scales, inner, inner_scales, up, up_scales, *rest = ctx.saved_tensors
        down, down_scales, of_raised, of_dy, x_seen, inner_seen = rest
        scaling, (x_dtype, up_dtype, down_dtype) = SCALINGS[ctx.recipe], ctx.dtypes
        cast, dy_seen = scaling.gradient(grad_outputs[0], of_dy)
        by_inner = scaling.by_input(cast, down, down_scales, x_dtype)
        by_down = scaling.by_weight(cast, inner, inner_scales, down_dtype)
        cast, raised_seen = scaling.squared_relu_gradient(by_inner, raised, of_raised)
        by_x = scaling.by_input(cast, up, up_scales, x_dtype)
        by_up = scaling.by_weight(cast, x, x_scales, up_dtype)
        by_probes = by_probe(x_seen, raised_seen), None, by_probe(inner_seen, dy_seen)
        return by_x, by_up, by_down, None, None, *by_probes, *(None,) * 8
