"""Decays of the time steps, and states carried along the chunks of an SSD scan, on a GPU.

The usual kernels write what each chunk adds to the state in float32, read it to pass it on, and
write it again. Here a program owns a tile of (head_dim, state_size) of one head, walks along all
chunks with the state in registers in float32, and writes it once, in the dtype of x: tiles, heads
and sequences are independent, which is parallel enough (256 programs for 2 sequences of 64 heads of
64 x 128). Both passes of the scan and both directions use it, each with chunks of its own.

Logarithms are to base 2.
"""

# Triton's compiled functions are called with a grid in brackets, which no stub describes.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

from typing import NamedTuple

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor


class Launch(NamedTuple):
    """How a kernel runs: positions in a chunk, warps of a program, loads in flight."""

    chunk: int
    warps: int
    stages: int


CARRY = Launch(chunk=0, warps=4, stages=3)
"""Of `_carry`, whose chunk is that of the pass that it is part of."""
CARRY_TILE = 64
"""Largest tile of a state along head_dim and along state_size."""
DECAY_HEADS = 16
"""Heads of a program of `_decays`: 32 bytes of BF16 in a row, what memory is read by."""

_LOG2_E = tl.constexpr(1.4426950408889634)


class Inputs(NamedTuple):
    """What a scan reads, as `ssd_operators.ssd_packed` describes it."""

    xbc: Tensor
    dt: Tensor
    A: Tensor
    D: Tensor
    dt_bias: Tensor
    document_ids: Tensor | None
    initial_state: Tensor | None
    groups: int
    state_size: int

    def readable(self) -> "Inputs":
        """Copies the tensors that the kernels do not read as they are."""
        tensors = {name: t for name, t in self._asdict().items() if isinstance(t, Tensor)}
        return self._replace(**{name: readable(t) for name, t in tensors.items()})

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.dt.shape[-1]

    @property
    def head_dim(self) -> int:
        """Columns of x that a head has."""
        return (self.xbc.shape[-1] - 2 * self.groups * self.state_size) // self.heads

    @property
    def ids_stride(self) -> int:
        """Distance of the document ids of two sequences."""
        return 0 if self.document_ids is None else self.document_ids.stride(0)

    @property
    def block_p(self) -> int:
        """The least power of two that holds head_dim, and 16, which tensor cores need."""
        return max(16, 1 << (self.head_dim - 1).bit_length())

    def fit(self, launches: tuple[Launch, Launch, Launch]) -> Launch:
        """Returns the launch for states of up to 16, 32 or 64 KB a head: tiles grow with them."""
        size = self.xbc.dtype.itemsize * self.block_p * self.state_size
        return launches[0 if size <= 16_384 else 1 if size <= 32_768 else 2]


@triton.jit
def _softplus(x):
    """log(1 + e^x) to full relative precision: as a series where the sum would round e^x away."""
    small = tl.exp(-tl.abs(x))
    series = small * (1 - small * (1 / 2 - small * (1 / 3 - small * (1 / 4 - small / 5))))
    return tl.maximum(x, 0.0) + tl.where(small < 0.03, series, tl.log(1 + small))


@triton.jit
def _decays(
    dt_ptr,
    bias_ptr,
    A_ptr,
    ids_ptr,
    decays_ptr,
    length,
    padded,
    dt_batch,
    dt_row,
    ids_batch,
    HEADS: tl.constexpr,
    HAS_IDS: tl.constexpr,
    Q: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Writes four rows of (batch, heads, 4, padded) for a chunk: step, log, enter, leave.

    log_q is the sum of decays from the start of the chunk up to and with q; enter_q what is left at
    q of the state before the chunk, leave_k what is left at its end of what k added. A step after
    the end of a sequence is zero: it neither decays nor adds.
    """
    start, row = tl.program_id(0).to(tl.int64) * Q, tl.program_id(1).to(tl.int64)
    head, q = tl.program_id(2) * BLOCK_H + tl.arange(0, BLOCK_H), tl.arange(0, Q)
    real = head < HEADS
    inside = real[:, None] & (start + q < length)[None, :]
    dt = dt_ptr + row * dt_batch + start * dt_row + q[None, :] * dt_row + head[:, None]
    dt = tl.load(dt, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + head, mask=real, other=0.0).to(tl.float32)
    rate = tl.load(A_ptr + head, mask=real, other=0.0).to(tl.float32) * _LOG2_E
    step = tl.where(inside, _softplus(dt + bias[:, None]), 0.0)
    log = tl.cumsum(step * rate[:, None], 1)
    total = tl.sum(tl.where(q[None, :] == Q - 1, log, 0.0), 1)
    enter, leave = tl.exp2(log), tl.exp2(total[:, None] - log)
    if HAS_IDS:
        ids_ptr += row * ids_batch
        ids = tl.load(ids_ptr + tl.minimum(start + q, length - 1))
        # the state before the first position belongs to document 0
        before = tl.load(ids_ptr + tl.maximum(start - 1, 0))
        before = tl.where(start > 0, before, 0)
        last = tl.load(ids_ptr + tl.minimum(start + Q, length) - 1)
        enter = tl.where((ids == before)[None, :], enter, 0.0)
        leave = tl.where((ids == last)[None, :], leave, 0.0)
    out = decays_ptr + (row * HEADS + head[:, None]) * 4 * padded + start + q[None, :]
    tl.store(out, step, mask=real[:, None])
    tl.store(out + padded, log, mask=real[:, None])
    tl.store(out + 2 * padded, enter, mask=real[:, None])
    tl.store(out + 3 * padded, leave, mask=real[:, None])


@triton.jit
def _carry(
    values_ptr,
    maps_ptr,
    decays_ptr,
    first_ptr,
    states_ptr,
    last_ptr,
    length,
    padded,
    chunks,
    values_batch,
    values_row,
    maps_batch,
    maps_row,
    HEADS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    REVERSE: tl.constexpr,
    Q: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Carries a tile of one head's state along the chunks and writes what each chunk is given.

    Forward, values are x and maps B: state = enter_Q state + sum_k leave_k step_k x_k B_k^T.
    In reverse, values are dy and maps C, and the same line gives the gradient by the state before
    a chunk from that by the state after it: enter_Q state + sum_q enter_q dy_q C_q^T.
    """
    across: tl.constexpr = N // BLOCK_N
    tiles: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P * across
    index = tl.program_id(0).to(tl.int64) // tiles
    row, head = index // HEADS, index % HEADS
    p = tl.program_id(0) % tiles // across * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.program_id(0) % across * BLOCK_N + tl.arange(0, BLOCK_N)
    q = tl.arange(0, Q)
    real = p[:, None] < P
    tile = p[:, None] * N + n[None, :]
    values_ptr += row * values_batch + head * P
    maps_ptr += row * maps_batch + head // PER_GROUP * N
    decays_ptr += index * 4 * padded
    states_ptr += (row * chunks * HEADS + head) * P * N
    ends = index * P * N + tile
    if HAS_FIRST:
        state = tl.load(first_ptr + ends, mask=real, other=0.0).to(tl.float32)
    else:
        state = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for i in range(chunks):
        chunk = chunks - 1 - i if REVERSE else i
        start = tl.cast(chunk, tl.int64) * Q
        out = states_ptr + tl.cast(chunk, tl.int64) * (HEADS * P * N) + tile
        tl.store(out, state.to(states_ptr.dtype.element_ty), mask=real)
        inside = start + q < length
        values = values_ptr + start * values_row + q[None, :] * values_row + p[:, None]
        values = tl.load(values, mask=real & inside[None, :], other=0.0)
        maps = maps_ptr + start * maps_row + q[:, None] * maps_row + n[None, :]
        maps = tl.load(maps, mask=inside[:, None], other=0.0)
        enter = decays_ptr + 2 * padded + start
        kept = tl.load(enter + Q - 1)
        if REVERSE:
            weight = tl.load(enter + q)
        else:
            weight = tl.load(enter + padded + q) * tl.load(decays_ptr + start + q)
        weighted = (values.to(tl.float32) * weight[None, :]).to(values.dtype)
        # not added up by the product, which would then wait for the load
        added = tl.dot(weighted, maps, input_precision=PRECISION)
        state = tl.fma(state, kept, added)
    tl.store(last_ptr + ends, state, mask=real)


def make_decays(inputs: Inputs, chunk: int) -> Tensor:
    """Returns step, log, enter and leave of `_decays`, FP32, (batch, heads, 4, padded length)."""
    batch, length, heads = inputs.dt.shape
    chunks = -(-length // chunk)
    decays = inputs.dt.new_empty(batch, heads, 4, chunks * chunk, dtype=torch.float32)
    _decays[(chunks, batch, -(-heads // DECAY_HEADS))](
        inputs.dt,
        inputs.dt_bias,
        inputs.A,
        inputs.document_ids,
        decays,
        length,
        chunks * chunk,
        *inputs.dt.stride()[:2],
        inputs.ids_stride,
        heads,
        inputs.document_ids is not None,
        chunk,
        DECAY_HEADS,
    )
    return decays


def carry_forward(inputs: Inputs, decays: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Carries states along the chunks.

    Args:
        inputs: of the scan.
        decays: of `make_decays`.
        chunk: positions in a chunk.

    Returns:
        The state before each chunk, (batch, chunks, heads, head_dim, state_size) in the dtype of
        x, and the last one, FP32, (batch, heads, head_dim, state_size).
    """
    B = inputs.xbc[:, :, inputs.heads * inputs.head_dim :]
    return _carry_along(inputs, inputs.xbc, B, decays, inputs.initial_state, chunk, False)


def carry_back(
    inputs: Inputs, decays: Tensor, dy: Tensor, dfinal: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """Carries gradients by states from the last chunk to the first, like `carry_forward`.

    Returns:
        The gradient by the state after each chunk, and that by the initial state.
    """
    C = inputs.xbc[:, :, inputs.xbc.shape[2] - inputs.groups * inputs.state_size :]
    return _carry_along(inputs, dy, C, decays, dfinal, chunk, True)


def _carry_along(
    inputs: Inputs,
    values: Tensor,
    maps: Tensor,
    decays: Tensor,
    first: Tensor | None,
    chunk: int,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    batch, heads, _, padded = decays.shape
    head_dim, state_size = inputs.head_dim, inputs.state_size
    tile_p, tile_n = min(inputs.block_p, CARRY_TILE), min(state_size, CARRY_TILE)
    states = values.new_empty(batch, padded // chunk, heads, head_dim, state_size)
    last = decays.new_empty(batch, heads, head_dim, state_size)
    _carry[(batch * heads * -(-head_dim // tile_p) * (state_size // tile_n),)](
        values,
        maps,
        decays,
        first,
        states,
        last,
        values.shape[1],
        padded,
        padded // chunk,
        *values.stride()[:2],
        *maps.stride()[:2],
        heads,
        heads // inputs.groups,
        head_dim,
        state_size,
        first is not None,
        reverse,
        chunk,
        tile_p,
        tile_n,
        precision(values.dtype),
        num_warps=CARRY.warps,
        num_stages=CARRY.stages,
    )
    return states, last


def readable(x: Tensor) -> Tensor:
    """Copies a tensor that the kernels do not read as it is.

    Sequences of rows are: slices of wider rows are read in place. All else has to be contiguous.
    """
    return x if x.ndim == 3 and x.stride(-1) == 1 else x.contiguous()


def precision(dtype: torch.dtype) -> str:
    """How products of FP32 are done: three of TF32 on tensor cores keep what FP32 holds."""
    return "tf32x3" if dtype == torch.float32 else "ieee"
