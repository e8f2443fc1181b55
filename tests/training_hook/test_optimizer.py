import copy

import pytest
import torch
from torch import nn

from training_hook.config import HybridConfig
from training_hook.model import HybridModel
from training_hook.optimizer import adamw, decays, moments, set_learning_rate, set_steps


def small_model() -> HybridModel:
    config = HybridConfig(
        hybrid_override_pattern="M*-",
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        mamba_num_heads=2,
        mamba_head_dim=8,
        n_groups=1,
        ssm_state_size=8,
        chunk_size=8,
    )
    model = HybridModel(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model


def test_decay_falls_on_matrices_filters_and_embedding_alone():
    undecayed = {
        name.split(".")[-1] if "norm" not in name else "norm"
        for name, parameter in small_model().named_parameters()
        if not decays(parameter)
    }
    assert undecayed == {"norm", "A_log", "D", "dt_bias", "bias"}


def test_adamw_groups_hold_every_parameter_once():
    model = small_model()
    groups = adamw(model, (0.9, 0.95), 1e-8, 0.1).param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.1]


def test_adamw_decays_a_matrix_and_not_a_vector_without_gradient_signal():
    model = nn.Linear(4, 4)
    before = copy.deepcopy(model)
    optimizer = adamw(model, (0.9, 0.95), 1e-8, 0.1)
    set_learning_rate(optimizer, 0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight, before.weight * (1 - 0.5 * 0.1))
    torch.testing.assert_close(model.bias, before.bias, rtol=0, atol=0)


def test_adamw_step_is_the_published_update():
    parameter = nn.Parameter(torch.tensor([[0.3, -0.7]]))
    model = nn.ParameterDict({"weight": parameter})
    optimizer = adamw(model, (0.9, 0.95), 1e-8, 0.1)
    gradients = [torch.tensor([[0.2, -3.0]]), torch.tensor([[-0.1, 1.0]])]
    weight = parameter.detach().double()
    first, second = torch.zeros(1, 2).double(), torch.zeros(1, 2).double()
    for step, (gradient, rate) in enumerate(zip(gradients, (1e-2, 3e-3), strict=True), 1):
        set_learning_rate(optimizer, rate)
        parameter.grad = gradient.clone()
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient
        second = 0.95 * second + 0.05 * gradient.double() ** 2
        weight = weight * (1 - rate * 0.1)
        corrected = (second / (1 - 0.95**step)).sqrt() + 1e-8
        weight = weight - rate * (first / (1 - 0.9**step)) / corrected
    torch.testing.assert_close(parameter.detach().double(), weight, rtol=1e-6, atol=1e-7)


def test_adamw_of_bfloat16_weights_is_refused():
    with pytest.raises(
        ValueError, match=r"weight is torch\.bfloat16; master weights must be float32"
    ):
        adamw(nn.Linear(2, 2).bfloat16(), (0.9, 0.95), 1e-8, 0.1)


def test_moments_copied_to_another_optimizer_give_the_same_next_step():
    def train(model, optimizer, steps):
        generator = torch.Generator().manual_seed(1)
        for _ in range(steps):
            tokens = torch.randint(0, 32, (2, 17), generator=generator)
            model.loss(tokens[:, :-1], tokens[:, 1:])[0].backward()
            optimizer.step()
            optimizer.zero_grad()

    model = small_model()
    optimizer = adamw(model, (0.9, 0.95), 1e-8, 0.1)
    set_learning_rate(optimizer, 1e-2)
    train(model, optimizer, 3)
    other = copy.deepcopy(model)
    restored = adamw(other, (0.9, 0.95), 1e-8, 0.1)
    set_learning_rate(restored, 1e-2)
    for moment, named in moments(model, optimizer).items():
        for name, tensor in named.items():
            moments(other, restored)[moment][name].copy_(tensor)
    set_steps(restored, 3)
    train(model, optimizer, 1)
    train(other, restored, 1)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
