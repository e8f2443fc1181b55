"""The row of the kernels: errors against float64 first, then times when nothing else runs."""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import fp8_layouts, kernels_gpu, ssd_gpu
from benchmarks.fp8_gpu import free
from benchmarks.fp8_products import compare_casts
from benchmarks.kernel_cases import measure
from benchmarks.kernel_errors import kernel_errors
from pipelines.progress import say


def prepare(device: torch.device, tiny: bool) -> Callable[[], dict[str, Any]]:
    """Computes errors and compiles; returns what times the kernels and adds the errors."""
    start = time.perf_counter()
    if tiny:
        os.environ["TRITON_INTERPRET"] = "1"
        errors = {"layouts": fp8_layouts.layouts(device)}
    else:
        errors = {
            **kernel_errors(kernels_gpu.drawing(device)),
            "layouts": fp8_layouts.layouts(device),
            "casts": compare_casts(device),
        }
    say(f"kernels: errors in {time.perf_counter() - start:.1f} s")
    times = partial(kernel_times, device, tiny)
    times()  # compiles
    say(f"kernels: compiled and tried after {time.perf_counter() - start:.1f} s")

    def timed() -> dict[str, Any]:
        begin = time.perf_counter()
        record = {"errors": errors, **times(), "timing_s": 0.0}
        record["timing_s"] = round(time.perf_counter() - begin, 1)
        wrong = [*errors.get("too_large", ()), *errors["layouts"]["missing"]]
        if wrong and not tiny:
            record["error"] = f"kernels: not as they should be: {'; '.join(wrong)}"
        return record

    return timed


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
