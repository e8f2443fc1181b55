"""The gated group norm on a GPU: forward reads and writes once, and so does backward.

A program, mostly a single warp, walks over rows of one group, whose values stay in registers until
their mean square is known; so nothing goes through shared memory and no warp waits for another. A
group is cut into parts that are powers of two, as the compiler wants them, so that no lane is idle
with groups like 1,280. Saved for backward is only the inverse root mean square, one FP32 value for
each row and group. Each program sums the gradient of its weights for itself, and a second kernel
adds these up, so that results are the same in every run.

What is computed is said by `norm.GatedGroupNorm`.
"""

# Triton's compiled functions are called with a grid in brackets, which no stub describes.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# It compiles sums of tuples, but not tuples with stars.
# ruff: noqa: RUF005

from typing import NamedTuple

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from training_hook.kernels.activation_kernels import sigmoid
from training_hook.kernels.sum_kernels import add_up


class Walk(NamedTuple):
    """What one program does, and in how many registers."""

    rows: int
    values: int
    """Of a row in each thread, at most; with more, a row takes more warps."""


FORWARD = Walk(rows=8, values=40)
BACKWARD = Walk(rows=32, values=24)
_MOST_PARTS = 8


@triton.jit
def _load_parts(ptr, inside, GROUP: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr):
    """A row of a group in parts, zero beyond its end; all zero if the row is not inside."""
    parts = ()
    for p in tl.static_range(PARTS):
        column = p * PART + tl.arange(0, PART)
        part = tl.load(ptr + column, mask=inside & (column < GROUP), other=0.0)
        parts = parts + (part.to(tl.float32),)
    return parts


@triton.jit
def _store_part(ptr, value, inside, p: tl.constexpr, GROUP: tl.constexpr, PART: tl.constexpr):
    column = p * PART + tl.arange(0, PART)
    tl.store(ptr + column, value.to(ptr.dtype.element_ty), mask=inside & (column < GROUP))


@triton.jit
def _forward(
    x_ptr,
    gate_ptr,
    weight_ptr,
    y_ptr,
    inverse_ptr,
    tokens,
    groups,
    x_stride,
    gate_stride,
    epsilon,
    GROUP: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    group = tl.program_id(0)
    begin, size = group * GROUP, groups * GROUP
    weight = _load_parts(weight_ptr + begin, True, GROUP, PART, PARTS)
    for i in range(0, ROWS):
        row = (tl.program_id(1) * ROWS + i).to(tl.int64)
        inside = row < tokens
        x = _load_parts(x_ptr + row * x_stride + begin, inside, GROUP, PART, PARTS)
        gate = _load_parts(gate_ptr + row * gate_stride + begin, inside, GROUP, PART, PARTS)
        products, squares = (), tl.zeros((PART,), tl.float32)
        for p in tl.static_range(PARTS):
            product = x[p] * (gate[p] * sigmoid(gate[p]))
            squares += product * product
            products = products + (product,)
        inverse = tl.rsqrt(tl.sum(squares, 0) / GROUP + epsilon)
        tl.store(inverse_ptr + row * groups + group, inverse, mask=inside)
        for p in tl.static_range(PARTS):
            y = products[p] * inverse * weight[p]
            _store_part(y_ptr + row * size + begin, y, inside, p, GROUP, PART)


@triton.jit
def _backward(
    dy_ptr,
    x_ptr,
    gate_ptr,
    weight_ptr,
    inverse_ptr,
    dx_ptr,
    dgate_ptr,
    partial_ptr,
    tokens,
    groups,
    dy_stride,
    x_stride,
    gate_stride,
    dgate_stride,
    GROUP: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    group = tl.program_id(0)
    begin, size = group * GROUP, groups * GROUP
    weight = _load_parts(weight_ptr + begin, True, GROUP, PART, PARTS)
    sums = ()
    for _ in tl.static_range(PARTS):
        sums = sums + (tl.zeros((PART,), tl.float32),)
    for i in range(0, ROWS):
        row = (tl.program_id(1) * ROWS + i).to(tl.int64)
        inside = row < tokens
        dy = _load_parts(dy_ptr + row * dy_stride + begin, inside, GROUP, PART, PARTS)
        x = _load_parts(x_ptr + row * x_stride + begin, inside, GROUP, PART, PARTS)
        gate = _load_parts(gate_ptr + row * gate_stride + begin, inside, GROUP, PART, PARTS)
        inverse = tl.load(inverse_ptr + row * groups + group, mask=inside, other=0.0)
        # y = weight * normal, normal = x * silu(gate) * inverse
        openings, normals, added, along = (), (), (), tl.zeros((PART,), tl.float32)
        for p in tl.static_range(PARTS):
            opening = sigmoid(gate[p])
            normal = x[p] * (gate[p] * opening) * inverse
            by_weight = dy[p] * normal
            along += by_weight * weight[p]
            openings, normals = openings + (opening,), normals + (normal,)
            added = added + (sums[p] + by_weight,)
        sums = added
        along = tl.sum(along, 0) / GROUP
        for p in tl.static_range(PARTS):
            silu = gate[p] * openings[p]
            slope = (dy[p] * weight[p] - normals[p] * along) * inverse
            dgate = slope * x[p] * (openings[p] + silu * (1.0 - openings[p]))
            _store_part(dx_ptr + row * size + begin, slope * silu, inside, p, GROUP, PART)
            _store_part(dgate_ptr + row * dgate_stride + begin, dgate, inside, p, GROUP, PART)
    place = tl.program_id(1).to(tl.int64) * size + begin
    for p in tl.static_range(PARTS):
        _store_part(partial_ptr + place, sums[p], True, p, GROUP, PART)


def forward(
    x: Tensor, gate: Tensor, weight: Tensor, groups: int, epsilon: float, walk: Walk = FORWARD
) -> tuple[Tensor, Tensor]:
    """Normalizes rows; see `norm_operators.gated_norm`."""
    y = x.new_empty(x.shape)
    inverse = x.new_empty(*x.shape[:-1], groups, dtype=torch.float32)
    x, gate = _rows(x), _rows(gate)
    tokens, group = len(x), x.shape[1] // groups
    part, parts = _parts(group)
    _forward[(groups, -(-tokens // walk.rows))](
        x,
        gate,
        weight.contiguous(),
        y,
        inverse,
        tokens,
        groups,
        x.stride(0),
        gate.stride(0),
        epsilon,
        group,
        part,
        parts,
        walk.rows,
        num_warps=_warps(part * parts, walk),
    )
    return y, inverse


def backward(
    dy: Tensor,
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    inverse: Tensor,
    dgate: Tensor | None = None,
    walk: Walk = BACKWARD,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns all gradients; see `norm_operators.gated_norm_backward`.

    That of the gate is written into `dgate` if it is given, a slice of wider rows.
    """
    dgate = gate.new_empty(x.shape) if dgate is None else dgate
    dx, dweight = x.new_empty(x.shape), weight.new_empty(weight.shape)
    dy, x, gate, dgate_rows = _rows(dy), _rows(x), _rows(gate), dgate.view(-1, dgate.shape[-1])
    groups = inverse.shape[-1]
    tokens, group = len(x), x.shape[1] // groups
    part, parts = _parts(group)
    programs = -(-tokens // walk.rows)
    partial = x.new_empty(programs, 1, x.shape[1], dtype=torch.float32)
    _backward[(groups, programs)](
        dy,
        x,
        gate,
        weight.contiguous(),
        inverse,
        dx,
        dgate_rows,
        partial,
        tokens,
        groups,
        dy.stride(0),
        x.stride(0),
        gate.stride(0),
        dgate_rows.stride(0),
        group,
        part,
        parts,
        walk.rows,
        num_warps=_warps(part * parts, walk),
    )
    add_up(partial, dweight)
    return dx, dgate, dweight


def _rows(x: Tensor) -> Tensor:
    """(..., size) as a matrix; a slice of wider rows stays where it is."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def _parts(group: int) -> tuple[int, int]:
    """Returns the size of parts that leave few columns idle, and their number.

    256 BF16 values are one load of 16 bytes for each lane of a warp.
    """
    fitting = [part for part in (256, 128, 64) if group % part == 0]
    part = fitting[0] if fitting else min(256, _power_of_two(group))
    while group > _MOST_PARTS * part:
        part *= 2
    return part, -(-group // part)


def _warps(values: int, walk: Walk) -> int:
    return min(16, _power_of_two(-(-values // (32 * walk.values))))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
