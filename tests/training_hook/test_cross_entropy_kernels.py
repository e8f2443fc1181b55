"""The cross-entropy's Triton kernel without a GPU, in Triton's interpreter."""

from importlib.util import find_spec

import pytest
import torch

from tests.training_hook.triton_interpreter import run_in_interpreter
from training_hook.cross_entropy import differentiate

CASES = ((5, 11, 0.0), (7, 100, 0.1), (4, 64, 0.01), (1, 1, 0.0))  # rows, columns, z-loss


def compare_with_plain() -> None:
    """Runs the kernel; to be called where TRITON_INTERPRET is set before Triton is imported."""
    from training_hook.kernels import cross_entropy_kernels

    walk = cross_entropy_kernels.Walk(block=16, blocks=2, warps=1)
    for rows, columns, z_loss in CASES:
        generator = torch.Generator().manual_seed(rows)
        logits = 9 * torch.randn(rows, columns, generator=generator)
        logits[0, 1:2] = -torch.inf
        targets = 3 * torch.arange(rows) % columns
        mask = torch.arange(rows) % 3 != 1
        # to BF16 the interpreter cuts, a GPU rounds
        for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 8e-3)):
            given = logits.to(dtype)
            exact = given.double()
            wanted = differentiate(exact, targets, mask, z_loss)
            got = cross_entropy_kernels.differentiate(given, targets, mask, z_loss, walk)
            torch.testing.assert_close(got, wanted, rtol=2e-6, atol=2e-6, check_dtype=False)
            limits = {"rtol": tolerance, "atol": tolerance / 100}
            torch.testing.assert_close(given, exact, **limits, check_dtype=False)
            assert not given[~mask].any()
    for bad in (torch.nan, torch.inf):
        logits = torch.zeros(2, 40)
        logits[1, 7] = bad
        nats, _ = cross_entropy_kernels.differentiate(
            logits, torch.tensor([3, 3]), torch.ones(2, dtype=torch.bool), 0.0, walk
        )
        assert nats.isfinite().tolist() == [True, False]
        assert logits.isfinite().all(1).tolist() == [True, False]


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")
def test_cross_entropy_kernel_in_the_interpreter_equals_plain():
    run_in_interpreter(compare_with_plain)
