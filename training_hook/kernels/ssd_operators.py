"""The SSD scan on x, B and C side by side: our kernels on a GPU, plain PyTorch elsewhere.

The convolution writes x, B and C as the columns of one tensor and its backward pass reads their
gradients as one; the kernels take and return that tensor, so nothing is split or joined. For the
compiler forward and backward are one opaque operator each. They keep their inputs for the backward
pass and nothing else; `ssd` keeps 1.9 GB of a layer of 64 heads of 64 and 16,384 tokens.
"""

import torch
from torch import Tensor

from training_hook.ssd import ssd

_DTYPES = (torch.bfloat16, torch.float32)
_STATE_SIZES = (16, 32, 64, 128, 256)  # tiles are powers of two; tensor cores need 16
_MAX_STATE_BYTES = 64 * 1024
"""128 x 256 in BF16, 128 x 128 in FP32: beyond, the tiles do not fit in shared memory."""


def ssd_packed(
    xbc: Tensor,
    dt: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    groups: int,
    state_size: int,
    chunk_size: int,
    document_ids: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scans as `ssd`, where the other arguments are described.

    The kernels take BF16 and FP32 on a CUDA device and a state_size that is a power of two; they
    choose their own chunks. All else, and the single steps of decoding, goes through `ssd`.

    Args:
        xbc: x, B and C, (batch, length, heads * head_dim + 2 * groups * state_size).
        dt: (batch, length, heads).
        A: (heads,).
        D: (heads,).
        dt_bias: (heads,).
        groups: number of B and of C.
        state_size: columns of each of them.
        chunk_size: of `ssd`.
        document_ids: int, (batch, length).
        initial_state: (batch, heads, head_dim, state_size).

    Returns:
        y, (batch, length, heads * head_dim), and the state after the last position, FP32.
    """
    if have_kernels(xbc, dt.shape[-1], groups, state_size):
        return scan(xbc, dt, A, D, dt_bias, document_ids, initial_state, groups, state_size)
    maps = groups * state_size
    x, B, C = xbc.split([xbc.shape[-1] - 2 * maps, maps, maps], dim=-1)
    y, final = ssd(
        x.unflatten(-1, (dt.shape[-1], -1)),
        dt,
        A,
        B.unflatten(-1, (groups, -1)),
        C.unflatten(-1, (groups, -1)),
        D,
        dt_bias,
        chunk_size,
        document_ids,
        initial_state,
    )
    return y.flatten(-2), final


@torch.library.custom_op("gristmill::ssd_scan", mutates_args=())
def scan(
    xbc: Tensor,
    dt: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    document_ids: Tensor | None,
    initial_state: Tensor | None,
    groups: int,
    state_size: int,
) -> tuple[Tensor, Tensor]:
    """Scans on a GPU; see `ssd_packed`."""
    # Triton is there only where there is a GPU
    from training_hook.kernels import ssd_forward_kernels
    from training_hook.kernels.ssd_state_kernels import Inputs

    inputs = Inputs(xbc, dt, A, D, dt_bias, document_ids, initial_state, groups, state_size)
    return ssd_forward_kernels.forward(inputs)


@scan.register_fake
def _(
    xbc: Tensor,
    dt: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    document_ids: Tensor | None,
    initial_state: Tensor | None,
    groups: int,
    state_size: int,
) -> tuple[Tensor, Tensor]:
    batch, length, channels = xbc.shape
    heads, inner = dt.shape[-1], channels - 2 * groups * state_size
    final = xbc.new_empty(batch, heads, inner // heads, state_size, dtype=torch.float32)
    return xbc.new_empty(batch, length, inner), final


@torch.library.custom_op("gristmill::ssd_scan_backward", mutates_args=())
def scan_backward(
    dy: Tensor,
    dfinal: Tensor,
    xbc: Tensor,
    dt: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    document_ids: Tensor | None,
    initial_state: Tensor | None,
    groups: int,
    state_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of `scan` from those of its results.

    Returns:
        By xbc; by dt; by A, D and dt_bias, FP32, (heads, 3); by the initial state, FP32.
    """
    # Triton is there only where there is a GPU
    from training_hook.kernels import ssd_backward_kernels
    from training_hook.kernels.ssd_state_kernels import Inputs

    inputs = Inputs(xbc, dt, A, D, dt_bias, document_ids, initial_state, groups, state_size)
    return ssd_backward_kernels.backward(inputs, dy, dfinal)


@scan_backward.register_fake
def _(
    dy: Tensor,
    dfinal: Tensor,
    xbc: Tensor,
    dt: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    document_ids: Tensor | None,
    initial_state: Tensor | None,
    groups: int,
    state_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        xbc.new_empty(xbc.shape),
        dt.new_empty(dt.shape),
        xbc.new_empty(dt.shape[-1], 3, dtype=torch.float32),
        xbc.new_empty(dfinal.shape, dtype=torch.float32),
    )


def _keep_inputs(ctx, inputs, output) -> None:
    *tensors, ctx.groups, ctx.state_size = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy: Tensor, dfinal: Tensor):
    inputs = ctx.saved_tensors
    A, D, dt_bias, _, initial_state = inputs[2:]
    dxbc, ddt, sums, dinitial = scan_backward(dy, dfinal, *inputs, ctx.groups, ctx.state_size)
    by_head = [by.to(t.dtype) for by, t in zip(sums.unbind(1), (A, D, dt_bias), strict=True)]
    dinitial = None if initial_state is None else dinitial.to(initial_state.dtype)
    return dxbc, ddt, *by_head, None, dinitial, None, None


scan.register_autograd(_backward, setup_context=_keep_inputs)


def have_kernels(xbc: Tensor, heads: int, groups: int, state_size: int) -> bool:
    """Says whether the kernels can have what `ssd_packed` is given."""
    if not xbc.is_cuda or xbc.dtype not in _DTYPES or xbc.shape[1] == 1:
        return False
    head_dim = (xbc.shape[-1] - 2 * groups * state_size) // heads
    bytes_of_state = xbc.dtype.itemsize * state_size * (1 << (head_dim - 1).bit_length())
    return state_size in _STATE_SIZES and bytes_of_state <= _MAX_STATE_BYTES
