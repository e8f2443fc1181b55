"""The gated norm's Triton kernels without a GPU, in Triton's interpreter."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from tests.training_hook.test_convolution_kernels import assert_near, differentiate, exact
from tests.training_hook.triton_interpreter import run_in_interpreter
from training_hook.kernels.norm_operators import gated_norm, gated_norm_backward
from training_hook.norm import plain_gated_norm

CASES = ((13, 128, 2), (11, 240, 2), (5, 600, 1), (1, 24, 3))  # tokens, size, groups


def operands(tokens: int, size: int, groups: int) -> list[Any]:
    """Slices of wider rows, weight, groups and epsilon; FP32."""
    generator = torch.Generator().manual_seed(tokens)
    wide = torch.randn(1, tokens, 2 * size + 8, generator=generator)
    weight = torch.randn(size, generator=generator)
    return [wide[..., 4 : size + 4], wide[..., size + 4 : -4], weight, groups, 1e-3]


def output(*inputs: Any) -> torch.Tensor:
    return gated_norm(*inputs)[0]


def compare_with_plain() -> None:
    """Runs all kernels; to be called where TRITON_INTERPRET is set before Triton is imported."""
    from training_hook.kernels import norm_kernels

    walk = norm_kernels.Walk(rows=4, values=40)
    for tokens, size, groups in CASES:
        inputs = operands(tokens, size, groups)
        dy = torch.randn(1, tokens, size + 3, generator=torch.Generator().manual_seed(0))[..., 3:]
        wanted = exact(plain_gated_norm, inputs, dy)
        y, inverse = norm_kernels.forward(*inputs, walk)
        gradients = norm_kernels.backward(dy, *inputs[:3], inverse, walk=walk)
        assert_near([y, *gradients], wanted, 1e-6)
    dy = torch.ones(1, 1, 24)
    wanted = exact(plain_gated_norm, inputs, dy)
    compiled = torch.compile(output, backend="aot_eager", fullgraph=True, dynamic=False)
    for run in (output, compiled):
        assert_near(differentiate(run, inputs, dy), wanted, 1e-6)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(gated_norm, tuple(inputs), test_utils=checks)
    saved = (dy, *inputs[:3], inverse)
    torch.library.opcheck(gated_norm_backward, saved, test_utils=checks)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")
def test_norm_kernels_in_the_interpreter_equal_plain():
    run_in_interpreter(compare_with_plain)
