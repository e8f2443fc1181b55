"""The state-space duality (SSD) scan of Mamba-2 in plain PyTorch: chunks as matrix products.

Every head h carries a state of shape (head_dim, state_size) along the sequence:

    state_t = exp(dt_t * A_h) * state_(t-1) + dt_t * x_t B_t^T,    y_t = state_t C_t + D_h * x_t

Taken step by step that is memory-bound and has no parallelism in time. The sequence is cut into
chunks: inside a chunk the recurrence is a masked product like attention, between chunks one decay
matrix of (chunks + 1)^2 carries the states. Work per token is linear in chunk_size and quadratic in
nothing but the number of chunks (64 at 8k tokens); longer inputs go in pieces through the state.
This is the reference that faster kernels are held to, and what runs where there are none.

Shape letters: b batch, z chunks, q and k positions in a chunk, h heads, p head dim, g groups,
r heads per group, n state size.

Source: Dao and Gu 2024, arXiv:2405.21060, section 6 (block decomposition).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    chunk_size: int,
    document_ids: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scans a batch of sequences; differentiable in every tensor but `document_ids`.

    Decays and states are float32 (float64 if x is), matrix products run in the dtype of x.

    Args:
        x: input, (batch, length, heads, head_dim).
        dt: time steps before bias and softplus, (batch, length, heads).
        A: decay rate of each head, negative, (heads,).
        B: input map, (batch, length, groups, state_size); heads / groups heads share one.
        C: output map, like B.
        D: skip connection of each head, (heads,).
        dt_bias: bias of dt before the softplus, (heads,).
        chunk_size: positions in a chunk; changes speed and rounding, never the meaning.
        document_ids: int, (batch, length), never falling along a row. The state starts at zero
            where the id changes; id 0 continues `initial_state`. One document if not given.
        initial_state: state before the first position, (batch, heads, head_dim, state_size).

    Returns:
        y like x, and the state after the last position (of the last document).
    """
    batch, length, heads, head_dim = x.shape
    groups, state_size = B.shape[2:]
    exact = torch.promote_types(x.dtype, torch.float32)
    size = min(chunk_size, length)
    padding = -length % size
    chunks = (length + padding) // size

    step = F.softplus(dt.to(exact) + dt_bias.to(exact))
    dtx = (x * step[..., None]).to(x.dtype)
    if padding:  # a step of zero neither decays nor adds
        step = F.pad(step, (0, 0, 0, padding))
        dtx, B, C = (F.pad(t, (0, 0, 0, 0, 0, padding)) for t in (dtx, B, C))
        if document_ids is not None:
            last = document_ids[:, -1:].expand(batch, padding)
            document_ids = torch.cat([document_ids, last], dim=1)
    same = _same_document(document_ids, chunks, size, x.device)
    dtx = dtx.reshape(batch, chunks, size, groups, -1, head_dim)  # b z k g r p
    B, C = (t.reshape(batch, chunks, size, groups, -1).transpose(2, 3) for t in (B, C))  # b z g k n
    # log decay from the start of the chunk up to and including each position, b h z q
    decay = (step * A.to(exact)).view(batch, chunks, size, heads).permute(0, 3, 1, 2).cumsum(-1)

    added = _added(dtx, B, decay, same.to_end).to(exact)
    passed = _chunk_decay(decay[..., -1], same.between)
    if initial_state is None:
        states = passed[..., 1:] @ added
    else:
        first = initial_state.to(exact).reshape(batch, heads, 1, -1)
        states = passed @ torch.cat([first, added], dim=2)
    before = states[:, :, :-1].to(x.dtype).unflatten(-1, (head_dim, state_size))
    final = states[:, :, -1].unflatten(-1, (head_dim, state_size))

    y = torch.addcmul(
        _inside(dtx, B, C, decay, same.inside).to(exact),
        _read(before, C).to(exact),
        _masked_exp(decay, same.from_start).permute(0, 2, 3, 1)[..., None],
    )
    y = y.reshape(batch, -1, heads, head_dim)[:, :length]
    return torch.addcmul(y, x.to(exact), D.to(exact)[:, None]).to(x.dtype), final


def _inside(dtx: Tensor, B: Tensor, C: Tensor, decay: Tensor, visible: Tensor) -> Tensor:
    """y_q = sum over k <= q of (C_q . B_k) exp(decay_q - decay_k) dt_k x_k, b z q h p."""
    scores = (C @ B.mT).transpose(1, 2)[:, :, None]  # b g 1 z q k
    mixing = _masked_exp(decay[..., :, None] - decay[..., None, :], visible)
    mixing = mixing.unflatten(1, (B.shape[2], -1)) * scores  # b g r z q k
    y = mixing.flatten(1, 2).to(dtx.dtype) @ dtx.flatten(3, 4).permute(0, 3, 1, 2, 4)
    return y.permute(0, 2, 3, 1, 4)


def _added(dtx: Tensor, B: Tensor, decay: Tensor, visible: Tensor | None) -> Tensor:
    """What each chunk adds to the state at its end, b h z (p n)."""
    to_end = _masked_exp(decay[..., -1:] - decay, visible).permute(0, 2, 3, 1)  # b z k h
    scaled = (dtx * to_end.unflatten(-1, (B.shape[2], -1))[..., None]).to(dtx.dtype)
    added = B.mT @ scaled.flatten(-2).transpose(2, 3)  # b z g n (r p)
    added = added.unflatten(-1, dtx.shape[-2:]).permute(0, 2, 4, 1, 5, 3)  # b g r z p n
    return added.flatten(-2).flatten(1, 2)


def _read(before: Tensor, C: Tensor) -> Tensor:
    """The states before the chunks (b h z p n), read through C, b z q h p."""
    groups, (heads, head_dim) = C.shape[2], before.shape[1:4:2]
    before = before.unflatten(1, (groups, -1)).permute(0, 3, 1, 5, 2, 4)  # b z g n r p
    y = (C @ before.flatten(-2)).transpose(2, 3)  # b z q g (r p)
    return y.reshape(*y.shape[:3], heads, head_dim)


class _SameDocument(NamedTuple):
    """Masks, true where a decay runs within one document; None where all of it does."""

    inside: Tensor
    """From position k to q >= k of a chunk, broadcasts to (b, h, z, q, k)."""
    to_end: Tensor | None
    """From position k to the end of its chunk, (b, 1, z, k)."""
    from_start: Tensor | None
    """From the state before a chunk to position q, (b, 1, z, q)."""
    between: Tensor
    """From the end of chunk j - 1 (-1: the initial state) to before i, (b, h, z+1, z+1)."""


def _same_document(
    document_ids: Tensor | None, chunks: int, size: int, device: torch.device
) -> _SameDocument:
    inside = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    between = torch.ones(chunks + 1, chunks + 1, dtype=torch.bool, device=device).tril()
    if document_ids is None:
        return _SameDocument(inside, None, None, between)
    ids = document_ids.view(-1, 1, chunks, size)
    ends = F.pad(ids[..., -1], (1, 0))  # the initial state belongs to document 0
    return _SameDocument(
        inside & (ids[..., :, None] == ids[..., None, :]),
        ids == ends[..., 1:, None],
        ids == ends[..., :-1, None],
        between & (ends[..., :, None] == ends[..., None, :]),
    )


def _masked_exp(log: Tensor, visible: Tensor | None) -> Tensor:
    # masked before exp: what lies above the diagonal overflows, and inf * 0 has no gradient
    return (log if visible is None else log.masked_fill(~visible, -torch.inf)).exp()


def _chunk_decay(total: Tensor, visible: Tensor) -> Tensor:
    """Returns how much of the state after chunk j - 1 is left before chunk i, (b, h, z+1, z+1).

    Sums the decays between them instead of subtracting two running sums: after 8,000 tokens those
    are about 1e4, where float32 has lost four of its seven digits.
    """
    chunks = total.shape[-1]
    lower = torch.ones(chunks, chunks + 1, dtype=torch.bool, device=total.device).tril()
    log = total[..., None].expand(*total.shape, chunks + 1).masked_fill(~lower, 0).cumsum(-2)
    return _masked_exp(F.pad(log, (0, 0, 1, 0)), visible)
