"""Delayed scaling: what is expected of a product, what it saw, and what it does with it."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.training_hook.test_fp8 import layer_of, normal, three_products
from tests.training_hook.test_fp8_mlp import Stack
from training_hook.amax_history import STEPS, AmaxHistory
from training_hook.fp8_emulation import E4M3, E5M2, cast_tensor, power_of_two_scale, squared_relu
from training_hook.fp8_mlp import fp8_squared_relu_mlp
from training_hook.kernels import fp8_operators
from training_hook.linear import FP8Linear

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def delayed_layer(in_features: int = 256, out_features: int = 384) -> tuple[FP8Linear, AmaxHistory]:
    layer = layer_of("fp8_delayed", in_features, out_features)
    assert isinstance(layer, FP8Linear)
    assert layer.history is not None
    return layer, layer.history


def step(layer: FP8Linear, history: AmaxHistory, *micro_batches: tuple[Tensor, Tensor]) -> None:
    layer.hold(torch.float32)
    for x, dy in micro_batches:
        layer(x).backward(dy)
        history.record()
    layer.release()


@DTYPES
@pytest.mark.parametrize("fp8", [E4M3, E5M2])
@pytest.mark.parametrize("squares", [False, True])
def test_cast_with_the_largest_value_expected_is_the_cast_of_now(dtype, fp8, squares):
    x, gradient = normal(128, 48).to(dtype), normal(128, 48, seed=1).to(dtype)
    for by in (None, gradient) if squares else (None,):
        written = squared_relu(x, by) if squares else x
        amax = written.abs().amax().float()
        *found, largest = fp8_operators.cast_expected(x, squares, by, amax, fp8)
        assert largest == amax
        for ours, theirs in zip(found, cast_tensor(written, amax, fp8), strict=True):
            assert torch.equal(ours.float(), theirs.float())


@pytest.mark.parametrize("fp8", [E4M3, E5M2])
@settings(max_examples=25)
@given(factor=st.floats(1.0, 2.0**100, width=32))
def test_cast_of_more_than_expected_is_cut_to_the_largest(fp8, factor):
    x = normal(32, 48)
    cast, _, scale, largest = fp8_operators.cast_expected(
        x * factor, False, None, x.abs().amax(), fp8
    )
    limit = torch.finfo(fp8).max
    assert scale == power_of_two_scale(x.abs().amax(), fp8)
    assert largest == (x * factor).abs().amax()
    wanted = (x * factor / scale).clamp(-limit, limit).to(fp8)
    assert torch.equal(cast.float(), wanted.float())


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_cast_of_what_is_not_finite_is_nan_in_its_place(bad):
    x = normal(32, 48)
    x[5, 7] = bad
    cast, turned, scale, largest = fp8_operators.cast_expected(
        x, False, None, torch.tensor(1.0), E4M3
    )
    assert cast.float().isnan().nonzero().tolist() == [[5, 7]]
    assert turned.float().isnan().nonzero().tolist() == [[7, 5]]
    assert scale.isfinite()
    assert not largest.isfinite()


def test_history_takes_the_largest_of_its_micro_batches_and_steps():
    layer, history = delayed_layer()
    wanted = torch.zeros(STEPS, 2)
    for number in range(STEPS + 3):
        batches = [
            (
                normal(32, 256, seed=10 * number + k) * 2 ** (number % 5),
                normal(32, 384, seed=10 * number + k + 5),
            )
            for k in range(3)
        ]
        step(layer, history, *batches)
        newest = [
            max(float(t.abs().amax()) for t in tensors) for tensors in zip(*batches, strict=True)
        ]
        wanted = torch.cat([torch.tensor([newest]), wanted[:-1]])
        assert torch.equal(history.amaxes, wanted)
        layer.hold(torch.float32)
        assert torch.equal(history.expected, wanted.amax(0))
        assert layer.delayed().expected is history.expected
        history.recording = False  # no step of its own
        layer.release()


def test_first_step_scales_by_what_is_there_and_the_second_by_the_first():
    layer, history = delayed_layer()
    x, dy = normal(32, 256), normal(32, 384, seed=1)
    current = three_products(layer_of("fp8_tensor"), x, dy)
    layer.hold(torch.float32)
    for ours, theirs in zip(three_products(layer, x, dy), current, strict=True):
        assert torch.equal(ours, theirs)
    layer.release()
    step(layer, history, (x, dy))
    assert history.amaxes[0].tolist() == [x.abs().amax(), dy.abs().amax()]
    layer.hold(torch.float32)
    for ours, theirs in zip(three_products(layer, x, dy), current, strict=True):
        assert torch.equal(ours, theirs)
    # what is 8 times as large is cut, so the scale cannot be that of now
    large, now = three_products(layer, 8 * x, dy)[0], three_products(layer, x, dy)[0]
    assert large.abs().amax() < 6 * now.abs().amax()
    layer.release()
    # outside of a step nothing is expected
    for ours, theirs in zip(three_products(layer, 8 * x, dy), current, strict=True):
        assert ours.shape == theirs.shape
    assert torch.equal(three_products(layer, 8 * x, dy)[0], 8 * current[0])


def test_history_leaves_out_what_is_not_finite():
    layer, history = delayed_layer()
    x, dy = normal(32, 256), normal(32, 384, seed=1)
    step(layer, history, (x, dy))
    before = history.amaxes[0].clone()
    broken = x.clone()
    broken[3, 4] = torch.inf
    step(layer, history, (broken, dy))
    assert torch.equal(history.amaxes[1], before)
    assert history.amaxes[0].tolist() == [0, dy.abs().amax()]
    assert layer.weight.grad is not None
    assert layer.weight.grad[:, 4].isnan().all()
    layer.weight.grad = None
    step(layer, history, (x, dy))
    assert layer.weight.grad.isfinite().all()


def test_history_of_zeros_goes_on_scaling_by_what_is_there():
    layer, history = delayed_layer()
    x, dy = normal(32, 256), 1e-9 * normal(32, 384, seed=1)
    step(layer, history, (x, torch.zeros_like(dy)))
    layer.weight.grad = None
    step(layer, history, (x, dy))
    assert layer.weight.grad is not None
    assert layer.weight.grad.any()


def test_mlp_sees_what_its_products_see():
    x, dy = normal(32, 256), normal(32, 128, seed=1)
    stack = Stack("fp8_delayed", True)
    up, down = stack.up, stack.down
    assert isinstance(up, FP8Linear)
    assert isinstance(down, FP8Linear)

    def results(fused: bool) -> list[Tensor]:
        for product in (up, down):
            product.hold(torch.float32)
        if fused:
            casts, delayed = (up.cast(), down.cast()), (up.delayed(), down.delayed())
            y = fp8_squared_relu_mlp(x, up.weight, down.weight, *casts, up.recipe, *delayed)
        else:
            y = down(F.relu(up(x)).square())
        y.backward(dy)
        found = [y.detach()]
        for product in (up, down):
            assert product.history is not None
            product.history.record()
            found.append(product.history.seen.clone())
            assert product.weight.grad is not None
            found.append(product.weight.grad)
            product.weight.grad = None
            product.release()
        return found

    for _ in range(3):  # without a history, and with one
        ours, theirs = results(True), results(False)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
