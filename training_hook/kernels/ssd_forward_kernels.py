"""The SSD scan of Mamba-2 on a GPU, forward: three kernels and no float32 states in memory.

    _decays   softplus of the time steps and the decays inside each chunk, a few MB
    _carry    the state along the chunks; writes the state before each chunk
    _scan     y of each chunk: masked product within it, state before it, skip connection

The first two are `ssd_state_kernels`. A program of `_scan` owns a chunk of all heads of a group, so
C B^T is formed once for them, and B and C are read once. What is computed is said by `ssd`.

Traffic of a layer of 64 heads of 64, 8 groups, state 128 and 16,384 tokens in BF16: x is 134 MB, B
and C 67 MB, states 134 MB in chunks of 128 (268 MB in chunks of 64). Nothing is kept for the
backward pass but the inputs: it makes decays and states again.

x, B and C are read where the convolution wrote them: one tensor (batch, length, heads * head_dim +
2 * groups * state_size), columns x, B, C. dt is read as a slice of the projection. Sums are in a
fixed order: two runs are equal bit for bit.

Source: Dao and Gu 2024, arXiv:2405.21060, section 6.
"""

# Triton's compiled functions are called with a grid in brackets, which no stub describes.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from training_hook.kernels.ssd_state_kernels import (
    Inputs,
    Launch,
    carry_forward,
    make_decays,
    precision,
)

SCAN = (Launch(128, 8, 3), Launch(64, 4, 2), Launch(64, 4, 1))
"""Of `_scan`, for `Inputs.fit`; the chunk is that of the whole forward pass."""


@triton.jit
def _scan(
    xbc_ptr,
    decays_ptr,
    ids_ptr,
    states_ptr,
    D_ptr,
    y_ptr,
    length,
    padded,
    chunks,
    xbc_batch,
    xbc_row,
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
    """Writes y (batch, length, heads * head_dim) of one chunk for the heads of one group.

    y_q = sum over k <= q of (C_q . B_k) 2^(log_q - log_k) step_k x_k + enter_q S C_q + D x_q
    """
    per_group: tl.constexpr = HEADS // GROUPS
    chunk, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64) // GROUPS
    group, start = tl.program_id(1) % GROUPS, chunk * Q
    q, n, p = tl.arange(0, Q), tl.arange(0, N), tl.arange(0, BLOCK_P)
    inside = start + q < length
    xbc_ptr += row * xbc_batch + start * xbc_row
    maps = xbc_ptr + HEADS * P + group * N + q[:, None] * xbc_row + n[None, :]
    B = tl.load(maps, mask=inside[:, None], other=0.0)
    C = tl.load(maps + GROUPS * N, mask=inside[:, None], other=0.0)
    scores = tl.dot(C, tl.trans(B), input_precision=PRECISION)
    visible = q[:, None] >= q[None, :]
    if HAS_IDS:
        ids_ptr += row * ids_batch + tl.minimum(start + q, length - 1)
        ids = tl.load(ids_ptr)
        visible &= ids[:, None] == ids[None, :]
    real = p < P
    xy_mask = inside[:, None] & real[None, :]
    y_ptr += (row * length + start) * (HEADS * P) + q[:, None] * (HEADS * P) + p[None, :]
    states_ptr += (row * chunks + chunk) * (HEADS * P * N) + p[:, None] * N + n[None, :]
    xbc_ptr += q[:, None] * xbc_row + p[None, :]
    decays_ptr += row * HEADS * 4 * padded + start + q
    for i in range(per_group):
        head = group * per_group + i
        decays = decays_ptr + head * 4 * padded
        x = tl.load(xbc_ptr + head * P, mask=xy_mask, other=0.0)
        state = tl.load(states_ptr + head * (P * N), mask=real[:, None], other=0.0)
        step, log = tl.load(decays), tl.load(decays + padded)
        # masked before exp2: what lies above the diagonal overflows
        decay = tl.exp2(tl.where(visible, log[:, None] - log[None, :], float("-inf")))
        y = tl.dot(C, tl.trans(state), input_precision=PRECISION)
        y *= tl.load(decays + 2 * padded)[:, None]
        mixing = (scores * decay * step[None, :]).to(x.dtype)
        y = tl.dot(mixing, x, y, input_precision=PRECISION)
        y += tl.load(D_ptr + head).to(tl.float32) * x.to(tl.float32)
        tl.store(y_ptr + head * P, y.to(x.dtype), mask=xy_mask)


def forward(inputs: Inputs, launch: Launch | None = None) -> tuple[Tensor, Tensor]:
    """Scans a batch; see `ssd_operators.ssd_packed`."""
    inputs, launch = inputs.readable(), launch or inputs.fit(SCAN)
    decays = make_decays(inputs, launch.chunk)
    states, final = carry_forward(inputs, decays, launch.chunk)
    batch, chunks, heads, head_dim, state_size = states.shape
    length = inputs.xbc.shape[1]
    y = inputs.xbc.new_empty(batch, length, heads * head_dim)
    _scan[(chunks, batch * inputs.groups)](
        inputs.xbc,
        decays,
        inputs.document_ids,
        states,
        inputs.D,
        y,
        length,
        decays.shape[-1],
        chunks,
        *inputs.xbc.stride()[:2],
        inputs.ids_stride,
        heads,
        inputs.groups,
        head_dim,
        state_size,
        inputs.document_ids is not None,
        launch.chunk,
        inputs.block_p,
        precision(y.dtype),
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    return y, final
