"""Which layouts and types of FP8 products cuBLAS takes, their error, and how fast they are.

For the three products of a layer this decides what the casts have to write: A in rows and B in
columns is all that it takes, so that gradients want the transposed casts of x, dy and the weight.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.fp8_products import median_us, relative_error
from training_hook import fp8_emulation
from training_hook.fp8_emulation import E4M3, E5M2
from training_hook.kernels import fp8_operators

SHAPES = (
    (16_384, 2048, 8192),
    (16_384, 2048, 10_304),
    (16_384, 4096, 14_336),
    (16_384, 4096, 16_384),
)
"""Rows, inner and columns of a layer's forward product; the other two follow from it."""
USED = {("rows", "columns", a, b) for a, b in (("e4", "e4"), ("e4", "e5"), ("e5", "e4"))}
"""What our casts write for the three products."""
TYPES = {"e4": E4M3, "e5": E5M2}


class Product(NamedTuple):
    rows: int
    inner: int
    columns: int


def scaled(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, fast: bool) -> Tensor:
    """Returns a @ b in BF16."""
    settings = {"out_dtype": torch.bfloat16, "use_fast_accum": fast}
    return torch._scaled_mm(a, b, scale_a=a_scale, scale_b=b_scale, **settings)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Returns the same matrix with its rows or its columns contiguous."""
    return x.contiguous() if layout == "rows" else x.t().contiguous().t()


def layouts(device: torch.device) -> dict[str, Any]:
    """Tries every layout and pair of types, with one scale for a tensor, at 272 x 400 x 624."""
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(*s, generator=generator, device=device) for s in ((272, 400), (400, 624)))
    wanted, record, missing = a.double() @ b.double(), {}, []
    for a_layout, b_layout, a_type, b_type in product(
        ("rows", "columns"), ("rows", "columns"), TYPES, TYPES
    ):
        casts = []
        for x, layout, kind in ((a, a_layout, a_type), (b, b_layout, b_type)):
            cast, _, scale = fp8_emulation.cast_tensor(x, x.abs().amax(), TYPES[kind])
            casts.append((laid_out(cast, layout), scale))
        name = f"{a_type} in {a_layout} @ {b_type} in {b_layout}"
        (a_cast, a_scale), (b_cast, b_scale) = casts
        try:
            error = relative_error(scaled(a_cast, b_cast, a_scale, b_scale, False), wanted)
        except (RuntimeError, ValueError) as refusal:  # cuBLAS's answer is what is asked for
            record[name] = f"refused: {str(refusal).splitlines()[0][:150]}"
        else:
            record[name] = round(error, 5)
        if (a_layout, b_layout, a_type, b_type) in USED and not isinstance(record[name], float):
            missing.append(f"{name} is refused")
    return {"relative_error_or_refusal": record, "missing": missing}


def products_of(rows: int, inner: int, columns: int) -> dict[str, Product]:
    return {
        "forward": Product(rows, inner, columns),
        "by_input": Product(rows, columns, inner),
        "by_weight": Product(columns, rows, inner),
    }


def ways(name: str, size: Product, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """Returns what does one product in BF16 and in each FP8 recipe, on operands that are there."""
    generator = torch.Generator(device).manual_seed(0)
    a, b = (
        torch.randn(*shape, generator=generator, device=device).bfloat16()
        for shape in ((size.rows, size.inner), (size.columns, size.inner))
    )
    a_type = E4M3 if name == "forward" else E5M2
    (a8, _, a_scale), (b8, _, b_scale) = (
        fp8_operators.cast_tensor(x, x.abs().amax().float(), kind)
        for x, kind in ((a, a_type), (b, E4M3))
    )
    found = {
        "bf16": lambda: a @ b.t(),
        "tensor, fast": partial(scaled, a8, b8.t(), a_scale, b_scale, True),
        "tensor": partial(scaled, a8, b8.t(), a_scale, b_scale, False),
    }
    by_row = a.abs().amax(1, keepdim=True).float() / 448, b.abs().amax(1)[None].float() / 448
    rows8 = (a / by_row[0]).to(E4M3), (b / by_row[1].t()).to(E4M3)
    found["row, fast"] = partial(scaled, rows8[0], rows8[1].t(), *by_row, True)
    if all(n % 128 == 0 for n in size):
        squares = name != "by_weight"
        blocks, scales, *_ = fp8_operators.cast_blocks(a)
        cast = fp8_operators.cast_squares if squares else fp8_operators.cast_blocks
        others, other_scales, *_ = cast(b)
        operands = blocks, others, scales, other_scales, squares, torch.bfloat16
        found["block"] = partial(fp8_operators.multiply_blocks, *operands)
    return found


def speeds(device: torch.device) -> dict[str, Any]:
    """Returns the TFLOP/s of the three products at each shape."""
    record: dict[str, Any] = {}
    for shape in SHAPES:
        row = record.setdefault(" x ".join(map(str, shape)), {})
        for name, size in products_of(*shape).items():
            for way, run in ways(name, size, device).items():
                us = median_us(run, device)
                flops = 2 * size.rows * size.inner * size.columns
                row.setdefault(way, {})[name] = None if us is None else round(flops / us / 1e6)
    return record
