"""What a device can do and what it uses: peak rate, energy, memory."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from pipelines.progress import say

PEAK_FLOPS = {"H100": 989.5e12, "H200": 989.5e12}
"""Dense BF16 FLOPs per second of SXM boards, NVIDIA's data sheets."""


def device_name(device: torch.device) -> str:
    """Returns the GPU's name, or the CPU's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def peak_flops(device: torch.device) -> float | None:
    """Returns the peak that a model FLOPs utilization is a share of; None if it is not known."""
    if device.type != "cuda":
        return None
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name(device)), None)


@contextmanager
def energy_counter(device: torch.device) -> Iterator[Callable[[], float | None]]:
    """Yields a function that returns joules used so far, or None where there is no NVML.

    The counter is the GPU board's, as nvmlDeviceGetTotalEnergyConsumption reads it: its memory
    and converters are in it, CPU and host are not.
    """
    if device.type != "cuda":
        yield lambda: None
        return
    try:
        import pynvml  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        say("energy: nvidia-ml-py is not installed, so none is recorded")
        yield lambda: None
        return
    pynvml.nvmlInit()
    # by UUID: torch's numbers skip the devices that CUDA_VISIBLE_DEVICES hides
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    yield lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    pynvml.nvmlShutdown()
