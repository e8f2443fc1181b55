"""FP8 casts and products as operators that the compiler takes whole, on a GPU and on the CPU.

On CUDA the casts are our Triton kernels and the products cuBLAS through `torch._scaled_mm` and
`scaled_mm`; elsewhere both are `fp8_emulation`. An operator is opaque to the compiler: it neither
changes the strides that cuBLAS insists on nor recomputes a cast in the backward pass.

All matrices are row-major, and a product is a b^T: what cuBLAS calls row-major times column-major,
the only order that it has for FP8. Products accumulate in FP32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType

from training_hook import fp8_emulation
from training_hook.fp8_emulation import BLOCK, E4M3


@torch.library.custom_op("gristmill::fp8_cast_tensor", mutates_args=())
def cast_tensor(x: Tensor, amax: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Casts a matrix with one scale.

    Args:
        x: (rows, columns), FP32 or BF16.
        amax: its largest absolute value, FP32 scalar.
        dtype: E4M3 or E5M2.

    Returns:
        The cast (rows, columns), the same transposed (columns, rows), and the scale by which they
        are to be multiplied, an FP32 scalar.
    """
    if x.is_cuda:
        return _kernels().cast_tensor(x, amax, dtype)
    return fp8_emulation.cast_tensor(x, amax, dtype)


@cast_tensor.register_fake
def _(x: Tensor, amax: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_tensor_cast(x, dtype)


@torch.library.custom_op("gristmill::fp8_cast_blocks", mutates_args=())
def cast_blocks(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Casts a matrix to E4M3 twice: with a scale for 128 values of a row, and of a column.

    Args:
        x: (rows, columns), multiples of 128, FP32 or BF16.

    Returns:
        The first cast (rows, columns) and its scales (columns / 128, rows); the second one,
        transposed, (columns, rows) and its scales (rows / 128, columns). Scales are FP32.
    """
    return _kernels().cast_blocks(x) if x.is_cuda else fp8_emulation.cast_blocks(x)


@cast_blocks.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_block_cast(x)


@torch.library.custom_op("gristmill::fp8_cast_squares", mutates_args=())
def cast_squares(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Casts a matrix to E4M3 with a scale for each square of 128 x 128 values.

    Args:
        x: (rows, columns), multiples of 128, FP32 or BF16.

    Returns:
        The cast (rows, columns) and its scales (rows / 128, columns / 128); the same transposed,
        and its scales. The rows of the scales are filled up with ones to a multiple of 4.
    """
    return _kernels().cast_squares(x) if x.is_cuda else fp8_emulation.cast_squares(x)


@cast_squares.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, columns = x.shape
    high, wide = rows // BLOCK, columns // BLOCK
    return (
        x.new_empty(rows, columns, dtype=E4M3),
        x.new_empty(high, wide + -wide % 4, dtype=torch.float32),
        x.new_empty(columns, rows, dtype=E4M3),
        x.new_empty(wide, high + -high % 4, dtype=torch.float32),
    )


@torch.library.custom_op("gristmill::fp8_cast_squared_relu_tensor", mutates_args=())
def cast_squared_relu_tensor(
    up: Tensor, gradient: Tensor | None, amax: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Casts relu(up)^2 with one scale, or its gradient by `up` if one by the square is given.

    Args:
        up: (rows, columns), FP32 or BF16. What is cast is first rounded to that.
        gradient: (rows, columns), of the dtype of `up`: gradient * 2 relu(up) is cast.
        amax: the largest absolute value of what is cast, FP32 scalar.
        dtype: E4M3 or E5M2.

    Returns:
        As `cast_tensor`.
    """
    if up.is_cuda:
        return _kernels().cast_squared_relu_tensor(up, gradient, amax, dtype)
    return fp8_emulation.cast_squared_relu_tensor(up, gradient, amax, dtype)


@cast_squared_relu_tensor.register_fake
def _(
    up: Tensor, gradient: Tensor | None, amax: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_tensor_cast(up, dtype)


@torch.library.custom_op("gristmill::fp8_cast_squared_relu_blocks", mutates_args=())
def cast_squared_relu_blocks(
    up: Tensor, gradient: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Casts relu(up)^2 twice as `cast_blocks`, or its gradient by `up` if one is given.

    Args:
        up: (rows, columns), multiples of 128, FP32 or BF16. What is cast is first rounded to that.
        gradient: (rows, columns), of the dtype of `up`: gradient * 2 relu(up) is cast.

    Returns:
        As `cast_blocks`.
    """
    if up.is_cuda:
        return _kernels().cast_squared_relu_blocks(up, gradient)
    return fp8_emulation.cast_squared_relu_blocks(up, gradient)


@cast_squared_relu_blocks.register_fake
def _(up: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_block_cast(up)


@torch.library.custom_op("gristmill::fp8_cast_expected", mutates_args=())
def cast_expected(
    x: Tensor, squares: bool, gradient: Tensor | None, expected: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Casts with the scale of a largest value that is expected, and returns the one that is there.

    Args:
        x: (rows, columns), FP32 or BF16.
        squares: whether what is cast is as for `cast_squared_relu_tensor`, else x itself.
        gradient: as there.
        expected: a largest absolute value, FP32 scalar. What is larger becomes the format's
            largest value, but what is not finite NaN.
        dtype: E4M3 or E5M2.

    Returns:
        As `cast_tensor`, and the largest absolute value of what is cast, an FP32 scalar, not finite
        where a value is not.
    """
    if x.is_cuda:
        return _kernels().cast_expected(x, squares, gradient, expected, dtype)
    return fp8_emulation.cast_expected(x, squares, gradient, expected, dtype)


@cast_expected.register_fake
def _(
    x: Tensor, squares: bool, gradient: Tensor | None, expected: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *_empty_tensor_cast(x, dtype), x.new_empty((), dtype=torch.float32)


@torch.library.custom_op("gristmill::fp8_multiply_tensor", mutates_args=())
def multiply_tensor(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype, fast: bool
) -> Tensor:
    """Multiplies two casts of `cast_tensor`.

    Args:
        a: (rows, inner), not E5M2 if b is.
        b: (columns, inner).
        a_scale: of a.
        b_scale: of b.
        dtype: of the result.
        fast: whether partial sums may stay in the tensor core's registers, which keep about 14
            bits, for all of the inner dimension; the CPU always adds up in FP32.

    Returns:
        a b^T, (rows, columns).
    """
    if a.is_cuda:
        return torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
            a, b.t(), scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=fast
        )
    return fp8_emulation.multiply_tensor(a, b, a_scale, b_scale).to(dtype)


@multiply_tensor.register_fake
def _(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype, fast: bool
) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[0], dtype=dtype)


@torch.library.custom_op("gristmill::fp8_multiply_blocks", mutates_args=())
def multiply_blocks(
    a: Tensor, b: Tensor, a_scales: Tensor, b_scales: Tensor, squares: bool, dtype: torch.dtype
) -> Tensor:
    """Multiplies a cast of `cast_blocks` with another or with one of `cast_squares`.

    Args:
        a: (rows, inner).
        b: (columns, inner).
        a_scales: of a, (inner / 128, rows).
        b_scales: of b, likewise, or those of squares.
        squares: whether b is of `cast_squares`.
        dtype: of the result.

    Returns:
        a b^T, (rows, columns).
    """
    if not a.is_cuda:
        return fp8_emulation.multiply_blocks(a, b, a_scales, b_scales, squares).to(dtype)
    # cuBLAS wants a block's scales with the outer dimension contiguous, squares' the inner one
    return F.scaled_mm(
        a,
        b.t(),
        scale_a=a_scales.t(),
        scale_recipe_a=ScalingType.BlockWise1x128,
        scale_b=b_scales.t(),
        scale_recipe_b=ScalingType.BlockWise128x128 if squares else ScalingType.BlockWise1x128,
        output_dtype=dtype,
    )


@multiply_blocks.register_fake
def _(
    a: Tensor, b: Tensor, a_scales: Tensor, b_scales: Tensor, squares: bool, dtype: torch.dtype
) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[0], dtype=dtype)


def _empty_tensor_cast(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = x.shape
    cast, transposed = (x.new_empty(s, dtype=dtype) for s in ((rows, columns), (columns, rows)))
    return cast, transposed, x.new_empty((), dtype=torch.float32)


def _empty_block_cast(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, columns = x.shape
    return (
        x.new_empty(rows, columns, dtype=E4M3),
        x.new_empty(columns // BLOCK, rows, dtype=torch.float32),
        x.new_empty(columns, rows, dtype=E4M3),
        x.new_empty(rows // BLOCK, columns, dtype=torch.float32),
    )


def _kernels():
    from training_hook.kernels import fp8_kernels  # Triton is there only where there is a GPU

    return fp8_kernels
