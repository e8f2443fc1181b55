"""Each of our kernels against float64: forward and all gradients, at shapes where masks matter.

Lengths that no tile divides, packed documents, initial states, several numbers of heads. Errors are
relative, in norm, over BF16 inputs; what is allowed is rounding to BF16, or to FP8 where products
run in it (one scale for a tensor: 0.037 a product, 0.059 with E5M2 gradients). Over few values the
rounding of the exact result alone may come to more than over many (0.00166): that much is allowed.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.fp8_products import relative_error
from benchmarks.kernel_cases import Case, Draw, results
from training_hook.convolution import plain_convolution
from training_hook.cross_entropy import linear_cross_entropy
from training_hook.fp8 import cast_weight, fp8_linear
from training_hook.fp8_mlp import fp8_squared_relu_mlp
from training_hook.fp8_scaling import NOT_DELAYED
from training_hook.kernels.convolution_operators import convolve
from training_hook.kernels.norm_operators import gated_norm
from training_hook.kernels.ssd_operators import ssd_packed
from training_hook.norm import plain_gated_norm

FP8_RECIPES = ("fp8_tensor", "fp8_tensor_e4m3", "fp8_block")
BLOCK = 128


class Allowed(NamedTuple):
    """The largest relative error in norm."""

    forward: float
    gradients: float


ALLOWED = {
    "convolution": Allowed(0.002, 0.002),
    "norm": Allowed(0.002, 0.002),
    "scan": Allowed(0.004, 0.008),
    "cross_entropy": Allowed(0.001, 0.006),
    "linear": Allowed(0.04, 0.065),
    "mlp": Allowed(0.065, 0.1),
}


def documents(draw: Draw, batch: int, length: int, mean: int) -> Tensor:
    """Ids of packed documents of a mean length, each row's its own."""
    starts = draw(batch, length).float() < -1  # one in six
    thinned = torch.arange(length, device=starts.device) % max(1, mean // 6) == 0
    return (starts & thinned).cumsum(1, dtype=torch.int32)


def convolution_cases(draw: Draw) -> Iterator[Case]:
    for length, channels, taps, packed in (
        (1000, 640, 4, False),
        (1001, 6144, 4, True),
        (257, 250, 4, True),
        (2, 640, 4, True),
        (130, 384, 8, True),
    ):
        wide = draw(2, length, channels + 32)
        ids = documents(draw, 2, length, 100) if packed else None
        inputs = {
            "x": wide[..., 16 : channels + 16],
            "weight": draw(channels, 1, taps).float() / 2,
            "bias": draw(channels).float() / 2,
            "document_ids": ids,
            "initial_state": draw(2, taps - 1, channels) if packed else None,
        }
        name = f"{length} x {channels}, {taps} taps{', packed' * packed}"
        yield Case(name, convolve, plain_convolution, inputs, draw(2, length, channels), (0, 0))


def norm_cases(draw: Draw) -> Iterator[Case]:
    for tokens, size, groups in (
        (1001, 4096, 8),
        (77, 10_240, 8),
        (300, 10_240, 128),
        (33, 500, 4),
        (1, 640, 2),
    ):
        wide = draw(tokens, 2 * size + 64)
        inputs = {
            "x": wide[:, :size],
            "gate": wide[:, size : 2 * size],
            "weight": draw(size).float(),
            "groups": groups,
            "epsilon": 1e-5,
        }
        name = f"{tokens} x {size}, {groups} groups"
        kernel = lambda *given: gated_norm(*given)[0]  # noqa: E731
        yield Case(name, kernel, plain_gated_norm, inputs, draw(tokens, size), (0, 0))


def scan_alone(
    x: Tensor, B: Tensor, C: Tensor, dt: Tensor, *others: Any, sizes: tuple[int, int, int]
) -> Tensor:
    """The scan's y, from x, B and C apart, so that each has an error of its own."""
    A, D, dt_bias, ids, state = others
    xbc = torch.cat([x, B, C], dim=-1)
    return ssd_packed(xbc, dt, A, D, dt_bias, *sizes, ids, state)[0]


def scan_cases(draw: Draw) -> Iterator[Case]:
    for length, heads, groups, head_dim, state_size, packed in (
        (1000, 64, 8, 64, 128, True),
        (777, 128, 8, 64, 128, True),
        (512, 64, 8, 64, 128, False),
        (333, 128, 8, 80, 128, True),
        (201, 8, 2, 128, 64, True),
        (129, 4, 1, 128, 256, False),
        (2, 8, 8, 32, 32, True),
    ):
        inner, maps = heads * head_dim, groups * state_size
        uniform = torch.linspace(0, 1, heads, device=draw(1).device)
        step = torch.exp(uniform * 4.6 - 6.9)  # from 0.001 to 0.1, a fresh model's
        inputs = {
            "x": draw(2, length, inner),
            "B": draw(2, length, maps),
            "C": draw(2, length, maps),
            "dt": draw(2, length, heads),
            "A": -1 - 15 * uniform,
            "D": draw(heads).float(),
            "dt_bias": step + torch.log(-torch.expm1(-step)),
            "document_ids": documents(draw, 2, length, 150) if packed else None,
            "initial_state": draw(2, heads, head_dim, state_size).float() if packed else None,
        }
        run = partial(scan_alone, sizes=(groups, state_size, 128))
        name = f"{length} long, {heads} heads of {head_dim}, {groups} groups{', packed' * packed}"
        # in float64 the same function goes through plain PyTorch
        yield Case(name, run, run, inputs, draw(2, length, inner), (0, 0))


def cross_entropy_alone(hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, weight, targets, mask, 256)[0]


def plain_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    nats = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    return (nats * mask).sum()


def cross_entropy_cases(draw: Draw) -> Iterator[Case]:
    for tokens, hidden, vocabulary in ((1000, 256, 5003), (513, 2048, 8192)):
        inputs = {
            "hidden": draw(tokens, hidden),
            "weight": 0.02 * draw(vocabulary, hidden).float(),
            "targets": (draw(tokens).float().abs() * 1000).long() % vocabulary,
            "mask": draw(tokens) > -1,
        }
        one = torch.ones((), device=inputs["hidden"].device)
        name = f"{tokens} x {hidden}, {vocabulary} words"
        yield Case(name, cross_entropy_alone, plain_cross_entropy, inputs, one, (0, 0))


def linear_alone(x: Tensor, weight: Tensor, recipe: str) -> Tensor:
    return fp8_linear(x, weight, cast_weight(weight, recipe), recipe)


def plain_linear(x: Tensor, weight: Tensor, recipe: str) -> Tensor:
    return x @ weight.T


def linear_cases(draw: Draw) -> Iterator[Case]:
    for recipe in FP8_RECIPES:
        for tokens, inner, outer in ((1008, 2048, 10_304), (272, 400, 624), (512, 640, 384)):
            if recipe == "fp8_block":
                tokens, inner, outer = (-(-n // BLOCK) * BLOCK for n in (tokens, inner, outer))
            inputs = {"x": draw(tokens, inner), "weight": 0.02 * draw(outer, inner).float()}
            name = f"{recipe}, {tokens} x {inner} x {outer}"
            dy = 1e-6 * draw(tokens, outer)
            yield Case(name, linear_alone, plain_linear, {**inputs, "recipe": recipe}, dy, (0, 0))


def mlp_alone(x: Tensor, up: Tensor, down: Tensor, recipe: str) -> Tensor:
    casts = cast_weight(up, recipe), cast_weight(down, recipe)
    return fp8_squared_relu_mlp(x, up, down, *casts, recipe, NOT_DELAYED, NOT_DELAYED)


def plain_mlp(x: Tensor, up: Tensor, down: Tensor, recipe: str) -> Tensor:
    return F.relu(x @ up.T).square() @ down.T


def mlp_cases(draw: Draw) -> Iterator[Case]:
    for recipe in FP8_RECIPES:
        tokens, width, inner = (1024, 512, 2048) if recipe == "fp8_block" else (1008, 400, 1616)
        inputs = {
            "x": draw(tokens, width),
            "up": draw(inner, width).float() / width**0.5,
            "down": draw(width, inner).float() / inner**0.5,
            "recipe": recipe,
        }
        name = f"{recipe}, {tokens} x {width} x {inner}"
        yield Case(name, mlp_alone, plain_mlp, inputs, 1e-6 * draw(tokens, width), (0, 0))


CASES = {
    "convolution": convolution_cases,
    "norm": norm_cases,
    "scan": scan_cases,
    "cross_entropy": cross_entropy_cases,
    "linear": linear_cases,
    "mlp": mlp_cases,
}


def errors_of(case: Case) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the relative errors of y and the gradients by name, and those of mere rounding."""
    exact, found = results(case.plain, case, exact=True), results(case.kernel, case)
    errors = {name: relative_error(found[name], exact[name]) for name in exact}
    rounded = {name: exact[name].to(found[name].dtype) for name in exact}
    return errors, {name: relative_error(rounded[name], exact[name]) for name in exact}


def worst(errors: dict[str, dict[str, float]]) -> dict[str, float]:
    """Returns the largest error of the forward pass and of the gradients over cases."""
    return {
        "forward": max(case["y"] for case in errors.values()),
        "gradients": max(e for case in errors.values() for k, e in case.items() if k != "y"),
    }


def kernel_errors(draw: Draw) -> dict[str, Any]:
    """Compares every kernel and says which errors are larger than allowed."""
    record: dict[str, Any] = {"cases": {}, "worst": {}, "too_large": []}
    for kernel, cases in CASES.items():
        found = {case.name: errors_of(case) for case in cases(draw)}
        errors = record["cases"][kernel] = {name: pair[0] for name, pair in found.items()}
        record["worst"][kernel] = {**worst(errors), "allowed": ALLOWED[kernel]._asdict()}
        for name, pair in found.items():
            for what in too_large(ALLOWED[kernel], *pair):
                record["too_large"].append(f"{kernel}, {name}, {what}: {pair[0][what]:.5f}")
    return record


def too_large(allowed: Allowed, errors: dict[str, float], rounding: dict[str, float]) -> list[str]:
    """Returns the names of the errors beyond what is allowed and beyond mere rounding."""
    return [
        what
        for what, error in errors.items()
        if not error
        <= max(allowed.forward if what == "y" else allowed.gradients, 1.05 * rounding[what])
    ]
