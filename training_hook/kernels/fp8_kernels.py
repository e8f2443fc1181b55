"""FP8 casts on a GPU: each reads its matrix once and writes cast, transposed cast and scales.

cuBLAS multiplies FP8 only as rows times columns, so backward wants every operand transposed. A cast
that writes both takes 126 us for 16,384 x 4,096 BF16 values on an H100 (2.1 TB/s); casting and
then transposing takes 174. A program does a tile of 128 x 128. Largest values are compared as
integers: the bits of absolute values are in the order of the values, and infinity and NaN come
last, where a maximum of floats would lose NaN. Weights, which are FP32, are transposed by PyTorch
after the cast: Triton 3.6.0 writes a tile of FP8 that was cast from FP32 wrongly on sm_90 where it
is stored both ways (found by the test that compares bytes with the CPU; from BF16 it is right).

What is computed is said by `fp8_emulation`.
"""

# Triton's compiled functions are called with a grid in brackets, which no stub describes.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from training_hook.fp8_emulation import BLOCK, E4M3, E5M2

_WARPS = 8


@triton.jit
def _scale_and_inverse(bits, EXPONENT: tl.constexpr):
    """Power-of-two scales from the bits of largest absolute values, see `power_of_two_scale`."""
    exponent = ((bits + 0x1FFFFF) >> 23) - EXPONENT
    exponent = tl.where(exponent < 1, 1, exponent)
    exponent = tl.where(bits == 0, 127, exponent)
    inverse = (254 - exponent) << 23
    scale = tl.where(bits < 0x7F800000, exponent << 23, 0x7FC00000)
    return scale.to(tl.float32, bitcast=True), inverse.to(tl.float32, bitcast=True)


@triton.jit
def _absolute_bits(x):
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _squared_relu(x, gradient_ptr, offsets, inside):
    """relu(x)^2, or its gradient, rounded to the dtype of x as if it had been written."""
    wide = x.to(tl.float32)
    # no maximum, which would lose NaN
    positive = tl.where(wide <= 0, 0.0, wide)
    if gradient_ptr is None:
        result = positive * positive
    else:
        gradient = tl.load(gradient_ptr + offsets, mask=inside).to(tl.float32)
        result = tl.where(wide <= 0, 0.0, gradient * (2 * positive))
    return result.to(x.dtype)


@triton.jit
def _cast_tensor(
    x_ptr,
    gradient_ptr,
    amax_ptr,
    cast_ptr,
    transposed_ptr,
    scale_ptr,
    largest_ptr,
    rows,
    columns,
    stride,
    SQUARED_RELU: tl.constexpr,
    IS_E5M2: tl.constexpr,
    TURNS: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    row = row.to(tl.int64)
    offsets = row[:, None] * stride + column[None, :]
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0)
    if SQUARED_RELU:
        x = _squared_relu(x, gradient_ptr, offsets, inside)
    x = x.to(tl.float32)
    bits = _absolute_bits(tl.load(amax_ptr))
    if IS_E5M2:
        scale, inverse = _scale_and_inverse(bits, 15)
    else:
        scale, inverse = _scale_and_inverse(bits, 8)
    scaled = x * inverse
    if largest_ptr is not None:
        limit = 57344.0 if IS_E5M2 else 448.0
        scaled = tl.where(scaled > limit, limit, tl.where(scaled < -limit, -limit, scaled))
        bits = _absolute_bits(x)
        scaled = tl.where(bits < 0x7F800000, scaled, float("nan"))
        tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        tl.store(largest_ptr + tile, tl.max(tl.max(bits, 1), 0))
    cast = scaled.to(tl.float8e5) if IS_E5M2 else scaled.to(tl.float8e4nv)
    tl.store(cast_ptr + row[:, None] * columns + column[None, :], cast, mask=inside)
    if TURNS:
        turned = column.to(tl.int64)[:, None] * rows + row[None, :]
        tl.store(transposed_ptr + turned, tl.trans(cast), mask=tl.trans(inside))
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(scale_ptr, scale)


@triton.jit
def _cast_blocks(
    x_ptr,
    gradient_ptr,
    by_row_ptr,
    row_scales_ptr,
    by_column_ptr,
    column_scales_ptr,
    rows,
    columns,
    stride,
    SQUARED_RELU: tl.constexpr,
    TILE: tl.constexpr,
):
    row_tile, column_tile = tl.program_id(0), tl.program_id(1)
    row = (row_tile * TILE + tl.arange(0, TILE)).to(tl.int64)
    column = (column_tile * TILE + tl.arange(0, TILE)).to(tl.int64)
    offsets = row[:, None] * stride + column[None, :]
    x = tl.load(x_ptr + offsets)
    if SQUARED_RELU:
        x = _squared_relu(x, gradient_ptr, offsets, None)
    x = x.to(tl.float32)
    bits = _absolute_bits(x)
    scale, inverse = _scale_and_inverse(tl.max(bits, 1), 8)
    cast = (x * inverse[:, None]).to(tl.float8e4nv)
    tl.store(by_row_ptr + row[:, None] * columns + column[None, :], cast)
    tl.store(row_scales_ptr + column_tile.to(tl.int64) * rows + row, scale)
    scale, inverse = _scale_and_inverse(tl.max(bits, 0), 8)
    cast = (x * inverse[None, :]).to(tl.float8e4nv)
    tl.store(by_column_ptr + column[:, None] * rows + row[None, :], tl.trans(cast))
    tl.store(column_scales_ptr + row_tile.to(tl.int64) * columns + column, scale)


@triton.jit
def _cast_squares(
    x_ptr,
    cast_ptr,
    scales_ptr,
    transposed_ptr,
    transposed_scales_ptr,
    rows,
    columns,
    scales_stride,
    transposed_scales_stride,
    TURNS: tl.constexpr,
    TILE: tl.constexpr,
):
    row_tile, column_tile = tl.program_id(0), tl.program_id(1)
    row = (row_tile * TILE + tl.arange(0, TILE)).to(tl.int64)
    column = (column_tile * TILE + tl.arange(0, TILE)).to(tl.int64)
    x = tl.load(x_ptr + row[:, None] * columns + column[None, :]).to(tl.float32)
    scale, inverse = _scale_and_inverse(tl.max(tl.max(_absolute_bits(x), 1), 0), 8)
    cast = (x * inverse).to(tl.float8e4nv)
    tl.store(cast_ptr + row[:, None] * columns + column[None, :], cast)
    if TURNS:
        tl.store(transposed_ptr + column[:, None] * rows + row[None, :], tl.trans(cast))
    tl.store(scales_ptr + row_tile * scales_stride + column_tile, scale)
    tl.store(transposed_scales_ptr + column_tile * transposed_scales_stride + row_tile, scale)


def cast_tensor(x: Tensor, amax: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Casts a matrix (rows, columns) with one scale; see `fp8_operators.cast_tensor`."""
    return _launch_tensor(_row_major(x), None, False, amax, dtype, None)


def cast_squared_relu_tensor(
    up: Tensor, gradient: Tensor | None, amax: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Casts with one scale; see `fp8_operators.cast_squared_relu_tensor`."""
    return _launch_tensor(*_alike(up, gradient), True, amax, dtype, None)


def cast_expected(
    x: Tensor, squares: bool, gradient: Tensor | None, expected: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Casts with the scale of an earlier largest value; see `fp8_operators.cast_expected`."""
    rows, columns = x.shape
    tiles = -(-rows // BLOCK) * -(-columns // BLOCK)
    largest = x.new_empty(tiles, dtype=torch.int32)
    cast = _launch_tensor(*_alike(x, gradient), squares, expected, dtype, largest)
    return *cast, largest.amax().view(torch.float32)


def _launch_tensor(
    x: Tensor,
    gradient: Tensor | None,
    squared_relu: bool,
    amax: Tensor,
    dtype: torch.dtype,
    largest: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = x.shape
    cast = x.new_empty(rows, columns, dtype=dtype)
    transposed = x.new_empty(columns, rows, dtype=dtype)
    scale = x.new_empty((), dtype=torch.float32)
    grid = (triton.cdiv(rows, BLOCK), triton.cdiv(columns, BLOCK))
    _cast_tensor[grid](
        x,
        gradient,
        amax,
        cast,
        transposed,
        scale,
        largest,
        rows,
        columns,
        x.stride(0),
        squared_relu,
        dtype == E5M2,
        x.dtype != torch.float32,
        BLOCK,
        num_warps=_WARPS,
    )
    if x.dtype == torch.float32:
        transposed.view(torch.uint8).copy_(cast.view(torch.uint8).t())
    return cast, transposed, scale


def cast_blocks(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Casts a matrix twice with scales of 128 values; see `fp8_operators.cast_blocks`."""
    return _launch_blocks(_row_major(x), None, False)


def cast_squared_relu_blocks(
    up: Tensor, gradient: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Casts with scales of 128 values; see `fp8_operators.cast_squared_relu_blocks`."""
    return _launch_blocks(*_alike(up, gradient), True)


def _launch_blocks(
    x: Tensor, gradient: Tensor | None, squared_relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, columns = x.shape
    grid = (rows // BLOCK, columns // BLOCK)
    by_row = x.new_empty(rows, columns, dtype=E4M3)
    row_scales = x.new_empty(grid[1], rows, dtype=torch.float32)
    by_column = x.new_empty(columns, rows, dtype=E4M3)
    column_scales = x.new_empty(grid[0], columns, dtype=torch.float32)
    _cast_blocks[grid](
        x,
        gradient,
        by_row,
        row_scales,
        by_column,
        column_scales,
        rows,
        columns,
        x.stride(0),
        squared_relu,
        BLOCK,
        num_warps=_WARPS,
    )
    return by_row, row_scales, by_column, column_scales


def cast_squares(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Casts a matrix with scales of 128 x 128 values; see `fp8_operators.cast_squares`."""
    x = x.contiguous()
    rows, columns = x.shape
    grid = (rows // BLOCK, columns // BLOCK)
    cast = x.new_empty(rows, columns, dtype=E4M3)
    transposed = x.new_empty(columns, rows, dtype=E4M3)
    # cuBLAS wants rows of a multiple of 4 scales; nothing writes the ones that fill them up
    scales = x.new_ones(grid[0], grid[1] + -grid[1] % 4, dtype=torch.float32)
    transposed_scales = x.new_ones(grid[1], grid[0] + -grid[0] % 4, dtype=torch.float32)
    _cast_squares[grid](
        x,
        cast,
        scales,
        transposed,
        transposed_scales,
        rows,
        columns,
        scales.stride(0),
        transposed_scales.stride(0),
        x.dtype != torch.float32,
        BLOCK,
        num_warps=_WARPS,
    )
    if x.dtype == torch.float32:
        transposed.view(torch.uint8).copy_(cast.view(torch.uint8).t())
    return cast, scales, transposed, transposed_scales


def _alike(up: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Returns both matrices with the same strides."""
    if gradient is None:
        return _row_major(up), None
    return up.contiguous(), gradient.contiguous()


def _row_major(x: Tensor) -> Tensor:
    """Copies a matrix only if its rows are not contiguous: slices of wider rows are read as is."""
    return x if x.stride(1) == 1 else x.contiguous()
