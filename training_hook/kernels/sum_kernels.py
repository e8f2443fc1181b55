"""Adds up what the programs of a kernel have summed each for itself, always in the same order.

Atomic additions would need no second kernel, but come in another order in every run.
"""

# Triton's compiled functions are called with a grid in brackets, which no stub describes.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

_CHANNELS = 32
_ROWS = 32
_WARPS = 4


@triton.jit
def _add_up(
    partial_ptr,
    weight_ptr,
    bias_ptr,
    rows,
    channels,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part, parts = tl.program_id(1), tl.num_programs(1)
    inside = channel < channels
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    start = 0
    while start < rows:
        row = start + tl.arange(0, ROWS)
        place = (row.to(tl.int64) * parts + part)[:, None] * channels + channel[None, :]
        mask = (row < rows)[:, None] & inside[None, :]
        total += tl.load(partial_ptr + place, mask=mask, other=0.0)
        start += ROWS
    total = tl.sum(total, 0)
    tl.store(weight_ptr + channel * TAPS + part, total, mask=inside & (part < TAPS))
    if bias_ptr is not None:
        tl.store(bias_ptr + channel, total, mask=inside & (part == TAPS))


def add_up(partial: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Writes the sums over rows of partial sums.

    Args:
        partial: FP32, (rows, taps + 1, channels), or without the 1 if there is no bias.
        weight: (channels, ..., taps), contiguous; gets the sums of the first taps.
        bias: (channels,); gets the last.
    """
    rows, parts, channels = partial.shape
    grid = (triton.cdiv(channels, _CHANNELS), parts)
    taps = parts if bias is None else parts - 1
    _add_up[grid](partial, weight, bias, rows, channels, taps, _ROWS, _CHANNELS, num_warps=_WARPS)
