"""Timed optimizer steps of the real loop, and what a record says about the machine.

Stream, prefetch, packed documents, FP32 masters, clipping and fused AdamW are those of `pretrain`,
each step has its learning rate of the run's schedule, and nothing is retried with smaller batches:
where memory does not suffice it fails.

MFU is 3 * forward FLOPs * tokens/s over the dense BF16 peak, also where products run in FP8;
forward FLOPs are those of products with weights (head included, embedding not), the scan's 7 *
inner * state a token and Mamba layer, and causal attention to half the length (not shortened by
document borders): Megatron-LM's count. Energy is the GPU board's, by NVML's counter, over the timed
steps.
"""

import itertools
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mixtures.stream import Stream
from pipelines.progress import say
from training_hook.batches import Prefetch
from training_hook.device import peak_flops
from training_hook.guard import Guard
from training_hook.loop import build_model
from training_hook.model import forward_flops, num_parameters
from training_hook.optimizer import adamw, set_learning_rate
from training_hook.ranks import ALONE, Ranks
from training_hook.run import PretrainRun
from training_hook.shards import Shards
from training_hook.step import StepResult, train_step

WARM_STEPS = 4  # the first compiles, the next fill the allocator


def measure(
    run: PretrainRun,
    mixture: Path,
    device: torch.device,
    steps: int,
    joules: Callable[[], float | None],
    profile: bool,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Times optimizer steps of a run after the first few and returns the record.

    Of several ranks, each on its device, the record has the tokens of all and the memory and the
    energy of this one.
    """
    on_gpu = device.type == "cuda"
    name = f"{run.name} {run.batch_size // run.micro_batch_size} x {run.micro_batch_size}"
    say(f"{name}: {num_parameters(run.model) / 1e6:.0f} M parameters, building")
    start = time.perf_counter()
    with device:
        model = build_model(run)
    model.reset_parameters(torch.Generator(device).manual_seed(run.seed))
    shards = Shards(model, ranks, device, run.reshard)
    model.compile_layers(run.backend)
    optimizer = adamw(shards, run.betas, run.epsilon, run.weight_decay)
    guard = Guard(run.spike_factor, device)
    stream = Stream(mixture, run.batch_size, ranks.rank, ranks.world_size)
    batches = Prefetch(stream, on_gpu, itertools.repeat(run.batch_size), depth=4)
    build_seconds = time.perf_counter() - start

    numbers = itertools.count(1)

    def step() -> StepResult:
        number = min(next(numbers), run.total_steps)
        set_learning_rate(optimizer, run.schedule.learning_rate(number))
        model.set_low_precision(not run.is_plain(number))
        batch = batches.next().of_all(ranks)
        return train_step(model, optimizer, guard, batch, run, shards)

    def synchronize() -> None:
        if on_gpu:
            torch.cuda.synchronize(device)

    results = []
    start = time.perf_counter()
    for number in range(WARM_STEPS):
        results.append(step())
        synchronize()
        if number == 0:
            first_seconds = time.perf_counter() - start
            say(f"{name}: first step (with compiling) {first_seconds:.1f} s")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)] if on_gpu else []
    clock = [0.0] * (steps + 1)
    energy, begin = joules(), time.perf_counter()
    for number in range(steps + 1):
        if on_gpu:
            marks[number].record()
        clock[number] = time.perf_counter()
        if number < steps:
            results.append(step())
    synchronize()
    seconds = time.perf_counter() - begin
    after = joules()
    used = None if energy is None or after is None else after - energy
    times = clock if not on_gpu else [marks[0].elapsed_time(mark) / 1e3 for mark in marks]
    step_ms = [1e3 * (b - a) for a, b in itertools.pairwise(times)]
    kernels = profile_step(step) if profile and on_gpu else None
    batches.close()
    losses = torch.stack([torch.stack([r.loss, r.gradient_norm]) for r in results]).tolist()
    rate = steps * run.tokens_per_step / seconds
    flops = 3 * forward_flops(run.model, run.sequence_length)
    peak = peak_flops(device)
    memory = round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if on_gpu else None
    record = {
        "name": name,
        "parameters": num_parameters(run.model),
        "precision": run.precision,
        "linear_recipe": run.linear_recipe,
        "backend": run.backend,
        "sequence_length": run.sequence_length,
        "micro_batch_size": run.micro_batch_size,
        "batch_size": run.batch_size,
        "steps_timed": steps,
        "build_s": round(build_seconds, 2),
        "first_step_s": round(first_seconds, 2),
        "seconds": round(seconds, 4),
        "step_ms": {
            "median": round(statistics.median(step_ms), 2),
            "min": round(min(step_ms), 2),
            "max": round(max(step_ms), 2),
        },
        "tokens_per_second": round(rate, 1),
        "flops_per_token": flops,
        "tflops_per_second": round(rate * flops / 1e12, 3),
        "mfu": None if peak is None else round(rate * flops / (peak * ranks.world_size), 4),
        "peak_memory_gib": memory,
        "watts": None if used is None else round(used / seconds, 1),
        "joules_per_1000_tokens": None if used is None else round(used / (rate * seconds) * 1e3, 3),
        "losses": [round(loss, 4) for loss, _ in losses],
        "gradient_norms": [round(norm, 4) for _, norm in losses],
        "kernels_ms": kernels,
        "run": asdict(run),
    }
    say(
        f"{name}: {rate:,.0f} tokens/s, MFU {record['mfu']}, "
        f"{record['peak_memory_gib']} GiB, {record['watts']} W, "
        f"loss {losses[0][0]:.3f} to {losses[-1][0]:.3f}"
    )
    return record


def profile_step(step: Any) -> dict[str, float]:
    """Returns the milliseconds of the 40 longest kernels of one step, by name."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    with profiling(activities=[ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    events = sorted(found.key_averages(), key=lambda e: -e.self_device_time_total)
    return {e.key[:120]: round(e.self_device_time_total / 1e3, 3) for e in events[:40]}


def find_commit(given: str | None) -> str:
    """Returns the commit that was given, or asks git, or says that neither is there."""
    if given:
        return given
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown (no git here; give --commit)"
    return found.stdout.strip() or "unknown (no repository here; give --commit)"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "triton", "numpy", "numba", "pyarrow", "tokenizers", "nvidia-ml-py"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
