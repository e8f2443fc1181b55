"""The SSD scan of Mamba-2 on a GPU, backward: no partial gradients by head, no atomics.

    _decays, _carry   again as in the forward pass: the state before each chunk
    _carry            in reverse: the gradient by the state after each chunk
    _dx_dB            dx and dB of each chunk
    _dC               dC of each chunk
    _time_steps       ddt, and what each chunk adds to the gradients by A, D and dt_bias

With S the state before a chunk, R the gradient by the state after it, w = 2^(log_q - log_k) where
q >= k, V = (C_q . B_k) w and G = dy_q . x_k, all by head:

    dx_k = step_k (sum_q V dy_q + leave_k R B_k) + D dy_k
    dB_k = sum over heads of (sum_q w step_k G C_q) + leave_k step_k R^T x_k
    dC_q = sum over heads of (sum_k w step_k G B_k) + enter_q S^T dy_q

The first sums of dB and dC are linear in w step_k G, which is added up over the heads of a group in
registers and multiplied once. A decay at t scales all paths k -> q with k < t <= q, those from S to
q >= t, from k < t to R, and from S to R; the four are sums before and after t of

    column_k = sum_q V G    row_q = sum_k V G step_k    entered_q = enter_q dy_q . S C_q
    left_k = leave_k x_k . R B_k    through = enter_Q R . S

and none of them is found as a difference of large numbers but row - step column, which is exact to
float32. The chunk is 64, so that the sums over heads stay in registers; with dC in the same kernel
they do not, which costs more than reading dy and R again.
"""

# Triton's compiled functions are called with a grid in brackets, which no stub describes.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from training_hook.kernels.ssd_state_kernels import (
    Inputs,
    Launch,
    carry_back,
    carry_forward,
    make_decays,
    precision,
    readable,
)
from training_hook.kernels.sum_kernels import add_up

DX_DB = (Launch(64, 8, 3), Launch(64, 8, 2), Launch(64, 8, 1))
"""Of `_dx_dB`, for `Inputs.fit`; the chunk is that of the whole backward pass."""
DC = (Launch(64, 4, 3), Launch(64, 8, 2), Launch(64, 8, 1))
"""Of `_dC`, which has the chunk of `_dx_dB`."""
TIME_STEP_HEADS = 16
"""Heads of a program of `_time_steps`."""


@triton.jit
def _dx_dB(
    xbc_ptr,
    dy_ptr,
    decays_ptr,
    ids_ptr,
    after_ptr,
    D_ptr,
    dxbc_ptr,
    sums_ptr,
    pairs_ptr,
    length,
    padded,
    chunks,
    xbc_batch,
    xbc_row,
    dy_batch,
    dy_row,
    ids_batch,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    HAS_IDS: tl.constexpr,
    Q: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes dx and dB of one chunk for a group, and what `_dC` and `_time_steps` read.

    Those are w step G summed over the heads, FP32, (batch, chunks, groups, k, q), and of the sums
    (batch, heads, 5, padded) column, row, left and dy . x. Square tiles have k down and q across,
    so that V and w step G are first factors.
    """
    per_group: tl.constexpr = HEADS // GROUPS
    width: tl.constexpr = HEADS * P + 2 * GROUPS * N
    chunk, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64) // GROUPS
    group, start = tl.program_id(1) % GROUPS, chunk * Q
    q, n, p = tl.arange(0, Q), tl.arange(0, N), tl.arange(0, BLOCK_P)
    inside = start + q < length
    xbc_ptr += row * xbc_batch + start * xbc_row
    maps = xbc_ptr + HEADS * P + group * N + q[:, None] * xbc_row + n[None, :]
    B = tl.load(maps, mask=inside[:, None], other=0.0)
    C = tl.load(maps + GROUPS * N, mask=inside[:, None], other=0.0)
    pairs_ptr += ((row * chunks + chunk) * GROUPS + group) * (Q * Q)
    pairs_ptr += q[:, None] * Q + q[None, :]
    # through memory: a product that other products follow is laid out along the rows, and 8 warps
    # would have this one twice in their registers for the whole loop
    tl.store(pairs_ptr, tl.dot(B, tl.trans(C), input_precision=PRECISION))
    tl.debug_barrier()
    scores = tl.load(pairs_ptr)
    visible = q[:, None] <= q[None, :]
    if HAS_IDS:
        ids_ptr += row * ids_batch + tl.minimum(start + q, length - 1)
        ids = tl.load(ids_ptr)
        visible &= ids[:, None] == ids[None, :]
    real = p < P
    xy_mask = inside[:, None] & real[None, :]
    dxbc_ptr += (row * length + start) * width
    dx_ptr = dxbc_ptr + q[:, None] * width + p[None, :]
    xbc_ptr += q[:, None] * xbc_row + p[None, :]
    dy_ptr += row * dy_batch + start * dy_row + q[:, None] * dy_row + p[None, :]
    after_ptr += (row * chunks + chunk) * (HEADS * P * N) + p[:, None] * N + n[None, :]
    decays_ptr += row * HEADS * 4 * padded + start + q
    sums_ptr += row * HEADS * 5 * padded + start + q
    dB = tl.zeros((Q, N), tl.float32)
    pairs = tl.zeros((Q, Q), tl.float32)
    for i in range(per_group):
        head = group * per_group + i
        x = tl.load(xbc_ptr + head * P, mask=xy_mask, other=0.0)
        dy = tl.load(dy_ptr + head * P, mask=xy_mask, other=0.0)
        after = tl.load(after_ptr + head * (P * N), mask=real[:, None], other=0.0)
        decays, sums = decays_ptr + head * 4 * padded, sums_ptr + head * 5 * padded
        step, log = tl.load(decays), tl.load(decays + padded)
        leave = tl.load(decays + 3 * padded)

        products = tl.dot(x, tl.trans(dy), input_precision=PRECISION)
        diagonal = q[:, None] == q[None, :]
        tl.store(sums + 4 * padded, tl.sum(tl.where(diagonal, products, 0.0), 1))
        # masked before exp2: what lies below the diagonal overflows
        decay = tl.exp2(tl.where(visible, log[None, :] - log[:, None], float("-inf")))
        products *= decay
        column = products * scores
        tl.store(sums, tl.sum(column, 1))
        tl.store(sums + padded, tl.sum(column * step[:, None], 0))
        pairs += products * step[:, None]

        dx = tl.dot(B, tl.trans(after), input_precision=PRECISION) * leave[:, None]
        tl.store(sums + 3 * padded, tl.sum(dx * x.to(tl.float32), 1))
        mixing = (scores * decay).to(x.dtype)
        dx = dx * step[:, None] + tl.load(D_ptr + head).to(tl.float32) * dy.to(tl.float32)
        dx += tl.dot(mixing, dy, input_precision=PRECISION) * step[:, None]
        tl.store(dx_ptr + head * P, dx.to(x.dtype), mask=xy_mask)
        dB += tl.dot(x, after, input_precision=PRECISION) * (leave * step)[:, None]
    tl.store(pairs_ptr, pairs)
    dB = tl.dot(pairs.to(B.dtype), C, dB, input_precision=PRECISION)
    dmaps = dxbc_ptr + HEADS * P + group * N + q[:, None] * width + n[None, :]
    tl.store(dmaps, dB.to(B.dtype), mask=inside[:, None])


@triton.jit
def _dC(
    xbc_ptr,
    dy_ptr,
    decays_ptr,
    states_ptr,
    after_ptr,
    pairs_ptr,
    dxbc_ptr,
    sums_ptr,
    through_ptr,
    length,
    padded,
    chunks,
    xbc_batch,
    xbc_row,
    dy_batch,
    dy_row,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    Q: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes dC of one chunk for a group; by head, entered and R . S (batch, heads, chunks)."""
    per_group: tl.constexpr = HEADS // GROUPS
    width: tl.constexpr = HEADS * P + 2 * GROUPS * N
    chunk, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64) // GROUPS
    group, start = tl.program_id(1) % GROUPS, chunk * Q
    q, n, p = tl.arange(0, Q), tl.arange(0, N), tl.arange(0, BLOCK_P)
    inside, real = start + q < length, p < P
    xy_mask = inside[:, None] & real[None, :]
    maps = xbc_ptr + row * xbc_batch + start * xbc_row + HEADS * P + group * N
    maps += q[:, None] * xbc_row + n[None, :]
    B = tl.load(maps, mask=inside[:, None], other=0.0)
    C = tl.load(maps + GROUPS * N, mask=inside[:, None], other=0.0)
    pairs_ptr += ((row * chunks + chunk) * GROUPS + group) * (Q * Q)
    pairs = tl.load(pairs_ptr + q[:, None] * Q + q[None, :]).to(B.dtype)
    dC = tl.dot(tl.trans(pairs), B, input_precision=PRECISION)
    dy_ptr += row * dy_batch + start * dy_row + q[:, None] * dy_row + p[None, :]
    tile = (row * chunks + chunk) * (HEADS * P * N) + p[:, None] * N + n[None, :]
    decays_ptr += row * HEADS * 4 * padded + start + q
    sums_ptr += row * HEADS * 5 * padded + start + q
    through_ptr += row * HEADS * chunks + chunk
    for i in range(per_group):
        head = group * per_group + i
        dy = tl.load(dy_ptr + head * P, mask=xy_mask, other=0.0)
        state = tl.load(states_ptr + tile + head * (P * N), mask=real[:, None], other=0.0)
        after = tl.load(after_ptr + tile + head * (P * N), mask=real[:, None], other=0.0)
        enter = tl.load(decays_ptr + (head * 4 + 2) * padded)
        entered = tl.dot(C, tl.trans(state), input_precision=PRECISION) * dy.to(tl.float32)
        tl.store(sums_ptr + (head * 5 + 2) * padded, tl.sum(entered, 1) * enter)
        weighted = (dy.to(tl.float32) * enter[:, None]).to(dy.dtype)
        dC = tl.dot(weighted, state, dC, input_precision=PRECISION)
        through = tl.sum(tl.sum(state.to(tl.float32) * after.to(tl.float32), 1), 0)
        tl.store(through_ptr + head * chunks, through)
    dmaps = dxbc_ptr + (row * length + start) * width + (HEADS * P + GROUPS * N) + group * N
    dmaps += q[:, None] * width + n[None, :]
    tl.store(dmaps, dC.to(B.dtype), mask=inside[:, None])


@triton.jit
def _time_steps(
    dt_ptr,
    bias_ptr,
    A_ptr,
    decays_ptr,
    sums_ptr,
    through_ptr,
    ddt_ptr,
    partial_ptr,
    length,
    padded,
    chunks,
    dt_batch,
    dt_row,
    ddt_batch,
    ddt_row,
    HEADS: tl.constexpr,
    Q: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Writes ddt of a chunk, and its share of dA, dD and ddt_bias, (batch, chunks, 3, heads)."""
    chunk, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    start, head = chunk * Q, tl.program_id(2) * BLOCK_H + tl.arange(0, BLOCK_H)
    q = tl.arange(0, Q)
    real = head < HEADS
    inside = real[:, None] & (start + q < length)[None, :]
    index = row * HEADS + head
    decays = decays_ptr + index[:, None] * 4 * padded + start + q[None, :]
    sums = sums_ptr + index[:, None] * 5 * padded + start + q[None, :]
    step = tl.load(decays, mask=inside, other=0.0)
    column = tl.load(sums, mask=inside, other=0.0)
    left = tl.load(sums + 3 * padded, mask=inside, other=0.0)
    rate = tl.load(A_ptr + head, mask=real, other=0.0).to(tl.float32)

    end = decays_ptr + index * 4 * padded + 2 * padded + start + Q - 1
    through = tl.load(through_ptr + index * chunks + chunk, mask=real, other=0.0)
    through *= tl.load(end, mask=real, other=0.0)
    reached = tl.load(sums + padded, mask=inside, other=0.0) - step * column
    reached += tl.load(sums + 2 * padded, mask=inside, other=0.0)
    kept = step * left
    decay = tl.cumsum(reached, 1, reverse=True) + (tl.cumsum(kept, 1) - kept) + through[:, None]
    decay = tl.where(inside, decay, 0.0)

    bias = tl.load(bias_ptr + head, mask=real, other=0.0).to(tl.float32)
    dt = dt_ptr + row * dt_batch + start * dt_row + q[None, :] * dt_row + head[:, None]
    dt = tl.load(dt, mask=inside, other=0.0).to(tl.float32) + bias[:, None]
    ddt = (column + left + rate[:, None] * decay) * tl.sigmoid(dt)
    ddt = tl.where(inside, ddt, 0.0)
    out = ddt_ptr + row * ddt_batch + start * ddt_row + q[None, :] * ddt_row + head[:, None]
    tl.store(out, ddt.to(ddt_ptr.dtype.element_ty), mask=inside)
    skip = tl.load(sums + 4 * padded, mask=inside, other=0.0)
    partial = partial_ptr + (row * chunks + chunk) * 3 * HEADS + head
    tl.store(partial, tl.sum(decay * step, 1), mask=real)
    tl.store(partial + HEADS, tl.sum(skip, 1), mask=real)
    tl.store(partial + 2 * HEADS, tl.sum(ddt, 1), mask=real)


def backward(
    inputs: Inputs,
    dy: Tensor,
    dfinal: Tensor | None,
    ddt: Tensor | None = None,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns dxbc, ddt, the gradients by A, D and dt_bias (heads, 3), and by the initial state.

    That of dt is written into `ddt` if it is given, a slice of wider rows; without `dfinal` that of
    the last state is 0.
    """
    inputs, dy = inputs.readable(), readable(dy)
    dfinal = None if dfinal is None else dfinal.contiguous()
    launch, dC_launch = launch or inputs.fit(DX_DB), inputs.fit(DC)
    decays = make_decays(inputs, launch.chunk)
    states, _ = carry_forward(inputs, decays, launch.chunk)
    after, dinitial = carry_back(inputs, decays, dy, dfinal, launch.chunk)
    batch, chunks, heads, head_dim, state_size = states.shape
    groups, length, padded = inputs.groups, dy.shape[1], decays.shape[-1]
    dxbc = torch.empty_like(inputs.xbc, memory_format=torch.contiguous_format)
    sums = decays.new_empty(batch, heads, 5, padded)
    through = decays.new_empty(batch, heads, chunks)
    pairs = decays.new_empty(batch, chunks, groups, launch.chunk, launch.chunk)
    sizes = (length, padded, chunks, *inputs.xbc.stride()[:2], *dy.stride()[:2])
    constants = (heads, groups, head_dim, state_size)
    tiles = (launch.chunk, inputs.block_p, precision(dxbc.dtype))
    _dx_dB[(chunks, batch * groups)](
        inputs.xbc,
        dy,
        decays,
        inputs.document_ids,
        after,
        inputs.D,
        dxbc,
        sums,
        pairs,
        *sizes,
        inputs.ids_stride,
        *constants,
        inputs.document_ids is not None,
        *tiles,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    _dC[(chunks, batch * groups)](
        inputs.xbc,
        dy,
        decays,
        states,
        after,
        pairs,
        dxbc,
        sums,
        through,
        *sizes,
        *constants,
        *tiles,
        num_warps=dC_launch.warps,
        num_stages=dC_launch.stages,
    )
    if ddt is None:
        ddt = torch.empty_like(inputs.dt, memory_format=torch.contiguous_format)
    partial = decays.new_empty(batch, chunks, 3, heads)
    _time_steps[(chunks, batch, -(-heads // TIME_STEP_HEADS))](
        inputs.dt,
        inputs.dt_bias,
        inputs.A,
        decays,
        sums,
        through,
        ddt,
        partial,
        length,
        padded,
        chunks,
        *inputs.dt.stride()[:2],
        *ddt.stride()[:2],
        heads,
        launch.chunk,
        TIME_STEP_HEADS,
    )
    by_head = decays.new_empty(heads, 3)
    add_up(partial.flatten(0, 1), by_head)
    return dxbc, ddt, by_head, dinitial
