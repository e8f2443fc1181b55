"""Convolution, scan and gated norm of a Mamba layer as one operator, for training on a GPU.

One after the other they give the same numbers, and each the gradient of its part of the projection,
which a copy has to join: 1% of a step of a model of 1 B. Here all three write where their part
lies. What is kept for the backward pass is the same.
"""

from typing import Any

import torch
from torch import Tensor

from training_hook.kernels.convolution_operators import has_kernel
from training_hook.kernels.ssd_operators import have_kernels


def mixes_at_once(projected: Tensor, widths: list[int], kernel: int, *sizes: int) -> bool:
    """Says whether `mix` can have a projection: whether each of its parts has a kernel.

    Args:
        projected: (batch, length, sum of the widths).
        widths: of gate, what is convolved, and dt.
        kernel: taps of the convolution.
        sizes: groups, and columns of B and of C in each.
    """
    _, xbc, dt = projected.split(widths, dim=-1)
    return has_kernel(xbc, kernel) and have_kernels(xbc, dt.shape[-1], *sizes)


@torch.library.custom_op("gristmill::mamba_mix", mutates_args=())
def mix(
    projected: Tensor,
    taps: Tensor,
    tap_bias: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    document_ids: Tensor | None,
    groups: int,
    state_size: int,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Does what a Mamba layer does between its projections, from an empty state.

    Args:
        projected: gate, x, B, C and dt side by side, (batch, length, 2 * inner + 2 * groups *
            state_size + heads), BF16 or FP32.
        taps: of the convolution, (inner + 2 * groups * state_size, 1, kernel).
        tap_bias: (inner + 2 * groups * state_size,).
        A: (heads,).
        D: (heads,).
        dt_bias: (heads,).
        norm_weight: (inner,).
        document_ids: int, (batch, length), never falling along a row.
        groups: of B, of C and of the norm.
        state_size: columns of B and of C.
        epsilon: of the norm.

    Returns:
        y, (batch, length, inner); and, not differentiable, what is kept: x, B and C after the
        convolution, y before the norm, and the norm's inverse root mean squares.
    """
    # Triton is there only where there is a GPU
    from training_hook.kernels import convolution_kernels, norm_kernels, ssd_forward_kernels

    gate, xbc, dt = _parts(projected, norm_weight, tap_bias, dt_bias)
    xbc = convolution_kernels.forward(xbc, taps, tap_bias, document_ids, None)
    y, _ = ssd_forward_kernels.forward(
        _inputs(xbc, dt, A, D, dt_bias, document_ids, groups, state_size)
    )
    normal, inverse = norm_kernels.forward(y, gate, norm_weight, groups, epsilon)
    return normal, xbc, y, inverse


@mix.register_fake
def _(
    projected: Tensor,
    taps: Tensor,
    tap_bias: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    document_ids: Tensor | None,
    groups: int,
    state_size: int,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = projected.shape[:2]
    y, xbc, before = (
        projected.new_empty(*rows, len(like)) for like in (norm_weight, tap_bias, norm_weight)
    )
    return y, xbc, before, projected.new_empty(*rows, groups, dtype=torch.float32)


@torch.library.custom_op("gristmill::mamba_mix_backward", mutates_args=())
def mix_backward(
    dy: Tensor,
    projected: Tensor,
    taps: Tensor,
    tap_bias: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    document_ids: Tensor | None,
    xbc: Tensor,
    y: Tensor,
    inverse: Tensor,
    groups: int,
    state_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of `mix` from that of its y, and what it has kept.

    Returns:
        By `projected`, `taps` and `tap_bias`; by A, D and dt_bias, FP32, (heads, 3); by the norm's
        weight.
    """
    from training_hook.kernels import (
        convolution_backward_kernels,
        norm_kernels,
        ssd_backward_kernels,
    )

    gate, convolved, dt = _parts(projected, norm_weight, tap_bias, dt_bias)
    dprojected = projected.new_empty(projected.shape)
    dgate, dconvolved, ddt = _parts(dprojected, norm_weight, tap_bias, dt_bias)
    by_y, _, by_norm = norm_kernels.backward(dy, y, gate, norm_weight, inverse, dgate)
    by_xbc, _, by_head, _ = ssd_backward_kernels.backward(
        _inputs(xbc, dt, A, D, dt_bias, document_ids, groups, state_size), by_y, None, ddt
    )
    _, by_taps, by_tap_bias, _ = convolution_backward_kernels.backward(
        by_xbc, convolved, taps, tap_bias, document_ids, None, dconvolved
    )
    return dprojected, by_taps, by_tap_bias, by_head, by_norm


@mix_backward.register_fake
def _(
    dy: Tensor,
    projected: Tensor,
    taps: Tensor,
    tap_bias: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    document_ids: Tensor | None,
    xbc: Tensor,
    y: Tensor,
    inverse: Tensor,
    groups: int,
    state_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dprojected, by_taps, by_tap_bias, by_norm = (
        like.new_empty(like.shape) for like in (projected, taps, tap_bias, norm_weight)
    )
    by_head = projected.new_empty(len(dt_bias), 3, dtype=torch.float32)
    return dprojected, by_taps, by_tap_bias, by_head, by_norm


def _parts(
    projected: Tensor, norm_weight: Tensor, tap_bias: Tensor, dt_bias: Tensor
) -> tuple[Tensor, ...]:
    """Returns gate, what is convolved and dt where they lie."""
    return projected.split([len(norm_weight), len(tap_bias), len(dt_bias)], dim=-1)


def _inputs(xbc: Tensor, dt: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, *others: Any) -> Any:
    from training_hook.kernels.ssd_state_kernels import Inputs

    document_ids, groups, state_size = others
    return Inputs(xbc, dt, A, D, dt_bias, document_ids, None, groups, state_size)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.groups, ctx.state_size, _ = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *by, by_head, by_norm = mix_backward(dy, *ctx.saved_tensors, ctx.groups, ctx.state_size)
    A, D, dt_bias = ctx.saved_tensors[3:6]
    by_heads = (t.to(of.dtype) for t, of in zip(by_head.unbind(1), (A, D, dt_bias), strict=True))
    return *by, *by_heads, by_norm, *(None,) * 4


mix.register_autograd(_gradients, setup_context=_keep)
