"""Weights cast once a step: the same numbers as casting at each call, and nothing else changes."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training_hook.test_fp8 import RECIPES, layer_of, normal, three_products
from tests.training_hook.test_fp8_training import MODEL, fp8_run
from training_hook import linear
from training_hook.batches import HostBatch
from training_hook.guard import Guard
from training_hook.linear import FP8Linear, Linear
from training_hook.model import HybridModel
from training_hook.optimizer import adamw
from training_hook.step import StepResult, train_step

# the compiler's own use of what PyTorch deprecates
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf",
)
ALL = ("plain", *RECIPES)
# of in_proj's 448 rows, fp8_block runs 384 in FP8
SPLIT = replace(MODEL, mamba_num_heads=64, mamba_head_dim=2)


def model_of(recipe: str, config=SPLIT) -> HybridModel:
    model = HybridModel(config, recipe, (1, 1) if recipe != "plain" else (0, 0))
    model.reset_parameters(torch.Generator().manual_seed(0))
    model.compute_dtype = torch.bfloat16
    return model


def gradients(model: HybridModel) -> list[torch.Tensor]:
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, model.config.vocab_size, (2, 128), generator=generator)
        model.loss(tokens, tokens)[0].backward()
    found = []
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.dtype == torch.float32, name
        found.append(weight.grad)
    model.zero_grad()
    return found


def host_batch(seed: int) -> HostBatch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, SPLIT.vocab_size, (4, 129), generator=generator)
    starts = torch.tensor([[0, 50, 129]] * 4)
    return HostBatch(tokens, None, starts, np.full(4, 128), np.arange(4), {})


def step_of(
    model: HybridModel, optimizer: torch.optim.Optimizer, number: int, micro_batch_size: int
) -> StepResult:
    guard = Guard(0.0, torch.device("cpu"))
    run = fp8_run("plain", batch_size=4, micro_batch_size=micro_batch_size)
    return train_step(model, optimizer, guard, host_batch(number), run)


@pytest.mark.parametrize("recipe", ALL)
def test_held_weights_give_the_gradients_of_casting_at_each_call(recipe):
    model = model_of(recipe)
    wanted = gradients(model)
    with model.held_weights():
        held = gradients(model)
    for (name, _), a, b in zip(model.named_parameters(), held, wanted, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("backend", [None, "aot_eager"])
@pytest.mark.parametrize("recipe", ["plain", "fp8_tensor"])
def test_products_that_add_give_the_gradients_that_autograd_adds(recipe, backend):
    """Over two micro batches and a gradient that is there already."""
    torch._dynamo.reset()
    model, other = model_of(recipe), model_of(recipe)
    if backend:
        model.compile_layers(backend)
        other.compile_layers(backend)
    for number in range(2):
        with model.held_weights(adds=True), other.held_weights():
            for each in (model, other):
                tokens = host_batch(number).tokens.long()
                for rows in tokens.split(2):
                    each.loss(rows[:, :-1], rows[:, 1:]).total.backward()
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_products_that_add_are_those_of_plain_layers_in_a_narrower_dtype():
    model = model_of("plain")
    products = [m for m in model.modules() if isinstance(m, Linear) and m is not model.lm_head]
    for dtype, adds in ((torch.bfloat16, True), (torch.float32, False)):
        model.compute_dtype = dtype
        with model.held_weights(adds=True):
            assert all((product.total is not None) == adds for product in products)
            assert model.lm_head.total is None
        for product in products:
            assert product.total is None
            assert product.weight.grad is None or not product.weight.grad.any()
            product.weight.grad = None
    model.compute_dtype = torch.bfloat16
    products[0].weight.requires_grad_(False)
    with model.held_weights(adds=True):
        assert products[0].weight.grad is products[0].total is None


@pytest.mark.parametrize("recipe", [recipe for recipe in ALL if recipe != "fp8_delayed"])
def test_steps_with_held_weights_equal_steps_without(recipe, monkeypatch):
    model = model_of(recipe)
    other = copy.deepcopy(model)
    optimizers = [adamw(m, (0.9, 0.95), 1e-8, 0.1) for m in (model, other)]
    for step in range(3):
        ours = step_of(model, optimizers[0], step, 1)
        with monkeypatch.context() as patch:
            patch.setattr(Linear, "hold", lambda *_: None)
            patch.setattr(FP8Linear, "hold", lambda *_: None)
            theirs = step_of(other, optimizers[1], step, 1)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("recipe", ALL)
def test_held_weights_are_cast_once_and_not_in_checkpoints(recipe, monkeypatch):
    model = model_of(recipe)
    names = set(model.state_dict()), [name for name, _ in model.named_parameters()]
    calls = []
    cast_weight = linear.cast_weight
    monkeypatch.setattr(linear, "cast_weight", lambda w, r: calls.append(r) or cast_weight(w, r))
    with model.held_weights():
        gradients(model)
    low = [m for m in model.modules() if isinstance(m, FP8Linear)]
    assert len(calls) == len(low)
    assert (set(model.state_dict()), [name for name, _ in model.named_parameters()]) == names
    spent = sum(buffer.nbytes for buffer in model.buffers())
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, Linear))
    assert 2 * weights <= spent < 2.1 * weights


@pytest.mark.parametrize("recipe", ALL)
def test_held_weights_outside_of_the_hold_are_never_used(recipe):
    layer = layer_of(recipe)
    x, dy = normal(128, 256).bfloat16(), normal(128, 384).bfloat16()
    layer.hold(torch.bfloat16)
    layer.release()
    with torch.no_grad():
        layer.weight.mul_(2)
    fresh = layer_of(recipe)
    with torch.no_grad():
        fresh.weight.mul_(2)
    for a, b in zip(three_products(layer, x, dy), three_products(fresh, x, dy), strict=True):
        assert torch.equal(a, b)
    layer.hold(torch.bfloat16)
    for a, b in zip(three_products(layer, x, dy), three_products(fresh, x, dy), strict=True):
        assert torch.equal(a, b)


def test_held_weights_are_released_by_an_error():
    model = model_of("fp8_block")
    with pytest.raises(KeyError), model.held_weights():
        raise KeyError
    assert not any(m.held for m in model.modules() if isinstance(m, Linear))


@pytest.mark.parametrize("recipe", ["plain", "fp8_tensor", "fp8_delayed", "fp8_block"])
def test_held_weights_keep_their_addresses_and_compile_once(recipe):
    torch._dynamo.reset()
    model = model_of(recipe)
    eager = copy.deepcopy(model)
    model.compile_layers("aot_eager")
    optimizers = [adamw(m, (0.9, 0.95), 1e-8, 0.1) for m in (model, eager)]
    warm = 2 if recipe == "fp8_delayed" else 1  # the first has no history
    for step in range(warm):
        step_of(model, optimizers[0], step, 2)
        step_of(eager, optimizers[1], step, 2)
    places = {name: buffer.data_ptr() for name, buffer in model.named_buffers()}
    assert places
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in (2, 3):
            ours = step_of(model, optimizers[0], step, 2)
    for step in (2, 3):
        theirs = step_of(eager, optimizers[1], step, 2)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-3, atol=0)
    assert {name: buffer.data_ptr() for name, buffer in model.named_buffers()} == places


@pytest.mark.parametrize("recipe", RECIPES)
def test_held_weights_follow_a_switch_of_precision(recipe):
    model, plain = model_of(recipe), model_of("plain")
    low = gradients(model)
    for on in (True, False, True):
        model.set_low_precision(on)
        with model.held_weights():
            found = gradients(model)
        for a, b in zip(found, low if on else gradients(plain), strict=True):
            assert torch.equal(a, b)


def test_weights_in_the_dtype_of_products_are_not_copied():
    model = model_of("plain")
    model.compute_dtype = torch.float32
    with model.held_weights():
        assert not list(model.buffers())
