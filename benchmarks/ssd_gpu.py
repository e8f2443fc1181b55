"""The SSD scan on one GPU: errors against float64, kernel times, beside plain PyTorch compiled.

    OUT=DIR python -m benchmarks.ssd_gpu [--commit HASH] [--only 1b nano2] [--sweep 1b]

Needs torch and triton. Writes $OUT/ssd_gpu.json. Times are of kernels, from torch.profiler: alone,
so small a chain is bound by the CPU, in a training step it is not. The least time is the bytes that
a pass moves over the memory bandwidth of the data sheet. mamba_ssm 2.3.2's kernels took 0.79 ms
forward and 3.35 ms forward and backward for `1b` on an H100.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from training_hook.kernels import ssd_operators
from training_hook.ssd import ssd

REPEATS = 10
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12}  # bytes/s, SXM, NVIDIA's data sheets
NAMES = ("xbc", "dt", "A", "D", "dt_bias")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Sizes of one scan."""

    batch: int
    length: int
    heads: int
    groups: int
    head_dim: int
    state_size: int

    def draw(self, batch: int, length: int, device: torch.device) -> dict[str, Tensor]:
        """Draws what a fresh model's layer gives its scan, BF16."""
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device)

        channels = self.heads * self.head_dim + 2 * self.groups * self.state_size
        uniform = torch.rand(2, self.heads, generator=generator, device=device)
        step = torch.exp(uniform[0] * 4.6 - 6.9)  # log-uniform in [0.001, 0.1]
        return {
            "xbc": normal(batch, length, channels).bfloat16(),
            "dt": normal(batch, length, self.heads).bfloat16(),
            "A": -1 - 15 * uniform[1],
            "D": normal(self.heads),
            "dt_bias": step + torch.log(-torch.expm1(-step)),
            "dy": normal(batch, length, self.heads * self.head_dim).bfloat16(),
        }

    def split(self, xbc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.groups * self.state_size
        x, B, C = xbc.split([xbc.shape[-1] - 2 * maps, maps, maps], dim=-1)
        B, C = (t.unflatten(-1, (self.groups, -1)) for t in (B, C))
        return x.unflatten(-1, (self.heads, -1)), B, C

    def by_kernels(self, *leaves: Tensor) -> Tensor:
        return ssd_operators.ssd_packed(*leaves, self.groups, self.state_size, 128)[0]

    def by_torch(self, xbc: Tensor, dt: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor) -> Tensor:
        x, B, C = self.split(xbc)
        return ssd(x, dt, A, B, C, D, dt_bias, 128)[0].flatten(-2)

    def bytes_moved(self) -> dict[str, float]:
        """Bytes that each kernel has to read or write in BF16, decays and sums left out."""
        from training_hook.kernels import ssd_backward_kernels, ssd_forward_kernels

        x = 2 * self.batch * self.length * self.heads * self.head_dim
        maps = 2 * self.batch * self.length * self.groups * self.state_size
        wide = 1 if self.head_dim > 64 else 0
        scan, back = ssd_forward_kernels.SCAN[wide], ssd_backward_kernels.DX_DB[wide]
        forward_states, states = (x * self.state_size / run.chunk for run in (scan, back))
        return {
            "_carry forward": x + maps + forward_states,
            "_scan": 2 * x + 2 * maps + forward_states,
            "_carry backward": 2 * (x + maps + states),
            "_dx_dB": 3 * x + 3 * maps + states,
            "_dC": x + 3 * maps + 2 * states,
        }


LAYERS = {
    "1b": Layer(batch=2, length=8192, heads=64, groups=8, head_dim=64, state_size=128),
    "nano2": Layer(batch=1, length=8192, heads=128, groups=8, head_dim=80, state_size=128),
}


def gradients_of(scan: Callable[..., Tensor], leaves: list[Tensor], dy: Tensor) -> list[Tensor]:
    y = scan(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def errors_of(layer: Layer, scan: Callable[..., Tensor], device: torch.device) -> dict[str, float]:
    """Relative errors in norm against float64, 1 x 512."""
    drawn = layer.draw(1, 512, device)
    leaves = [drawn[name].requires_grad_() for name in NAMES]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found = gradients_of(scan, leaves, drawn["dy"])
    wanted = gradients_of(layer.by_torch, exact, drawn["dy"])
    pairs = dict(zip(("y", *NAMES), zip(found, wanted, strict=True), strict=True))
    mine, theirs = (layer.split(t) for t in pairs.pop("xbc"))
    pairs |= dict(zip("xBC", zip(mine, theirs, strict=True), strict=True))
    return {
        name: round(float(((a.double() - b).norm() / b.norm()).item()), 5)
        for name, (a, b) in pairs.items()
    }


def kernel_microseconds(work: Callable[[], Any]) -> dict[str, float]:
    """Returns the time in each kernel of one call, by name, mean of some."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(REPEATS):
            work()
        torch.cuda.synchronize()
    times = {e.key[:60]: e.self_device_time_total / REPEATS for e in found.key_averages()}
    kernels = sorted(times.items(), key=lambda item: -item[1])
    total = sum(times.values())
    return {"sum": round(total, 1), **{key: round(t, 1) for key, t in kernels[:10] if t > 0.5}}


def times_of(layer: Layer, scan: Callable[..., Tensor], device: torch.device) -> dict[str, Any]:
    """Kernel times of forward, and of forward and backward; memory beside the inputs."""
    drawn = layer.draw(layer.batch, layer.length, device)
    leaves = [drawn[name].requires_grad_() for name in NAMES]

    def forward() -> None:
        with torch.no_grad():
            scan(*leaves)

    record: dict[str, Any] = {"forward_us": kernel_microseconds(forward)}
    both = kernel_microseconds(lambda: gradients_of(scan, leaves, drawn["dy"]))
    record["forward_and_backward_us"] = both
    before = torch.cuda.memory_allocated()
    y = scan(*leaves)
    record["kept_mib"] = round((torch.cuda.memory_allocated() - before) / 2**20)
    torch.cuda.reset_peak_memory_stats()
    torch.autograd.grad(y, leaves, drawn["dy"])
    record["peak_mib"] = round((torch.cuda.max_memory_allocated() - before) / 2**20)
    return record


def measure_ssd(names: tuple[str, ...] = tuple(LAYERS), plain: bool = True) -> dict[str, Any]:
    """Measures our kernels, and plain PyTorch compiled, at the sizes of some models."""
    device = torch.device("cuda")
    bandwidth = next(
        (b for gpu, b in BANDWIDTH.items() if gpu in torch.cuda.get_device_name(device)), None
    )
    record: dict[str, Any] = {}
    for name in names:
        layer = LAYERS[name]
        print(f"ssd {name}: kernels")
        record[name] = {
            "sizes": str(layer),
            "kernels": {
                "errors": errors_of(layer, layer.by_kernels, device),
                **times_of(layer, layer.by_kernels, device),
            },
        }
        if bandwidth is not None:
            least = {key: round(b / bandwidth * 1e6) for key, b in layer.bytes_moved().items()}
            record[name]["least_us"] = {**least, "sum": sum(least.values())}
    if plain:
        layer = LAYERS["1b"]
        print("ssd 1b: plain PyTorch, compiled")
        compiled = torch.compile(layer.by_torch, fullgraph=True, dynamic=False)
        record["plain_compiled"] = times_of(layer, compiled, device)
    return record


def sweep(names: tuple[str, ...]) -> dict[str, Any]:
    """Times other launches of each kernel, one change at a time; returns the kernel's time."""
    from training_hook.kernels import ssd_backward_kernels, ssd_forward_kernels, ssd_state_kernels

    def thrice(*launches: tuple[int, int, int]) -> list[Any]:
        """Each for states of any size."""
        return [(ssd_state_kernels.Launch(*launch),) * 3 for launch in launches]

    device, carried = torch.device("cuda"), ssd_state_kernels.CARRY
    tried: list[tuple[str, Any, str, list[Any]]] = [
        (
            "_scan",
            ssd_forward_kernels,
            "SCAN",
            thrice((128, 8, 1), (128, 8, 3), (64, 4, 1), (64, 4, 2), (64, 4, 3), (64, 8, 2)),
        ),
        (
            "_carry",
            ssd_state_kernels,
            "CARRY",
            [carried._replace(stages=2), carried._replace(stages=4), carried._replace(warps=8)],
        ),
        ("_carry", ssd_state_kernels, "CARRY_TILE", [32, 128]),
        (
            "_dx_dB",
            ssd_backward_kernels,
            "DX_DB",
            thrice((64, 8, 1), (64, 8, 3), (64, 4, 1), (64, 4, 2)),
        ),
        (
            "_dC",
            ssd_backward_kernels,
            "DC",
            thrice((64, 4, 1), (64, 4, 3), (64, 8, 2), (64, 8, 1)),
        ),
    ]
    record: dict[str, Any] = {}
    for name in names:
        layer = LAYERS[name]
        drawn = layer.draw(layer.batch, layer.length, device)
        leaves = [drawn[key].requires_grad_() for key in NAMES]
        rows: list[dict[str, Any]] = record.setdefault(name, [])
        for kernel, module, constant, values in tried:
            chosen = getattr(module, constant)
            for value in values:
                setattr(module, constant, value)
                row: dict[str, Any] = {"constant": constant, "value": str(value).split("), ")[0]}
                try:
                    times = kernel_microseconds(
                        partial(gradients_of, layer.by_kernels, leaves, drawn["dy"])
                    )
                    found = sum(t for key, t in times.items() if key.startswith(kernel))
                    row |= {"us": round(found, 1), "sum_us": times["sum"]}
                except Exception as error:  # a launch that does not fit is a result of the sweep
                    row["error"] = repr(error)[:200]
                rows.append(row)
                print(f"{name}: {row}")
            setattr(module, constant, chosen)
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description="The SSD scan on one GPU.")
    parser.add_argument("--sweep", nargs="+", choices=tuple(LAYERS), help="time other launches")
    parser.add_argument("--commit", default="unknown", help="of this tree, for the record")
    parser.add_argument("--no-plain", action="store_true", help="not plain PyTorch compiled")
    parser.add_argument("--only", nargs="+", choices=tuple(LAYERS), default=tuple(LAYERS))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU here")
    path = Path(os.environ.get("OUT", ".")) / "ssd_gpu.json"
    content: dict[str, Any] = {
        "what": "the SSD scan of one layer, forward and backward, on one device",
        "commit": options.commit,
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": version("triton"),
    }
    failed = False
    sections: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("layers", lambda: measure_ssd(tuple(options.only), not options.no_plain))
    ]
    if options.sweep:
        sections.append(("sweep", lambda: sweep(tuple(options.sweep))))
    for section, measured in sections:
        try:
            content[section] = measured()
        except Exception:
            failed = True
            content[section] = {"error": traceback.format_exc()}
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(json.dumps(content[section], indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
