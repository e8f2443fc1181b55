"""What FP8 casts and products compute, in plain PyTorch: the CPU's way, and what tests hold to.

A scale is a power of two: the smallest by which the largest value of its tensor or block fits the
format, 1 if all are zero, NaN if one is not finite (a saturating cast would hide it). Dividing by a
power of two is exact, so a value is rounded once, to nearest even, and eager, compiled and Triton
code agree bit for bit. It costs no precision, since the step of a floating point format follows the
value; E4M3 spans 18 powers of two, of which one at most stays unused above the largest value.
TransformerEngine takes powers of two for blocks and FP32 scales for tensors.

The CUDA kernels are in `fp8_kernels`; both are reached through `fp8_operators`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
BLOCK = 128
EXPONENTS = {E4M3: 8, E5M2: 15}
"""Of the largest value, which is 1.75 * 2**exponent in both formats: 448 and 57,344."""
CARRY = 0x1FFFFF
"""Added to the bits of an FP32 number, raises its exponent if its mantissa is above 1.75."""
INFINITY_BITS, NAN_BITS = 0x7F800000, 0x7FC00000


def power_of_two_scale(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the smallest power of two that brings absolute values up to `amax` into a format.

    Args:
        amax: largest absolute values, any shape.
        dtype: E4M3 or E5M2.

    Returns:
        FP32 of the same shape: 1 where `amax` is zero, NaN where it is not finite, never below the
        smallest normal number.
    """
    bits = amax.float().contiguous().view(torch.int32)
    exponent = ((bits + CARRY) >> 23) - EXPONENTS[dtype]
    scale = exponent.clamp(min=1) << 23
    scale = scale.where(bits != 0, 127 << 23).where(bits < INFINITY_BITS, NAN_BITS)
    return scale.view(torch.float32)


def cast_tensor(x: Tensor, amax: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Casts a matrix (rows, columns) with one scale; see `fp8_operators.cast_tensor`."""
    scale = power_of_two_scale(amax, dtype)
    cast = (x.float() / scale).to(dtype)
    return cast, _transposed(cast), scale


def cast_blocks(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Casts a matrix twice with scales of 128 values; see `fp8_operators.cast_blocks`."""
    by_row, row_scales = _cast_rows(x.float())
    by_column, column_scales = _cast_rows(x.float().t())
    return by_row, row_scales, by_column, column_scales


def cast_squares(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Casts a matrix with scales of 128 x 128 values; see `fp8_operators.cast_squares`."""
    tiles = x.float().unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    scales = power_of_two_scale(tiles.abs().amax((1, 3)), E4M3)
    cast = (tiles / scales[:, None, :, None]).to(E4M3).flatten(2).flatten(0, 1)
    return cast, _padded(scales), _transposed(cast), _padded(scales.t())


def squared_relu(up: Tensor, gradient: Tensor | None) -> Tensor:
    """Returns relu(up)^2, or its gradient gradient * 2 relu(up), rounded to the dtype of `up`."""
    positive = F.relu(up)
    if gradient is None:
        return positive.square()
    return (gradient * (2 * positive)).masked_fill(up <= 0, 0)


def cast_squared_relu_tensor(
    up: Tensor, gradient: Tensor | None, amax: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Casts `squared_relu`; see `fp8_operators.cast_squared_relu_tensor`."""
    return cast_tensor(squared_relu(up, gradient), amax, dtype)


def cast_squared_relu_blocks(
    up: Tensor, gradient: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Casts `squared_relu`; see `fp8_operators.cast_squared_relu_blocks`."""
    return cast_blocks(squared_relu(up, gradient))


def cast_expected(
    x: Tensor, squares: bool, gradient: Tensor | None, expected: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Casts with the scale of an earlier largest value; see `fp8_operators.cast_expected`."""
    x = squared_relu(x, gradient) if squares else x
    scale, limit = power_of_two_scale(expected, dtype), torch.finfo(dtype).max
    scaled = (x.float() / scale).clamp(-limit, limit).where(x.isfinite(), torch.nan)
    cast = scaled.to(dtype)
    return cast, _transposed(cast), scale, x.abs().amax().float()


def multiply_tensor(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor) -> Tensor:
    """Returns a b^T of casts with one scale each, FP32."""
    return (a.float() @ b.float().t()) * (a_scale * b_scale)


def multiply_blocks(
    a: Tensor, b: Tensor, a_scales: Tensor, b_scales: Tensor, squares: bool
) -> Tensor:
    """Returns a b^T of casts with many scales each, FP32; `squares` says those of b."""
    width = a.shape[1] // BLOCK
    of_b = b_scales[:, :width].repeat_interleave(BLOCK, 0) if squares else b_scales.t()
    return _scaled(a, a_scales.t()) @ _scaled(b, of_b).t()


def _cast_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    tiles = x.unflatten(1, (-1, BLOCK))
    scales = power_of_two_scale(tiles.abs().amax(2), E4M3)
    cast = (tiles / scales[..., None]).to(E4M3).flatten(1)
    return cast.contiguous(), scales.t().contiguous()


def _scaled(x: Tensor, scales: Tensor) -> Tensor:
    return x.float() * scales.repeat_interleave(BLOCK, 1)


def _transposed(x: Tensor) -> Tensor:
    return x.t().clone(memory_format=torch.contiguous_format)


def _padded(scales: Tensor) -> Tensor:
    """Fills the rows up to a multiple of 4 scales, as cuBLAS wants those of squares."""
    return F.pad(scales, (0, -scales.shape[1] % 4), value=1.0).contiguous()
