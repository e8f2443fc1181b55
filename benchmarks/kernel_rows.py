"""The rows of the kernels: errors against float64, and times when nothing else runs."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import fp8_layouts, kernels_gpu, ssd_gpu
from benchmarks.fp8_gpu import free
from benchmarks.fp8_products import compare_casts
from benchmarks.kernel_cases import measure
from benchmarks.kernel_errors import kernel_errors


def prepare_errors(device: torch.device) -> Callable[[], dict[str, Any]]:
    """Compares everything with float64; returns what gives the errors."""
    record: dict[str, Any] = {
        **kernel_errors(kernels_gpu.drawing(device)),
        "layouts": fp8_layouts.layouts(device),
        "casts": compare_casts(device),
    }
    wrong = [*record["too_large"], *record["layouts"]["missing"]]
    if wrong:
        record["error"] = f"kernels: not as they should be: {'; '.join(wrong)}"
    return lambda: record


def prepare_times(device: torch.device, tiny: bool) -> Callable[[], dict[str, Any]]:
    """Compiles and tries the kernels; returns what times them."""
    if tiny:
        os.environ["TRITON_INTERPRET"] = "1"
    times = partial(kernel_times, device, tiny)
    times()
    return times


def kernel_times(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Times our kernels beside plain forms compiled, and the FP8 products beside BF16."""
    record: dict[str, Any] = {}
    for name, section in kernels_gpu.SECTIONS.items():
        cases = section.cases(kernels_gpu.drawing(device), tiny)
        record[name] = {case.name: measure(case, device) for case in cases}
    if not tiny:
        record["scan"] = ssd_gpu.measure_ssd()
        record["fp8_tflops"] = fp8_layouts.speeds(device)
    free(device)
    return record
