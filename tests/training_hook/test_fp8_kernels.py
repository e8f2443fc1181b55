"""The Triton kernels without a GPU, in Triton's interpreter.

The interpreter does not round to FP8 as hardware does, so values here are ones that FP8 has, at any
scale; rounding is compared on a GPU, in test_fp8_gpu.
"""

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from tests.training_hook.triton_interpreter import run_in_interpreter
from training_hook import fp8_emulation
from training_hook.fp8_emulation import E4M3, E5M2


def exact_values(rows: int, columns: int, mantissa: int, dtype: torch.dtype) -> Tensor:
    """Values with a short mantissa over five octaves, and one row and column of zeros."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(-mantissa, mantissa + 1, (rows, columns), generator=generator)
    powers = torch.randint(-2, 3, (rows, columns), generator=generator)
    x = torch.ldexp(whole.float(), powers)
    x[3], x[:, 5] = 0, 0
    return x.to(dtype)


def assert_same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.is_contiguous()
        if ours.dtype == torch.float32:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        else:
            # as numbers: zero has two signs, and the kernels keep both as the emulation does
            assert torch.equal(ours.float(), theirs.float())


def compare_with_emulation() -> None:
    """Runs every kernel; to be called where TRITON_INTERPRET is set before Triton is imported."""
    from training_hook.kernels import fp8_kernels

    for dtype in (torch.float32, torch.bfloat16):
        wide = exact_values(160, 112, 7, dtype)
        part = wide[:, 16:64]  # rows that are not next to each other; tiles that are not full
        for fp8 in (E4M3, E5M2):
            x = part if fp8 == E4M3 else part.sign() * 2 ** part.abs().clamp(min=1).log2().floor()
            amax = x.abs().amax().float()
            wanted = fp8_emulation.cast_tensor(x, amax, fp8)
            assert_same(fp8_kernels.cast_tensor(x, amax, fp8), wanted)
        x = exact_values(256, 384, 14, dtype)
        assert_same(fp8_kernels.cast_blocks(x), fp8_emulation.cast_blocks(x))
        assert_same(fp8_kernels.cast_blocks(x[:, 128:]), fp8_emulation.cast_blocks(x[:, 128:]))
        assert_same(fp8_kernels.cast_squares(x), fp8_emulation.cast_squares(x))
        x[7, 200], x[130, 300] = torch.inf, torch.nan
        for cast in ("cast_blocks", "cast_squares"):
            found = getattr(fp8_kernels, cast)(x)[1::2]
            assert_same(found, getattr(fp8_emulation, cast)(x)[1::2])
        amax = x.abs().amax().float()
        assert fp8_kernels.cast_tensor(x, amax, E4M3)[2].isnan()


def compare_squared_relu_with_emulation() -> None:
    """Likewise; numbers whose squares FP8 has."""
    from training_hook.kernels import fp8_kernels

    for dtype in (torch.float32, torch.bfloat16):
        wide = exact_values(256, 384, 3, dtype)
        signs = wide.flip(0).sign()
        for part in (slice(16, 64), slice(None)):  # tiles that are not full, and such as are
            up, gradient = wide[: 160 if part.start else 256, part], signs[: len(wide), part]
            for given in (None, gradient[: len(up)]):
                amax = fp8_emulation.squared_relu(up, given).abs().amax().float()
                for fp8 in (E4M3,) if given is None else (E4M3, E5M2):
                    arguments = up, given, amax, fp8
                    wanted = fp8_emulation.cast_squared_relu_tensor(*arguments)
                    assert_same(fp8_kernels.cast_squared_relu_tensor(*arguments), wanted)
        compare_expected(fp8_kernels.cast_expected, wide, signs)
        for given in (None, signs):
            wanted = fp8_emulation.cast_squared_relu_blocks(wide, given)
            assert_same(fp8_kernels.cast_squared_relu_blocks(wide, given), wanted)
        wide[7, 200], wide[130, 300], wide[131, 300] = torch.inf, torch.nan, -torch.inf
        for given in (None, signs):
            found = fp8_kernels.cast_squared_relu_blocks(wide, given)[1::2]
            assert_same(found, fp8_emulation.cast_squared_relu_blocks(wide, given)[1::2])


def compare_expected(cast: Callable[..., tuple[Tensor, ...]], wide: Tensor, signs: Tensor) -> None:
    for squares, gradient in ((False, None), (True, None), (True, signs)):
        for x, by in ((wide[:160, 16:64], signs[:160, 16:64]), (wide, signs)):
            for factor in (1, 2.0**-6):  # with the second some are cut
                by = None if gradient is None else by
                expected = fp8_emulation.squared_relu(x, by) if squares else x
                amax = expected.abs().amax().float() * factor
                arguments = x, squares, by, amax, E4M3
                assert_same(cast(*arguments), fp8_emulation.cast_expected(*arguments))
    broken = wide[:160].clone()
    broken[7, 200], broken[130, 300], broken[131, 300] = torch.inf, torch.nan, -torch.inf
    # the interpreter makes no NaN of FP8, so only the scale and the largest value
    found = cast(broken, False, None, torch.tensor(48.0), E4M3)[2:]
    wanted = fp8_emulation.cast_expected(broken, False, None, torch.tensor(48.0), E4M3)[2:]
    assert_same(found, wanted)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")
@pytest.mark.parametrize("compare", [compare_with_emulation, compare_squared_relu_with_emulation])
def test_kernels_in_the_interpreter_equal_emulation(compare):
    run_in_interpreter(compare)
