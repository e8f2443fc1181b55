"""What a run would take, before anything is spent: parameters, tokens, memory, time."""

import math
import time
from typing import Any

import torch

from training_hook.carry_out import pick_device
from training_hook.memory import count_memory
from training_hook.model import forward_flops, num_parameters, tensor_shapes
from training_hook.run import PretrainRun


def estimate(run: PretrainRun, device: str | None = None) -> dict[str, Any]:
    """Returns what a run would take, without training: sizes by counting, time by one product.

    `seconds_at_40_percent` supposes that training reaches 40% of the rate at which this machine
    multiplies two matrices in the run's precision: 0.39 was measured for 1B on an H100. Memory is
    that of compiled layers on one GPU, see `training_hook.memory`.
    """
    flops = 3 * forward_flops(run.model, run.sequence_length)
    tokens = run.batches.tokens(run.total_steps)
    rate = matrix_rate(pick_device(device), getattr(torch, run.precision))
    memory = count_memory(run)
    return {
        "name": run.name,
        "parameters": num_parameters(run.model),
        "tokens": tokens,
        "steps": run.total_steps,
        "tokens_per_step": run.tokens_per_step,
        "flops_per_token": flops,
        "flops": flops * tokens,
        "state_bytes": memory.state,
        "cast_bytes": memory.casts,
        "activation_bytes": memory.activations,
        "gpu_memory_bytes": memory.estimate,
        "checkpoint_host_bytes": checkpoint_host_bytes(run),
        "matrix_flops_per_second": rate,
        "seconds_at_40_percent": flops * tokens / (0.4 * rate),
    }


def checkpoint_host_bytes(run: PretrainRun) -> int:
    """Returns what a checkpoint in flight takes of the host's memory at most, over all ranks.

    Weights and two moments are copied there before they are written, into buffers that stay; CUDA's
    allocator of pinned memory rounds each up to a power of two.
    """
    sizes = (4 * math.prod(shape) for shape in tensor_shapes(run.model).values())
    return sum(3 * (1 << (size - 1).bit_length()) for size in sizes)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the FLOPs per second of a matrix product on a device: the best within 0.3 s."""
    size = 8192 if device.type == "cuda" else 256
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(size, size, generator=generator, device=device).to(dtype)
    best, begin = 0.0, time.perf_counter()
    while time.perf_counter() - begin < 0.3:
        start = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
