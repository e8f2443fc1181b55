"""The convolution's Triton kernels without a GPU, in Triton's interpreter."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training_hook.triton_interpreter import run_in_interpreter
from training_hook.convolution import plain_convolution
from training_hook.kernels.convolution_operators import convolve, convolve_backward

CASES = (  # length, kernel, with documents, with initial state
    (21, 4, False, False),
    (21, 4, True, True),
    (2, 4, True, True),  # shorter than the filter
    (16, 2, True, False),
    (19, 7, False, True),
)


def operands(
    length: int, kernel: int, documents: bool, initial: bool, channels: int = 20
) -> list[Any]:
    """x (a slice of wider rows), weight, bias, document ids and initial state; FP32."""
    generator = torch.Generator().manual_seed(length + kernel)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    ids = (torch.rand(2, length, generator=generator) < 0.3).int().cumsum(1, dtype=torch.int32)
    return [
        normal(2, length, channels + 12)[:, :, 4 : 4 + channels],
        normal(channels, 1, kernel),
        normal(channels),
        ids if documents else None,
        normal(2, kernel - 1, channels) if initial else None,
    ]


def differentiate(run: Callable[..., Tensor], inputs: list[Any], dy: Tensor) -> list[Tensor]:
    """Returns y and the gradients of all inputs that have one."""
    inputs = [t.detach().requires_grad_() if is_floating(t) else t for t in inputs]
    y = run(*inputs)
    gradients = torch.autograd.grad(y, [t for t in inputs if is_floating(t)], dy)
    return [y.detach(), *gradients]


def exact(run: Callable[..., Tensor], inputs: list[Any], dy: Tensor) -> list[Tensor]:
    """The same in FP64."""
    return differentiate(run, [t.double() if is_floating(t) else t for t in inputs], dy.double())


def is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def assert_near(found: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert ours.is_contiguous()
        assert (ours.double() - theirs).norm() < tolerance * theirs.norm()


def compare_with_plain() -> None:
    """Runs all kernels; to be called where TRITON_INTERPRET is set before Triton is imported."""
    from training_hook.kernels import convolution_backward_kernels, convolution_kernels

    # more than one program along both the length and the channels, and walks that are not full
    walk = convolution_kernels.Walk(channels=16, rows=8, chunk=4, warps=1)
    for length, kernel, documents, initial in CASES:
        inputs = operands(length, kernel, documents, initial)
        dy = torch.randn(2, length, 24, generator=torch.Generator().manual_seed(0))[:, :, :20]
        wanted = exact(plain_convolution, inputs, dy)
        y = convolution_kernels.forward(*inputs, walk)
        gradients = convolution_backward_kernels.backward(dy, *inputs, walk=walk)
        assert_near([y, *gradients[: len(wanted) - 1]], wanted, 1e-6)
    compare_operator()


def compare_operator() -> None:
    """Differentiates the operator itself, on the CPU, as it is and compiled."""
    inputs = operands(9, 3, True, True, channels=6)
    dy = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0))
    wanted = exact(plain_convolution, inputs, dy)
    compiled = torch.compile(convolve, backend="aot_eager", fullgraph=True, dynamic=False)
    for run in (convolve, compiled):
        assert_near(differentiate(run, inputs, dy), wanted, 1e-6)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(convolve, tuple(inputs), test_utils=checks)
    torch.library.opcheck(convolve_backward, (dy, *inputs), test_utils=checks)
    without = (*inputs[:4], None)
    torch.library.opcheck(convolve_backward, (dy, *without), test_utils=checks)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")
def test_convolution_kernels_in_the_interpreter_equal_plain():
    run_in_interpreter(compare_with_plain)
