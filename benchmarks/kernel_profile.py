"""Where the milliseconds of a step go, kernel by kernel and by what the kernels do."""

import re
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from training_hook import kernels

_DEFINED = re.compile(r"@triton\.jit[^\n]*\ndef (\w+)\(")
# first match wins; the names are cuBLAS's, cuDNN's, Inductor's and PyTorch's own
_KINDS = (
    ("attention", r"flex_attention|fmha|flash|cudnn.*sdpa"),
    ("matrix products", r"nvjet|gemm|cutlass|xmma|cublas"),
    ("mamba_ssm's scan", r"^_(chunk_|state_passing|bmm_chunk)"),
    ("mamba_ssm's norm", r"^_layer_norm_"),
    ("optimizer and clipping", r"multi_tensor|adam|lpnorm|foreach"),
    ("gradients added up", r"CUDAFunctor_add"),
    ("pointwise and norms, compiled", r"^triton_"),
    ("copies", r"memcpy|memset|copy|CatArray"),
    ("pointwise and sums, not compiled", r"at::native"),
)


def own_kernels() -> dict[str, str]:
    """Returns what each of our kernels belongs to, by its name: the names of its modules."""
    found = defaultdict(list)
    for path in sorted(Path(kernels.__file__).parent.glob("*_kernels.py")):
        module = re.sub(r"(_forward|_backward|_state)?_kernels$", "", path.stem)
        for name in _DEFINED.findall(path.read_text()):
            if module not in found[name]:
                found[name].append(module)
    return {name: "our " + " and ".join(modules) for name, modules in found.items()}


def kind_of(kernel: str, own: dict[str, str]) -> str:
    """Returns what a kernel does, from its name."""
    if kernel in own:
        return own[kernel]
    return next((kind for kind, form in _KINDS if re.search(form, kernel, re.I)), "other")


def kernel_times(step: Callable[[], Any]) -> dict[str, Any]:
    """Profiles a step: milliseconds by kind, of the 40 longest kernels, in all and on the clock."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        begin = time.perf_counter()
        step()
        torch.cuda.synchronize()
        wall = time.perf_counter() - begin
    times = {e.key: e.self_device_time_total / 1e3 for e in found.key_averages()}
    own, kinds = own_kernels(), defaultdict(float)
    for kernel, ms in times.items():
        kinds[kind_of(kernel, own)] += ms
    longest = sorted(times.items(), key=lambda item: -item[1])
    return {
        "kinds_ms": {k: round(ms, 2) for k, ms in sorted(kinds.items(), key=lambda i: -i[1])},
        "kernels_ms": {kernel[:120]: round(ms, 3) for kernel, ms in longest[:40]},
        "kernels_sum_ms": round(sum(times.values()), 2),
        "profiled_step_ms": round(1e3 * wall, 2),
    }
