"""The Triton kernels without a GPU, in Triton's interpreter, against `ssd` in float64.

The interpreter multiplies BF16 otherwise than hardware, so inputs here are float32; what rounding
does is measured on a GPU, in test_ssd_gpu.
"""

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from tests.training_hook.triton_interpreter import run_in_interpreter
from training_hook.kernels import ssd_operators
from training_hook.ssd import ssd

Case = dict[str, Tensor | None]
NAMES = ("xbc", "dt", "A", "D", "dt_bias", "initial_state")


def draw_case(
    batch: int,
    length: int,
    heads: int,
    groups: int,
    head_dim: int,
    state_size: int,
    documents: bool,
    initial: bool,
) -> tuple[Case, tuple[Tensor, Tensor]]:
    """Returns the arguments of a scan in float64, and gradients of its two results."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    channels = heads * head_dim + 2 * groups * state_size
    # steps log-uniform in [0.001, 0.1] around which dt varies, rates in [1, 16]: a fresh model's
    step = torch.exp(torch.empty(heads).uniform_(-6.9, -2.3, generator=generator)).double()
    starts = torch.rand(batch, length, generator=generator) < 4 / length
    state = (batch, heads, head_dim, state_size)
    case: Case = {
        "xbc": normal(batch, length, channels),
        "dt": normal(batch, length, heads),
        "A": -1 - 15 * torch.rand(heads, generator=generator, dtype=torch.float64),
        "D": normal(heads),
        "dt_bias": step + torch.log(-torch.expm1(-step)),
        "document_ids": starts.int().cumsum(1, dtype=torch.int32) if documents else None,
        "initial_state": normal(*state) if initial else None,
    }
    return case, (normal(batch, length, heads * head_dim), normal(*state))


def exact_results(case: Case, weights: tuple[Tensor, Tensor], groups: int) -> dict[str, Tensor]:
    """Results of `ssd` in float64 and their gradients."""
    leaves = {
        name: t.detach().double().requires_grad_()
        for name in NAMES
        if (t := case[name]) is not None
    }
    xbc, state_size = leaves["xbc"], weights[1].shape[-1]
    maps = groups * state_size
    x, B, C = xbc.split([xbc.shape[-1] - 2 * maps, maps, maps], dim=-1)
    y, final = ssd(
        x.unflatten(-1, (leaves["dt"].shape[-1], -1)),
        leaves["dt"],
        leaves["A"],
        B.unflatten(-1, (groups, -1)),
        C.unflatten(-1, (groups, -1)),
        leaves["D"],
        leaves["dt_bias"],
        64,
        case["document_ids"],
        leaves.get("initial_state"),
    )
    y = y.flatten(-2)
    loss = (y * weights[0].double()).sum() + (final * weights[1].double()).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = dict(zip(leaves, gradients, strict=True))
    dx, dB, dC = named.pop("xbc").split([xbc.shape[-1] - 2 * maps, maps, maps], dim=-1)
    return {"y": y.detach(), "final": final.detach(), "x": dx, "B": dB, "C": dC, **named}


def relative_errors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors in norm, by name."""
    return {name: float((found[name].double() - t).norm() / t.norm()) for name, t in wanted.items()}


def let_loops_end_at_arguments() -> None:
    """Mends Triton 3.6.0's interpreter: newer NumPy makes no number of an array of one number."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_index_too(tensor, scope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_index_too


def compare_with_reference() -> None:
    """Runs all kernels; to be called where TRITON_INTERPRET is set before Triton is imported."""
    from training_hook.kernels import ssd_backward_kernels, ssd_forward_kernels, ssd_state_kernels
    from training_hook.kernels.ssd_state_kernels import Inputs, Launch

    let_loops_end_at_arguments()
    ssd_state_kernels.CARRY_TILE = 16  # several tiles along both sides of a state
    heads, groups = 4, 2
    for length, head_dim, state_size, chunk, documents, initial in (
        (37, 16, 16, 16, False, False),
        (70, 16, 16, 32, True, True),
        (45, 24, 32, 16, True, False),
        (50, 16, 16, 16, False, True),
    ):
        sizes = (2, length, heads, groups, head_dim, state_size)
        case, weights = draw_case(*sizes, documents, initial)
        wanted = exact_results(case, weights, groups)
        single = {n: t if t is None or n == "document_ids" else t.float() for n, t in case.items()}
        # as the layer has them: columns of wider rows
        wide = torch.randn(2, length, single["xbc"].shape[-1] + heads + 8)
        xbc, dt = wide[..., 8:-heads], wide[..., -heads:]
        xbc.copy_(single["xbc"])
        dt.copy_(single["dt"])
        dy, dfinal = (t.float() for t in weights)
        names = ("A", "D", "dt_bias", "document_ids", "initial_state")
        inputs = Inputs(xbc, dt, *(single[name] for name in names), groups, state_size)
        launch = Launch(chunk, 4, 1)
        y, final = ssd_forward_kernels.forward(inputs, launch)
        gradients = ssd_backward_kernels.backward(inputs, dy, dfinal, launch=launch)
        dxbc, ddt, by_head, dinitial = gradients
        inner, maps = heads * head_dim, groups * state_size
        dx, dB, dC = dxbc.split([inner, maps, maps], dim=-1)
        found = {"y": y, "final": final, "x": dx, "B": dB, "C": dC, "dt": ddt}
        found |= dict(zip(("A", "D", "dt_bias"), by_head.unbind(1), strict=True))
        found["initial_state"] = dinitial
        for name, error in relative_errors(found, wanted).items():
            assert error < 3e-5, f"{name} at length {length} differs by {error}"
    case, weights = draw_case(2, 70, heads, groups, 16, 16, documents=True, initial=True)
    wanted = exact_results(case, weights, groups)
    for name, error in relative_errors(scan_results(case, weights, groups), wanted).items():
        assert error < 3e-5, f"{name} of the operator differs by {error}"


def scan_results(
    case: Case, weights: tuple[Tensor, Tensor], groups: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Results of the operator and their gradients; xbc and dt in a dtype, all else in float32."""
    low = {"xbc": dtype, "dt": dtype}
    leaves = {
        name: t.detach().to(low.get(name, torch.float32)).requires_grad_()
        for name in NAMES
        if (t := case[name]) is not None
    }
    y, final = ssd_operators.scan(
        *(leaves[name] for name in NAMES[:5]),
        case["document_ids"],
        leaves.get("initial_state"),
        groups,
        weights[1].shape[-1],
    )
    by = (weights[0].to(y.dtype), weights[1].to(final.dtype))
    gradients = torch.autograd.grad([y, final], list(leaves.values()), by)
    named = dict(zip(leaves, gradients, strict=True))
    for name, leaf in leaves.items():
        assert named[name].dtype == leaf.dtype
    dxbc, maps = named.pop("xbc"), groups * weights[1].shape[-1]
    dx, dB, dC = dxbc.split([y.shape[-1], maps, maps], dim=-1)
    return {"y": y.detach(), "final": final.detach(), "x": dx, "B": dB, "C": dC, **named}


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")
def test_kernels_in_the_interpreter_equal_reference():
    run_in_interpreter(compare_with_reference)
