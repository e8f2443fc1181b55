"""The causal convolution with SiLU on a GPU: it reads each input once.

A program takes some channels and walks along the length: the last kernel - 1 inputs stay in
registers, so nothing but a program's first inputs is read a second time. Loads are in flight for a
chunk of rows at once, which hides the memory's latency without shared memory.

What is computed is said by `convolution`.
"""

# Triton's compiled functions are called with a grid in brackets, which no stub describes.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# It compiles sums of tuples, but not tuples with stars.
# ruff: noqa: RUF005

from typing import NamedTuple

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from training_hook.kernels.activation_kernels import sigmoid


class Walk(NamedTuple):
    """The part of a sequence that one program does, and how."""

    channels: int
    """A power of two; 8 of BF16 for each thread are loads of 16 bytes."""
    rows: int
    """A multiple of `chunk`."""
    chunk: int
    """Rows that are loaded at once."""
    warps: int


FORWARD = Walk(channels=128, rows=64, chunk=8, warps=1)


@triton.jit
def load_filter(taps_ptr, bias_ptr, channel, channels, KERNEL: tl.constexpr):
    """The taps, oldest first, and the bias of each channel."""
    inside = channel < channels
    taps = ()
    for j in tl.static_range(KERNEL):
        tap = tl.load(taps_ptr + j * channels + channel, mask=inside, other=0.0)
        taps = taps + (tap.to(tl.float32),)
    return taps, tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_rows(ptr, first, stride, channel, channels, length, COUNT: tl.constexpr):
    """Consecutive rows, zero beyond the length."""
    rows = ()
    for i in tl.static_range(COUNT):
        row = first + i
        mask = (channel < channels) & (row < length)
        rows = rows + (tl.load(ptr + row.to(tl.int64) * stride + channel, mask=mask, other=0.0),)
    return rows


@triton.jit
def load_document_ids(ids_ptr, first, length, COUNT: tl.constexpr):
    """The documents of consecutive rows: 0 before the first, -1 beyond the length."""
    ids = ()
    if ids_ptr is not None:
        for i in tl.static_range(COUNT):
            row = first + i
            before = tl.where(row < 0, 0, -1)
            inside = (row >= 0) & (row < length)
            ids = ids + (tl.load(ids_ptr + row, mask=inside, other=before),)
    return ids


@triton.jit
def load_history(
    x_ptr, initial_ptr, first, stride, channel, channels, length, KERNEL: tl.constexpr
):
    """The inputs before a row, oldest first; before the sequence those of the initial state."""
    inside = channel < channels
    window = ()
    for j in tl.static_range(KERNEL - 1):
        row = first - (KERNEL - 1) + j
        place = row.to(tl.int64) * stride + channel
        x = tl.load(x_ptr + place, mask=inside & (row >= 0), other=0.0).to(tl.float32)
        if initial_ptr is not None:
            place = (row + KERNEL - 1) * channels + channel
            x += tl.load(initial_ptr + place, mask=inside & (row < 0), other=0.0).to(tl.float32)
        window = window + (x,)
    return window


@triton.jit
def same_document(window, ids, last):
    """The window, zero where it is of another document than the last row; as is without ids."""
    same = window
    if len(ids) > 0:
        same = ()
        for j in tl.static_range(len(ids)):
            same = same + (tl.where(ids[j] == last, window[j], 0.0),)
    return same


@triton.jit
def pre_activation(x, window, taps, bias):
    """The filter's value at x, whose predecessors are the window."""
    y = bias + taps[len(window)] * x
    for j in tl.static_range(len(window)):
        y += taps[j] * window[j]
    return y


@triton.jit
def _forward(
    x_ptr,
    taps_ptr,
    bias_ptr,
    ids_ptr,
    initial_ptr,
    y_ptr,
    length,
    channels,
    batch_stride,
    stride,
    KERNEL: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    begin = tl.program_id(1) * ROWS
    batch = tl.program_id(2).to(tl.int64)
    x_ptr += batch * batch_stride
    y_ptr += batch * length * channels
    if ids_ptr is not None:
        ids_ptr += batch * length
    if initial_ptr is not None:
        initial_ptr += batch * (KERNEL - 1) * channels
    taps, bias = load_filter(taps_ptr, bias_ptr, channel, channels, KERNEL)
    window = load_history(x_ptr, initial_ptr, begin, stride, channel, channels, length, KERNEL)
    window_ids = load_document_ids(ids_ptr, begin - (KERNEL - 1), length, KERNEL - 1)
    for start in range(0, ROWS, CHUNK):
        first = begin + start
        rows = load_rows(x_ptr, first, stride, channel, channels, length, CHUNK)
        ids = load_document_ids(ids_ptr, first, length, CHUNK)
        for i in tl.static_range(CHUNK):
            x = rows[i].to(tl.float32)
            earlier = window
            if ids_ptr is not None:
                earlier = same_document(window, window_ids, ids[i])
                window_ids = window_ids[1:] + (ids[i],)
            y = pre_activation(x, earlier, taps, bias)
            window = window[1:] + (x,)
            y = (y * sigmoid(y)).to(y_ptr.dtype.element_ty)
            place = (first + i).to(tl.int64) * channels + channel
            tl.store(y_ptr + place, y, mask=(channel < channels) & (first + i < length))


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    document_ids: Tensor | None,
    initial_state: Tensor | None,
    walk: Walk = FORWARD,
) -> Tensor:
    """Filters a batch; see `convolution_operators.convolve`."""
    batch, length, channels = x.shape
    x, taps = contiguous_rows(x), contiguous_taps(weight)
    y = x.new_empty(batch, length, channels)
    walk = fitted(walk, length, len(taps))
    grid = (triton.cdiv(channels, walk.channels), -(-length // walk.rows), batch)
    _forward[grid](
        x,
        taps,
        bias,
        contiguous(document_ids),
        contiguous(initial_state),
        y,
        length,
        channels,
        x.stride(0),
        x.stride(1),
        len(taps),
        walk.rows,
        walk.chunk,
        walk.channels,
        num_warps=walk.warps,
    )
    return y


def contiguous_rows(x: Tensor) -> Tensor:
    """Copies only if channels are not next to each other: slices of wider rows are read as is."""
    return x if x.stride(-1) == 1 else x.contiguous()


def contiguous(x: Tensor | None) -> Tensor | None:
    """Copies what there is, if it is not contiguous."""
    return None if x is None else x.contiguous()


def contiguous_taps(weight: Tensor) -> Tensor:
    """(channels, 1, kernel) as (kernel, channels), so that neighbouring threads load neighbours."""
    return weight.flatten(1).t().contiguous()


def fitted(walk: Walk, length: int, kernel: int) -> Walk:
    """Narrows the walk of a long filter, for registers, and shortens that of a short sequence.

    Decoding takes one row at a time.
    """
    rows = max(walk.chunk, min(walk.rows, triton.next_power_of_2(length)))
    return walk._replace(channels=walk.channels // (1 if kernel <= 4 else 2), rows=rows)
