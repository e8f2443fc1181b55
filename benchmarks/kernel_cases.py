"""Errors and times of a kernel beside the compiled plain form of the same layer, on one GPU.

Times are of the GPU alone: a wait is queued before each call, so that Python has queued all of the
call's kernels when the clock starts, and the L2 cache is overwritten before it.
"""

import json
import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.fp8_products import relative_error
from pipelines.progress import say

_RUNS = 20
_WARM_RUNS = 3
_FLUSHED_BYTES = 256 * 2**20  # an H200 has 50 MB of L2
_WAITED_CYCLES = 6_000_000  # 3 ms


Draw = Callable[..., Tensor]
"""Draws normal numbers of a shape, BF16 on a GPU."""


class Case(NamedTuple):
    """A kernel and its plain form on the same inputs."""

    name: str
    kernel: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    inputs: dict[str, Any]
    """By name, in order; the floating tensors are differentiated."""
    dy: Tensor
    moved_bytes: tuple[int, int]
    """What must be read and written at least, forward and forward with backward."""


class Choice(NamedTuple):
    """A kernel with one configuration."""

    name: str
    run: Callable[[], Any]
    moved_bytes: int


def is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def median_us(function: Callable[[], Any], device: torch.device) -> float | None:
    """Returns the median microseconds of a call with a cold cache, or None on a CPU."""
    if device.type != "cuda":
        function()
        return None
    for _ in range(_WARM_RUNS):
        function()
    cache = torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device=device)
    times = []
    for _ in range(_RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()
        torch.cuda._sleep(_WAITED_CYCLES)
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return round(statistics.median(times), 1)


def tb_per_s(moved_bytes: int, us: float | None) -> float | None:
    return None if us is None else round(moved_bytes / us / 1e6, 2)


def results(run: Callable[..., Tensor], case: Case, exact: bool = False) -> dict[str, Tensor]:
    """Returns y and the gradients by the name of what they are of, in FP64 if so wanted."""
    leaves = {
        name: (value.double() if exact else value.detach()).requires_grad_()
        if is_floating(value)
        else value
        for name, value in case.inputs.items()
    }
    y = run(*leaves.values())
    names = [name for name, value in leaves.items() if is_floating(value)]
    dy = case.dy.double() if exact else case.dy
    gradients = torch.autograd.grad(y, [leaves[name] for name in names], dy)
    return {"y": y.detach(), **dict(zip(names, gradients, strict=True))}


def measure(case: Case, device: torch.device) -> dict[str, Any]:
    """Returns the errors against FP64 and the times of the kernel and of the plain form."""
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    compiled = torch.compile(case.plain, fullgraph=True, dynamic=False, backend=backend)
    record: dict[str, Any] = {"moved_gb": [round(count / 1e9, 3) for count in case.moved_bytes]}
    exact = results(case.plain, case, exact=True)
    for name, run in (("kernel", case.kernel), ("compiled", compiled)):
        found = results(run, case)
        errors = {what: relative_error(found[what], exact[what]) for what in exact}
        del found

        @torch.no_grad()
        def forward(run: Callable[..., Tensor] = run) -> None:
            run(*case.inputs.values())

        forward_us = median_us(forward, device)
        both_us = median_us(lambda run=run: results(run, case), device)
        record[name] = {
            "relative_error": errors,
            "forward_us": forward_us,
            "forward_and_backward_us": both_us,
            "forward_tb_per_s": tb_per_s(case.moved_bytes[0], forward_us),
            "forward_and_backward_tb_per_s": tb_per_s(case.moved_bytes[1], both_us),
        }
        say(f"{case.name}, {name}: {json.dumps(record[name])}")
    return record


def sweep(choices: Iterable[Choice], device: torch.device) -> dict[str, Any]:
    """Returns the time of each configuration."""
    record: dict[str, Any] = {}
    for choice in choices:
        us = median_us(choice.run, device)
        record[choice.name] = {"us": us, "tb_per_s": tb_per_s(choice.moved_bytes, us)}
        say(f"{choice.name}: {json.dumps(record[choice.name])}")
    return record
