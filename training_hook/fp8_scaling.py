"""What a recipe of FP8 training casts to which format, and how it multiplies the casts.

A `Cast` holds a matrix twice, as it is and transposed, because every operand of a product is read
once along its rows (forward and gradient by the input) and once along its columns (gradient by the
weight). It takes 2 bytes a value and a little for the scales.

Sources: see `fp8`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from training_hook.fp8_emulation import E4M3, E5M2, squared_relu
from training_hook.kernels.fp8_operators import (
    cast_blocks,
    cast_expected,
    cast_squared_relu_blocks,
    cast_squared_relu_tensor,
    cast_squares,
    cast_tensor,
    multiply_blocks,
    multiply_tensor,
)


class Cast(NamedTuple):
    """A matrix (rows, columns) in FP8."""

    rows: Tensor
    """(rows, columns)."""
    row_scales: Tensor
    """Of `rows`, FP32."""
    columns: Tensor
    """The matrix transposed, (columns, rows)."""
    column_scales: Tensor
    """Of `columns`, FP32."""


class Delayed(NamedTuple):
    """What a product with delayed scaling takes and gives."""

    expected: Tensor | None = None
    """Largest values of its input and of its gradient by the output, (2,); if none are given, the
    scales are those of the values that are there."""
    probe: Tensor | None = None
    """(2,), whatever its values; the gradient that it receives are the largest values seen."""


NOT_DELAYED = Delayed()


class TensorScaling:
    """One scale for a tensor, from the largest value that is in it: current scaling.

    If a largest value is expected, its scale is taken, and the tensor is read once: delayed
    scaling. All casts but those of weights come with the largest value that there was.

    Sums of forward products may stay in the tensor core's 14 bits, those of gradients may not, as
    in TransformerEngine.
    """

    def __init__(self, gradients: torch.dtype) -> None:
        self.gradients = gradients

    def weight(self, weight: Tensor) -> Cast:
        """Casts a weight (out_features, in_features) in passes that are few without a compiler."""
        low, high = weight.aminmax()
        amax = torch.maximum(low.abs(), high.abs()).float()
        cast, turned, scale = cast_tensor(weight, amax, E4M3)
        # a copy: an autograd.Function takes no tensor twice where it is compiled
        return Cast(cast, scale, turned, scale.clone())

    def input(self, x: Tensor, expected: Tensor | None) -> tuple[Cast, Tensor]:
        """Casts an input (tokens, in_features)."""
        return self._cast(x, expected, E4M3)

    def gradient(self, dy: Tensor, expected: Tensor | None) -> tuple[Cast, Tensor]:
        """Casts a gradient (tokens, out_features)."""
        return self._cast(dy, expected, self.gradients)

    def squared_relu(self, up: Tensor, expected: Tensor | None) -> tuple[Cast, Tensor]:
        """Casts relu(up)^2 as `input` does, without writing it in the dtype of `up`."""
        if expected is not None:
            return _expected(up, True, None, expected, E4M3)
        # squaring and rounding keep the order, so the largest square is that of the largest value
        amax = squared_relu(up.amax(), None).float()
        cast, turned, scale = cast_squared_relu_tensor(up, None, amax, E4M3)
        return Cast(cast, scale, turned, scale), amax

    def squared_relu_gradient(
        self, gradient: Tensor, up: Tensor, expected: Tensor | None
    ) -> tuple[Cast, Tensor]:
        """Casts gradient * 2 relu(up) as `gradient` does, without writing it."""
        if expected is not None:
            return _expected(up, True, gradient, expected, self.gradients)
        amax = _largest(squared_relu(up, gradient))
        cast, turned, scale = cast_squared_relu_tensor(up, gradient, amax, self.gradients)
        return Cast(cast, scale, turned, scale), amax

    @staticmethod
    def output(x: Cast, weight: Cast, dtype: torch.dtype) -> Tensor:
        """Returns x weight^T, (tokens, out_features)."""
        return multiply_tensor(x.rows, weight.rows, x.row_scales, weight.row_scales, dtype, True)

    @staticmethod
    def by_input(dy: Cast, turned: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns dy weight, (tokens, in_features), for a weight's `columns` and their scales."""
        return multiply_tensor(dy.rows, turned, dy.row_scales, scales, dtype, False)

    @staticmethod
    def by_weight(dy: Cast, turned: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns dy^T x, (out_features, in_features), for an input's `columns`."""
        return multiply_tensor(dy.columns, turned, dy.column_scales, scales, dtype, False)

    @staticmethod
    def _cast(x: Tensor, expected: Tensor | None, dtype: torch.dtype) -> tuple[Cast, Tensor]:
        if expected is not None:
            return _expected(x, False, None, expected, dtype)
        amax = _largest(x)
        cast, turned, scale = cast_tensor(x, amax, dtype)
        return Cast(cast, scale, turned, scale), amax


class BlockScaling:
    """A scale for 128 values along the inner dimension, and for 128 x 128 of a weight; E4M3.

    Its scales are those of the values that are there; nothing is expected.
    """

    @staticmethod
    def weight(weight: Tensor) -> Cast:
        """Casts a weight (out_features, in_features)."""
        return Cast(*cast_squares(weight))

    @staticmethod
    def input(x: Tensor, expected: Tensor | None) -> tuple[Cast, None]:
        """Casts an input (tokens, in_features)."""
        return Cast(*cast_blocks(x)), None

    @staticmethod
    def gradient(dy: Tensor, expected: Tensor | None) -> tuple[Cast, None]:
        """Casts a gradient (tokens, out_features)."""
        return Cast(*cast_blocks(dy)), None

    @staticmethod
    def squared_relu(up: Tensor, expected: Tensor | None) -> tuple[Cast, None]:
        """Casts relu(up)^2 as `input` does, without writing it in the dtype of `up`."""
        return Cast(*cast_squared_relu_blocks(up, None)), None

    @staticmethod
    def squared_relu_gradient(
        gradient: Tensor, up: Tensor, expected: Tensor | None
    ) -> tuple[Cast, None]:
        """Casts gradient * 2 relu(up) as `gradient` does, without writing it."""
        return Cast(*cast_squared_relu_blocks(up, gradient)), None

    @staticmethod
    def output(x: Cast, weight: Cast, dtype: torch.dtype) -> Tensor:
        """Returns x weight^T, (tokens, out_features)."""
        return multiply_blocks(x.rows, weight.rows, x.row_scales, weight.row_scales, True, dtype)

    @staticmethod
    def by_input(dy: Cast, turned: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns dy weight, (tokens, in_features), for a weight's `columns` and their scales."""
        return multiply_blocks(dy.rows, turned, dy.row_scales, scales, True, dtype)

    @staticmethod
    def by_weight(dy: Cast, turned: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns dy^T x, (out_features, in_features), for an input's `columns`."""
        return multiply_blocks(dy.columns, turned, dy.column_scales, scales, False, dtype)


def _largest(x: Tensor) -> Tensor:
    # plain operators: compiled, this joins what makes x, and x is not read for it
    return x.detach().abs().amax().float()


def _expected(
    x: Tensor, squares: bool, gradient: Tensor | None, expected: Tensor, dtype: torch.dtype
) -> tuple[Cast, Tensor]:
    cast, turned, scale, largest = cast_expected(x, squares, gradient, expected, dtype)
    return Cast(cast, scale, turned, scale), largest


SCALINGS: dict[str, TensorScaling | BlockScaling] = {
    "fp8_tensor": TensorScaling(E5M2),
    "fp8_tensor_e4m3": TensorScaling(E4M3),
    "fp8_delayed": TensorScaling(E5M2),
    "fp8_block": BlockScaling(),
}
"""Recipe to how it scales."""
