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
from training_hook.fp8_operators import (
    cast_blocks,
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


class TensorScaling:
    """One scale for a tensor, from the largest value that is in it: current scaling.

    Sums of forward products may stay in the tensor core's 14 bits, those of gradients may not, as
    in TransformerEngine.
    """

    def __init__(self, gradients: torch.dtype) -> None:
        self.gradients = gradients

    def weight(self, weight: Tensor) -> Cast:
        """Casts a weight (out_features, in_features) in passes that are few without a compiler."""
        low, high = weight.aminmax()
        cast = self._cast(weight, torch.maximum(low.abs(), high.abs()).float(), E4M3)
        # an autograd.Function takes no tensor twice where it is compiled
        return cast._replace(column_scales=cast.column_scales.clone())

    def input(self, x: Tensor) -> Cast:
        """Casts an input (tokens, in_features)."""
        return self._cast(x, _largest(x), E4M3)

    def gradient(self, dy: Tensor) -> Cast:
        """Casts a gradient (tokens, out_features)."""
        return self._cast(dy, _largest(dy), self.gradients)

    def squared_relu(self, up: Tensor) -> Cast:
        """Casts relu(up)^2 as `input` does, without writing it in the dtype of `up`."""
        # squaring and rounding keep the order, so the largest square is that of the largest value
        amax = squared_relu(up.amax(), None).float()
        cast, turned, scale = cast_squared_relu_tensor(up, None, amax, E4M3)
        return Cast(cast, scale, turned, scale)

    def squared_relu_gradient(self, gradient: Tensor, up: Tensor) -> Cast:
        """Casts gradient * 2 relu(up) as `gradient` does, without writing it."""
        amax = _largest(squared_relu(up, gradient))
        cast, turned, scale = cast_squared_relu_tensor(up, gradient, amax, self.gradients)
        return Cast(cast, scale, turned, scale)

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
    def _cast(x: Tensor, amax: Tensor, dtype: torch.dtype) -> Cast:
        cast, turned, scale = cast_tensor(x, amax, dtype)
        return Cast(cast, scale, turned, scale)


class BlockScaling:
    """A scale for 128 values along the inner dimension, and for 128 x 128 of a weight; E4M3."""

    @staticmethod
    def weight(weight: Tensor) -> Cast:
        """Casts a weight (out_features, in_features)."""
        return Cast(*cast_squares(weight))

    @staticmethod
    def input(x: Tensor) -> Cast:
        """Casts an input (tokens, in_features)."""
        return Cast(*cast_blocks(x))

    @staticmethod
    def gradient(dy: Tensor) -> Cast:
        """Casts a gradient (tokens, out_features)."""
        return Cast(*cast_blocks(dy))

    @staticmethod
    def squared_relu(up: Tensor) -> Cast:
        """Casts relu(up)^2 as `input` does, without writing it in the dtype of `up`."""
        return Cast(*cast_squared_relu_blocks(up, None))

    @staticmethod
    def squared_relu_gradient(gradient: Tensor, up: Tensor) -> Cast:
        """Casts gradient * 2 relu(up) as `gradient` does, without writing it."""
        return Cast(*cast_squared_relu_blocks(up, gradient))

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


SCALINGS: dict[str, TensorScaling | BlockScaling] = {
    "fp8_tensor": TensorScaling(E5M2),
    "fp8_tensor_e4m3": TensorScaling(E4M3),
    "fp8_block": BlockScaling(),
}
"""Recipe to how it scales."""
