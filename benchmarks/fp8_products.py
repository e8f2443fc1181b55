"""FP8 casts and products on a device beside the CPU's emulation, FP64 and BF16, and their time."""

import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipelines.progress import say
from training_hook import fp8_emulation
from training_hook.config import HybridConfig
from training_hook.fp8_emulation import E4M3, E5M2
from training_hook.kernels import fp8_operators
from training_hook.run import PretrainRun

FP8 = ("fp8_tensor", "fp8_block")


def wild(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Values over some 60 octaves, with a block of zeros."""
    generator = torch.Generator().manual_seed(rows + columns)
    x, spread = (torch.randn(rows, columns, generator=generator) for _ in range(2))
    x = x * torch.exp(8 * spread)
    x[:128, :128] = 0
    return x.to(dtype)


def different_bytes(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> int:
    """Returns in how many bytes tensors differ."""
    as_bytes = [
        [t.cpu().contiguous().view(-1).view(torch.uint8) for t in tensors]
        for tensors in (found, wanted)
    ]
    return sum(int((a != b).sum()) for a, b in zip(*as_bytes, strict=True))


def compare_casts(device: torch.device) -> dict[str, Any]:
    """Runs every operator on the device and as CPU emulation, on the same values."""
    record: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = wild(1024, 768, dtype)
        amax, there = x.abs().amax().float(), x.to(device)
        name = str(dtype).removeprefix("torch.")
        for fp8 in (E4M3, E5M2):
            record[f"{name} tensor {str(fp8).removeprefix('torch.')}"] = different_bytes(
                fp8_operators.cast_tensor(there, amax.to(device), fp8),
                fp8_emulation.cast_tensor(x, amax, fp8),
            )
        for cast in ("cast_blocks", "cast_squares"):
            record[f"{name} {cast[5:]}"] = different_bytes(
                getattr(fp8_operators, cast)(there), getattr(fp8_emulation, cast)(x)
            )
    generator = torch.Generator().manual_seed(0)
    sizes = (1024, 768, 640)
    operands = random_operands(*sizes, generator, outliers=False)
    emulated = {recipe: fp8_products(recipe, *operands) for recipe in FP8}
    there = [t.to(device) for t in operands]
    products = {
        recipe: {
            name: relative_error(found.cpu(), wanted.double())
            for (name, found), wanted in zip(
                fp8_products(recipe, *there).items(), emulated[recipe].values(), strict=True
            )
        }
        for recipe in FP8
    }
    return {"different_bytes": record, "products_relative_difference": products}


def random_operands(
    tokens: int, inner: int, outer: int, generator: torch.Generator, outliers: bool
) -> list[Tensor]:
    """Returns x, weight and dy; outliers are a thousandth of the channels times 100."""
    device = generator.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    x, weight, dy = normal(tokens, inner), normal(outer, inner), normal(tokens, outer)
    if outliers:
        for t in (x, dy):
            t[:, :: max(1, t.shape[1] // max(1, t.shape[1] // 1000))] *= 100
    return [x.bfloat16(), 0.02 * weight, (1e-6 * dy).bfloat16()]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float(((found.double() - wanted).norm() / wanted.norm()).item())


def exact_products(x: Tensor, weight: Tensor, dy: Tensor) -> dict[str, Tensor]:
    x, weight, dy = x.double(), weight.double(), dy.double()
    return {"forward": x @ weight.T, "by_input": dy @ weight, "by_weight": dy.T @ x}


def fp8_steps(recipe: str, x: Tensor, weight: Tensor, dy: Tensor) -> tuple[Any, Any]:
    """Returns functions that cast three operands, and that do the three products with casts."""
    if recipe == "fp8_tensor":

        def cast() -> list[tuple[Tensor, ...]]:
            operands = ((x, E4M3), (weight, E4M3), (dy, E5M2))
            return [
                fp8_operators.cast_tensor(t, t.abs().amax().float(), fp8) for t, fp8 in operands
            ]

        def multiply(casts: list[tuple[Tensor, ...]]) -> dict[str, Tensor]:
            (xc, xt, xs), (wc, wt, ws), (dc, dt, ds) = casts
            product = fp8_operators.multiply_tensor
            return {
                "forward": product(xc, wc, xs, ws, x.dtype, True),
                "by_input": product(dc, wt, ds, ws, x.dtype, False),
                "by_weight": product(dt, xt, ds, xs, weight.dtype, False),
            }

        return cast, multiply

    def cast_in_blocks() -> list[tuple[Tensor, ...]]:
        return [
            fp8_operators.cast_blocks(x),
            fp8_operators.cast_squares(weight),
            fp8_operators.cast_blocks(dy),
        ]

    def multiply_blocks(casts: list[tuple[Tensor, ...]]) -> dict[str, Tensor]:
        (xc, xs, xt, xts), (wc, ws, wt, wts), (dc, ds, dt, dts) = casts
        product = fp8_operators.multiply_blocks
        return {
            "forward": product(xc, wc, xs, ws, True, x.dtype),
            "by_input": product(dc, wt, ds, wts, True, x.dtype),
            "by_weight": product(dt, xt, dts, xts, False, weight.dtype),
        }

    return cast_in_blocks, multiply_blocks


def fp8_products(recipe: str, x: Tensor, weight: Tensor, dy: Tensor) -> dict[str, Tensor]:
    cast, multiply = fp8_steps(recipe, x, weight, dy)
    return multiply(cast())


def plain_products(x: Tensor, weight: Tensor, dy: Tensor) -> dict[str, Tensor]:
    cast = weight.to(x.dtype)
    return {"forward": x @ cast.T, "by_input": dy @ cast, "by_weight": dy.T @ x}


def median_us(function: Callable[[], Any], device: torch.device) -> float | None:
    """Returns the median microseconds of a call, by CUDA events, or None on a CPU."""
    if device.type != "cuda":
        return None
    for _ in range(3):
        function()
    times = []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return round(statistics.median(times), 1)


def product_shapes(config: HybridConfig) -> dict[str, tuple[int, int]]:
    """Returns (in_features, out_features) of a model's products by name."""
    hidden, inner = config.hidden_size, config.mamba_inner_size
    in_proj = inner + config.convolution_size + config.mamba_num_heads
    return {
        "in_proj": (hidden, in_proj),
        "out_proj": (inner, hidden),
        "up_proj": (hidden, config.intermediate_size),
        "down_proj": (config.intermediate_size, hidden),
    }


def measure_products(run: PretrainRun, tokens: int, device: torch.device) -> dict[str, Any]:
    """Measures errors and times of the three products at each shape of a model.

    `casts_us` of fp8_tensor, which look for the largest value in passes of their own here, are
    above those in a compiled layer, where that joins what makes the operand.
    """
    rows = []
    generator = torch.Generator(device).manual_seed(0)
    for name, (inner, outer) in product_shapes(run.model).items():
        row: dict[str, Any] = {"model": run.name, "product": name, "tokens": tokens}
        row |= {"in_features": inner, "out_features": outer, "relative_error": {}}
        for outliers in (False, True):
            operands = random_operands(tokens, inner, outer, generator, outliers)
            wanted = exact_products(*operands)
            found = {recipe: fp8_products(recipe, *operands) for recipe in FP8}
            found["plain"] = plain_products(*operands)
            row["relative_error"]["outlier channels" if outliers else "gaussian"] = {
                recipe: {k: relative_error(t, wanted[k]) for k, t in products.items()}
                for recipe, products in found.items()
            }
            del wanted, found
        operands = random_operands(tokens, inner, outer, generator, False)
        times: dict[str, Any] = {
            "plain": {"all_us": median_us(lambda o=operands: plain_products(*o), device)}
        }
        for recipe in FP8:
            cast, multiply = fp8_steps(recipe, *operands)
            casts = cast()
            times[recipe] = {
                "casts_us": median_us(cast, device),
                "products_us": median_us(lambda m=multiply, c=casts: m(c), device),
            }
        rows.append({**row, "times": times})
        say(f"{run.name} {name}: {json.dumps(times)}")
    return {"rows": rows}
