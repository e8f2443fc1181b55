"""mamba-ssm's Triton kernels in the place of our scan.

`training_hook.layers.mamba.ssd_packed` is the seam; what is around it stays ours, the convolution
too (causal-conv1d has no wheel: to build it takes 8 minutes), and the gated norm (with the peer's a
step took 1% longer on an H200). As operators that the compiler takes whole they get and give x, B
and C side by side, as ours do, so nothing is split or joined for them.

The kernels choose among 201 configurations by trying them. One by one these compile for minutes, so
candidates compile in threads; they are tried when nothing else runs, see `tune`.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import open_mamba_ssm
from benchmarks.training_steps import cut, drawn_model
from mixtures.stream import Stream
from training_hook.batches import document_ids, host_batch
from training_hook.layers import mamba
from training_hook.run import PretrainRun
from training_hook.ssd import ssd

COMPARED_TOKENS = 2048
_TRIED_FIRST = 3
"""Candidates among which the choice is while others run: the first alone might not fit."""


class Tuning:
    """What the patched autotuners do."""

    alone = False
    seen: list[Any] = []
    failures: list[str] = []
    """Of candidates that could not be compiled in threads."""


def load(peers: Path | None) -> None:
    """Makes the kernels importable and their candidates compile side by side."""
    open_mamba_ssm(peers)
    _compile_candidates_in_threads()


def _compile_candidates_in_threads() -> None:
    from triton.runtime._async_compile import AsyncCompileMode, active_mode
    from triton.runtime.autotuner import Autotuner

    pool = ThreadPoolExecutor(max(2, (os.cpu_count() or 4) - 1))
    given = Autotuner.prune_configs

    def prune(self: Any, kwargs: dict[str, Any]) -> list[Any]:
        candidates = given(self, kwargs)
        if len(candidates) == 1 or active_mode.get() is not None:
            return candidates
        try:
            with AsyncCompileMode(pool, ignore_errors=True):  # what does not compile is not chosen
                for candidate in candidates:
                    settings = {**kwargs, "warmup": True, **candidate.all_kwargs()}
                    self.fn.run(*self.nargs.values(), **settings)
        except Exception as error:  # the tuner meets it again, and says so if nothing is left
            Tuning.failures.append(f"{self.base_fn.__name__}: {error!r}"[:200])
        finally:
            active_mode.set(None)
        Tuning.seen.append(self)
        self.cache_results = Tuning.alone  # on disk, for the next process
        return candidates if Tuning.alone else candidates[:_TRIED_FIRST]

    Autotuner.prune_configs = prune


def tune(step: Callable[[], Any]) -> dict[str, Any]:
    """Lets the kernels choose anew in a step, all else being still, and says how that went."""
    for autotuner in Tuning.seen:
        autotuner.cache.clear()
    Tuning.alone, start = True, time.perf_counter()
    step()
    chosen = {a.base_fn.__name__: str(a.best_config) for a in Tuning.seen}
    seconds = round(time.perf_counter() - start, 1)
    return {"seconds": seconds, "chosen": chosen, "not_compiled": Tuning.failures}


def packed(xbc: Tensor, dt: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, *others: Any) -> Any:
    """Scans as `ssd_packed`, positional arguments alone, by mamba-ssm's kernels.

    Returns:
        y, and no final state.

    Raises:
        ValueError: an initial state is given.
    """
    *sizes, document_ids, initial_state = others
    if initial_state is not None:
        raise ValueError("peer_scan: training only, without an initial state")
    return scan(xbc, dt.contiguous(), A, D, dt_bias, document_ids, *sizes), None


def plain(xbc: Tensor, dt: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, *others: Any) -> Any:
    """Scans as `ssd_packed`, positional arguments alone, in PyTorch on any device."""
    groups, state_size, *given = others
    x, B, C = _split(xbc, dt.shape[-1], groups, state_size)
    y, final = ssd(x, dt, A, B, C, D, dt_bias, *given)
    return y.flatten(-2), final


def put_in(scan_packed: Callable[..., Any] = packed) -> None:
    """Puts the peer's kernels in the place of ours, for models that are compiled from now on."""
    mamba.ssd_packed, mamba.mixes_at_once = scan_packed, lambda *_: False


def _split(xbc: Tensor, heads: int, groups: int, state_size: int) -> tuple[Tensor, Tensor, Tensor]:
    maps = groups * state_size
    x, B, C = xbc.split([xbc.shape[-1] - 2 * maps, maps, maps], dim=-1)
    B, C = (t.unflatten(-1, (groups, state_size)) for t in (B, C))
    return x.unflatten(-1, (heads, -1)), B, C


@torch.library.custom_op("peer::scan", mutates_args=())
def scan(
    xbc: Tensor,
    dt: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    document_ids: Tensor | None,
    groups: int,
    state_size: int,
    chunk_size: int,
) -> Tensor:
    """Scans forward with `mamba_chunk_scan_combined`'s kernels."""
    from mamba_ssm.ops.triton.ssd_combined import _mamba_chunk_scan_combined_fwd

    x, B, C = _split(xbc, dt.shape[-1], groups, state_size)
    settings = {"D": D, "dt_bias": dt_bias, "seq_idx": document_ids, "dt_softplus": True}
    return _mamba_chunk_scan_combined_fwd(x, dt, A, B, C, chunk_size, **settings)[0].flatten(-2)


@scan.register_fake
def _(xbc, dt, A, D, dt_bias, document_ids, groups, state_size, chunk_size) -> Tensor:
    return xbc.new_empty(*xbc.shape[:2], xbc.shape[-1] - 2 * groups * state_size)


@torch.library.custom_op("peer::scan_backward", mutates_args=())
def scan_backward(
    dy: Tensor,
    xbc: Tensor,
    dt: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    document_ids: Tensor | None,
    y: Tensor,
    groups: int,
    state_size: int,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients by xbc, dt, A, D and dt_bias."""
    from mamba_ssm.ops.triton.ssd_combined import _mamba_chunk_scan_combined_bwd

    heads = dt.shape[-1]
    x, B, C = _split(xbc, heads, groups, state_size)
    dxbc, ddt = xbc.new_empty(xbc.shape), dt.new_empty(dt.shape)
    dx, dB, dC = _split(dxbc, heads, groups, state_size)
    dy, y = (t.unflatten(-1, (heads, -1)) for t in (dy.contiguous(), y))
    settings = {"D": D, "dt_bias": dt_bias, "seq_idx": document_ids, "dt_softplus": True}
    results = {"dx": dx, "ddt": ddt, "dB": dB, "dC": dC}
    found = _mamba_chunk_scan_combined_bwd(dy, x, dt, A, B, C, y, chunk_size, **settings, **results)
    return dxbc, ddt, *(found[place].float() for place in (2, 5, 7))


@scan_backward.register_fake
def _(dy, xbc, dt, A, D, dt_bias, document_ids, y, groups, state_size, chunk_size):
    by_head = [t.new_empty(t.shape, dtype=torch.float32) for t in (A, D, dt_bias)]
    return xbc.new_empty(xbc.shape), dt.new_empty(dt.shape), *by_head


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.groups, ctx.state_size, ctx.chunk_size = inputs
    ctx.save_for_backward(*tensors, output)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    sizes = ctx.groups, ctx.state_size, ctx.chunk_size
    return *scan_backward(dy, *ctx.saved_tensors, *sizes), None, None, None, None


scan.register_autograd(_gradients, setup_context=_keep)


def agreement(run: PretrainRun, mixture: Path, device: torch.device) -> dict:
    """Compares loss and gradients of a few tokens by our kernels, the peer's and plain PyTorch.

    The gradients are those by all weights of the Mamba layers, and the differences relative.

    Raises:
        ValueError: the peer's are further from plain PyTorch's than twice as far as ours.
    """
    model = drawn_model(run, device)
    weights = [
        p
        for layer in model.layers
        if isinstance(layer.mixer, mamba.Mamba)
        for p in layer.mixer.parameters()
    ]
    length = min(COMPARED_TOKENS, run.sequence_length)
    batch = cut(host_batch(next(Stream(mixture, 1)), {}, pin=False), length)
    tokens, ids = batch.tokens.to(device).long(), document_ids(batch.boundaries.to(device), length)
    mask = None if batch.loss_mask is None else batch.loss_mask.to(device)

    def gradients(scan_packed: Callable[..., Any] | None) -> tuple[float, Tensor]:
        seams = mamba.ssd_packed, mamba.mixes_at_once
        if scan_packed is not None:
            put_in(scan_packed)
        try:
            inputs = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
            loss = model.loss(*inputs, mask, ids).total / batch.num_targets
            found = torch.autograd.grad(loss, weights)
        finally:
            mamba.ssd_packed, mamba.mixes_at_once = seams
        return loss.item(), torch.cat([t.flatten() for t in found])

    wanted_loss, wanted = gradients(plain)
    record: dict[str, Any] = {"tokens": length, "loss": {"plain": wanted_loss}, "gradients": {}}
    for name, scan_packed in {"ours": None, "peer": packed}.items():
        record["loss"][name], found = gradients(scan_packed)
        record["gradients"][name] = float((found - wanted).norm() / wanted.norm())
    ours, theirs = record["gradients"]["ours"], record["gradients"]["peer"]
    if not theirs <= 2 * ours + 1e-6:
        raise ValueError(f"peer_scan: the peer's gradients are not those of our model: {record}")
    return record
