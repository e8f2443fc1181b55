"""What fused squared ReLU and held casts are worth in an MLP, on one GPU.

    OUT=DIR python -m benchmarks.fp8_mlp [--commit HASH] [--widths 2048 4096] [--tokens 16384]

For each width and recipe a step of the MLP, four times as wide inside: micro batches forward and
backward, gradients added up in FP32, compiled, timed with CUDA events (median of 10 rounds after
3). Beside BF16 in the same run are: casts at each call with the squared ReLU left to the compiler
(`before`), casts held over the step (`held`), and held with the squared ReLU inside the casts
(`fused`). Errors are relative norms against FP64 of the gradient by the down projection. A last
section times the casts alone, with the bytes that they must move.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.fp8_products import median_us
from training_hook.fp8_emulation import E4M3
from training_hook.fp8_mlp import fp8_squared_relu_mlp
from training_hook.kernels import fp8_operators
from training_hook.linear import FP8Linear, make_linear

WIDTHS = (2048, 4096)
WAYS = {
    "plain": ("before", "held"),
    "fp8_tensor": ("before", "held", "fused"),
    "fp8_tensor_e4m3": ("fused",),
    "fp8_delayed": ("fused",),
    "fp8_block": ("before", "held", "fused"),
}


class Stack(nn.Module):
    """down(relu(up(x))^2), with the squared ReLU inside the casts or not."""

    def __init__(self, width: int, inner: int, recipe: str, fused: bool) -> None:
        super().__init__()
        self.up, self.down = make_linear(width, inner, recipe), make_linear(inner, width, recipe)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        """Maps (tokens, width)."""
        up, down = self.up, self.down
        if self.fused and isinstance(up, FP8Linear) and isinstance(down, FP8Linear):
            casts, delayed = (up.cast(), down.cast()), (up.delayed(), down.delayed())
            weights = up.weight, down.weight
            return fp8_squared_relu_mlp(x, *weights, *casts, up.recipe, *delayed)
        return down(F.relu(up(x)).square())


def main() -> None:
    """Runs every width and writes $OUT/fp8_mlp.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--commit", default="unknown", help="of this tree, for the record")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--micro-batches", type=int, default=4)
    given = parser.parse_args()
    record: dict[str, Any] = {
        "commit": given.commit,
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "tokens": given.tokens,
        "micro_batches": given.micro_batches,
    }
    for width in given.widths:
        inner = 4 * width
        record[f"{width} x {inner}"] = {
            "step": compare_steps(width, inner, given.tokens, given.micro_batches),
            "casts": time_casts(inner, given.tokens),
        }
        print(json.dumps(record[f"{width} x {inner}"], indent=1), flush=True)
    file = Path(os.environ.get("OUT", ".")) / "fp8_mlp.json"
    file.write_text(json.dumps(record, indent=1) + "\n")


def compare_steps(width: int, inner: int, tokens: int, micro_batches: int) -> dict[str, Any]:
    """Times a step of each way and compares the gradient by `down` with FP64's."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    x, dy = normal(tokens, width).bfloat16(), (1e-6 * normal(tokens, width)).bfloat16()
    weights = normal(inner, width) / width**0.5, normal(width, inner) / inner**0.5
    exact = exact_gradient(x, dy, *(w.double() for w in weights))
    flops = micro_batches * 12 * tokens * width * inner
    record = {}
    for recipe, way in ((recipe, way) for recipe, ways in WAYS.items() for way in ways):
        held = way != "before"
        with torch.device("cuda"):
            stack = Stack(width, inner, recipe, way == "fused")
        with torch.no_grad():
            for parameter, weight in zip(stack.parameters(), weights, strict=True):
                parameter.copy_(weight)
        torch._dynamo.reset()
        stack.compile(fullgraph=True, dynamic=False)
        x.requires_grad_()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        milliseconds = microseconds(lambda: step(stack, x, dy, micro_batches, held)) / 1e3  # noqa: B023
        step(stack, x, dy, 1, held)
        found = stack.down.weight.grad
        assert found is not None
        record[f"{recipe} {way}"] = {
            "ms": round(milliseconds, 3),
            "tflops_per_second": round(flops / milliseconds / 1e9, 1),
            "error_by_down": round(float((found.double() - exact).norm() / exact.norm()), 4),
            "peak_gib": round((torch.cuda.max_memory_allocated() - before) / 2**30, 2),
        }
    return record


def step(stack: Stack, x: Tensor, dy: Tensor, micro_batches: int, held: bool) -> None:
    """Does what the training loop does with weights in a step, but for the update."""
    for parameter in (x, *stack.parameters()):
        parameter.grad = None
    if held:
        stack.up.hold(torch.bfloat16)
        stack.down.hold(torch.bfloat16)
    for _ in range(micro_batches):
        stack(x).backward(dy)
        for product in (stack.up, stack.down):
            if isinstance(product, FP8Linear) and product.history is not None:
                product.history.record()
    stack.up.release()
    stack.down.release()


def exact_gradient(x: Tensor, dy: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Returns the FP64 gradient by `down`."""
    total = torch.zeros_like(down)
    for rows, by in zip(x.split(2048), dy.split(2048), strict=True):
        total += by.double().T @ F.relu(rows.double() @ up.T).square()
    return total


def time_casts(inner: int, tokens: int) -> dict[str, Any]:
    """Times the casts of the squared ReLU, of its gradient, and of a matrix that is there."""
    up, gradient = (
        torch.randn(tokens, inner, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    amax = torch.tensor(16.0, device="cuda")
    casts: dict[str, tuple[Callable[[], Any], int]] = {
        "tensor": (lambda: fp8_operators.cast_tensor(up, amax, E4M3), 4),
        "tensor squared relu": (
            lambda: fp8_operators.cast_squared_relu_tensor(up, None, amax, E4M3),
            4,
        ),
        "tensor squared relu gradient": (
            lambda: fp8_operators.cast_squared_relu_tensor(up, gradient, amax, E4M3),
            6,
        ),
        "blocks": (lambda: fp8_operators.cast_blocks(up), 4),
        "blocks squared relu": (lambda: fp8_operators.cast_squared_relu_blocks(up, None), 4),
        "blocks squared relu gradient": (
            lambda: fp8_operators.cast_squared_relu_blocks(up, gradient),
            6,
        ),
    }
    for name, squares, by, bytes_a_value in (
        ("expected", False, None, 4),
        ("expected squared relu", True, None, 4),
        ("expected squared relu gradient", True, gradient, 6),
    ):
        casts[name] = (
            lambda s=squares, b=by: fp8_operators.cast_expected(up, s, b, amax, E4M3),
            bytes_a_value,
        )
    record = {}
    for name, (cast, bytes_a_value) in casts.items():
        us = microseconds(cast)
        terabytes = bytes_a_value * up.numel() / us / 1e6
        record[name] = {"us": us, "tb_per_second": round(terabytes, 2)}
    return record


def microseconds(run: Callable[[], Any]) -> float:
    """Returns the median microseconds of a run on the GPU."""
    median = median_us(run, torch.device("cuda"))
    assert median is not None
    return median


if __name__ == "__main__":
    main()
