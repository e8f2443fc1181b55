"""The gradients of the convolution with SiLU on a GPU: x and dy are read once, dx is written once.

A program walks as in `convolution_kernels`, and computes the pre-activation again, which costs less
than reading it. The slope at a position adds to the gradients of the kernel - 1 inputs before it,
which wait in registers until their last term has come; for those the walk goes kernel - 1 rows
beyond its own. Each program sums the gradients of its taps and biases for itself, and a second
kernel adds these up, so that results are the same in every run.
"""

# Triton's compiled functions are called with a grid in brackets, which no stub describes.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# It compiles sums of tuples, but not tuples with stars.
# ruff: noqa: RUF005

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from training_hook.kernels.activation_kernels import sigmoid
from training_hook.kernels.convolution_kernels import (
    Walk,
    contiguous,
    contiguous_rows,
    contiguous_taps,
    fitted,
    load_document_ids,
    load_filter,
    load_history,
    load_rows,
    pre_activation,
    same_document,
)
from training_hook.kernels.sum_kernels import add_up

BACKWARD = Walk(channels=128, rows=128, chunk=4, warps=1)


@triton.jit
def _zeros(COUNT: tl.constexpr, CHANNELS: tl.constexpr):
    zeros = ()
    for _ in tl.static_range(COUNT):
        zeros = zeros + (tl.zeros((CHANNELS,), tl.float32),)
    return zeros


@triton.jit
def _slope(x, dy, window, taps, bias):
    """The gradient of the pre-activation."""
    y = pre_activation(x, window, taps, bias)
    part = sigmoid(y)
    return dy * part * (1.0 + y * (1.0 - part))


@triton.jit
def _add_row(sums, slope, inputs):
    """Adds a row to the gradients of the taps and, last, of the bias."""
    done = ()
    for j in tl.static_range(len(inputs)):
        done = done + (sums[j] + slope * inputs[j],)
    return done + (sums[len(inputs)] + slope,)


@triton.jit
def _spread(slope, pending, ids, last, taps):
    """Adds a row's terms to the gradients of the inputs before it, and appends its own."""
    done = ()
    for j in tl.static_range(len(pending)):
        tap = taps[j]
        if len(ids) > 0:
            tap = tl.where(ids[j] == last, tap, 0.0)
        done = done + (pending[j] + tap * slope,)
    return done + (taps[len(pending)] * slope,)


@triton.jit
def _store_gradient(
    gradient,
    dx_ptr,
    initial_ptr,
    row,
    begin,
    channel,
    channels,
    length,
    dx_stride,
    KERNEL: tl.constexpr,
):
    """Stores the finished gradient of an input of this program's rows or the initial state."""
    inside = channel < channels
    mask = inside & (row >= begin) & (row < length)
    place = row.to(tl.int64) * dx_stride + channel
    tl.store(dx_ptr + place, gradient.to(dx_ptr.dtype.element_ty), mask=mask)
    if initial_ptr is not None:
        place = (row + KERNEL - 1) * channels + channel
        value = gradient.to(initial_ptr.dtype.element_ty)
        tl.store(initial_ptr + place, value, mask=inside & (row < 0))


@triton.jit
def _advance(
    pointers,
    strides,
    place,
    first,
    taps,
    bias,
    state,
    COUNT: tl.constexpr,
    KERNEL: tl.constexpr,
    OWN: tl.constexpr,
):
    """Walks over some rows; only a program's own ones count for the taps."""
    dy_ptr, x_ptr, ids_ptr, dx_ptr, dinitial_ptr = pointers
    dy_stride, stride, dx_stride = strides
    begin, channel, channels, length = place
    window, window_ids, pending, sums = state
    rows = load_rows(x_ptr, first, stride, channel, channels, length, COUNT)
    gradients = load_rows(dy_ptr, first, dy_stride, channel, channels, length, COUNT)
    ids = load_document_ids(ids_ptr, first, length, COUNT)
    for i in tl.static_range(COUNT):
        x, earlier, last = rows[i].to(tl.float32), window, -1
        if ids_ptr is not None:
            last = ids[i]
            earlier = same_document(window, window_ids, last)
        slope = _slope(x, gradients[i].to(tl.float32), earlier, taps, bias)
        if OWN:
            sums = _add_row(sums, slope, earlier + (x,))
        done = _spread(slope, pending, window_ids, last, taps)
        row = first + i - (KERNEL - 1)
        _store_gradient(
            done[0], dx_ptr, dinitial_ptr, row, begin, channel, channels, length, dx_stride, KERNEL
        )
        pending, window = done[1:], window[1:] + (x,)
        if ids_ptr is not None:
            window_ids = window_ids[1:] + (last,)
    return window, window_ids, pending, sums


@triton.jit
def _backward(
    dy_ptr,
    x_ptr,
    taps_ptr,
    bias_ptr,
    ids_ptr,
    initial_ptr,
    dx_ptr,
    dinitial_ptr,
    partial_ptr,
    length,
    channels,
    dy_batch_stride,
    dy_stride,
    batch_stride,
    stride,
    dx_batch_stride,
    dx_stride,
    KERNEL: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    begin = tl.program_id(1) * ROWS
    batch = tl.program_id(2).to(tl.int64)
    dy_ptr += batch * dy_batch_stride
    x_ptr += batch * batch_stride
    dx_ptr += batch * dx_batch_stride
    if ids_ptr is not None:
        ids_ptr += batch * length
    if initial_ptr is not None:
        initial_ptr += batch * (KERNEL - 1) * channels
        dinitial_ptr += batch * (KERNEL - 1) * channels
    taps, bias = load_filter(taps_ptr, bias_ptr, channel, channels, KERNEL)
    window = load_history(x_ptr, initial_ptr, begin, stride, channel, channels, length, KERNEL)
    window_ids = load_document_ids(ids_ptr, begin - (KERNEL - 1), length, KERNEL - 1)
    pending = _zeros(KERNEL - 1, CHANNELS)
    sums = _zeros(KERNEL + 1, CHANNELS)
    pointers = (dy_ptr, x_ptr, ids_ptr, dx_ptr, dinitial_ptr)
    strides, place = (dy_stride, stride, dx_stride), (begin, channel, channels, length)
    for start in range(0, ROWS, CHUNK):
        first, state = begin + start, (window, window_ids, pending, sums)
        window, window_ids, pending, sums = _advance(
            pointers, strides, place, first, taps, bias, state, CHUNK, KERNEL, True
        )
    first, state = begin + ROWS, (window, window_ids, pending, sums)
    _advance(pointers, strides, place, first, taps, bias, state, KERNEL - 1, KERNEL, False)
    part = (batch * tl.num_programs(1) + tl.program_id(1)) * (KERNEL + 1)
    for j in tl.static_range(KERNEL + 1):
        place = (part + j) * channels + channel
        tl.store(partial_ptr + place, sums[j], mask=channel < channels)


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    document_ids: Tensor | None,
    initial_state: Tensor | None,
    dx: Tensor | None = None,
    walk: Walk = BACKWARD,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns all gradients; see `convolution_operators.convolve_backward`.

    That of x is written into `dx` if it is given, a slice of wider rows.
    """
    batch, length, channels = x.shape
    dy, x, taps = contiguous_rows(dy), contiguous_rows(x), contiguous_taps(weight)
    initial_state = contiguous(initial_state)
    dx = x.new_empty(x.shape) if dx is None else dx
    dweight, dbias = weight.new_empty(weight.shape), bias.new_empty(channels)
    dinitial = x.new_empty(0) if initial_state is None else torch.empty_like(initial_state)
    walk = fitted(walk, length, len(taps))
    grid = (triton.cdiv(channels, walk.channels), -(-length // walk.rows), batch)
    partial = x.new_empty(batch * grid[1], len(taps) + 1, channels, dtype=torch.float32)
    _backward[grid](
        dy,
        x,
        taps,
        bias,
        contiguous(document_ids),
        initial_state,
        dx,
        None if initial_state is None else dinitial,
        partial,
        length,
        channels,
        dy.stride(0),
        dy.stride(1),
        x.stride(0),
        x.stride(1),
        dx.stride(0),
        dx.stride(1),
        len(taps),
        walk.rows,
        walk.chunk,
        walk.channels,
        num_warps=walk.warps,
    )
    add_up(partial, dweight, dbias)
    return dx, dweight, dbias, dinitial
