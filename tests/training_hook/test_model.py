import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from training_hook.config import HybridConfig
from training_hook.cross_entropy import linear_cross_entropy
from training_hook.model import HybridModel, forward_flops, num_parameters, tensor_shapes

NANO_2_12B = HybridConfig(
    hybrid_override_pattern="M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-",
    vocab_size=131_072,
    hidden_size=5_120,
    intermediate_size=20_480,
    num_attention_heads=40,
    num_key_value_heads=8,
    head_dim=128,
    mamba_num_heads=128,
    mamba_head_dim=80,
    n_groups=8,
    ssm_state_size=128,
)
NANO_2_9B = dataclasses.replace(
    NANO_2_12B,
    hybrid_override_pattern="M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
    hidden_size=4_480,
    intermediate_size=15_680,
)
NEMOTRON_H_8B = dataclasses.replace(
    NANO_2_12B,
    hybrid_override_pattern="M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
    hidden_size=4_096,
    intermediate_size=21_504,
    num_attention_heads=32,
    mamba_head_dim=64,
)
SMALL = HybridConfig(
    hybrid_override_pattern="MM-*-M-",
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    mamba_num_heads=6,
    mamba_head_dim=4,
    n_groups=3,
    ssm_state_size=8,
    chunk_size=8,
)


def model_of(config: HybridConfig, seed: int = 0) -> HybridModel:
    model = HybridModel(config)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embeddings" not in name:
                parameter.mul_(5)  # layers that matter: at the start they add little
    return model


def tokens_of(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SMALL.vocab_size, (batch, length), generator=generator)


@pytest.mark.parametrize(
    ("config", "billions"), [(NANO_2_12B, 12.31), (NANO_2_9B, 8.89), (NEMOTRON_H_8B, 8.10)]
)
def test_num_parameters_published_models_equal_their_cards(config, billions):
    assert round(num_parameters(config) / 1e9, 2) == billions
    with torch.device("meta"):
        model = HybridModel(config)
    built = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert built == tensor_shapes(config)


def test_num_parameters_equals_published_formula():
    d, ff, i, h = 5_120, 20_480, 128 * 80, 128
    maps = 2 * 8 * 128
    mamba = d * (2 * i + maps + h) + 5 * (i + maps) + 3 * h + i + i * d + d
    mlp, attention = 2 * d * ff + d, 2 * d * 40 * 128 + 2 * d * 8 * 128 + d
    total = 28 * mamba + 28 * mlp + 6 * attention + 2 * 131_072 * d + d
    assert num_parameters(NANO_2_12B) == total


def test_num_parameters_tied_head_counts_once():
    tied = dataclasses.replace(SMALL, tie_word_embeddings=True)
    assert num_parameters(SMALL) - num_parameters(tied) == 97 * 32
    assert sum(p.numel() for p in HybridModel(tied).parameters()) == num_parameters(tied)


def test_forward_flops_1b_hybrid_equals_measured_model():
    config = dataclasses.replace(
        NANO_2_12B,
        hybrid_override_pattern="M-M-M-M*-M-M-M-M*-M-M-M-M-",
        vocab_size=65_536,
        hidden_size=2_048,
        intermediate_size=8_192,
        num_attention_heads=16,
        mamba_num_heads=64,
        mamba_head_dim=64,
    )
    assert round(num_parameters(config) / 1e9, 3) == 1.051
    assert round(3 * forward_flops(config, 8192) / 1e9, 2) == 5.83


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hybrid_override_pattern": "M-X"}, "has 'X' at layer 2; known letters: 'M' .Mamba-2"),
        ({"hybrid_override_pattern": ""}, "is empty; give a letter a layer"),
        ({"n_groups": 4}, "mamba_num_heads is 6 and n_groups is 4"),
        ({"num_key_value_heads": 3}, "num_attention_heads is 4 and num_key_value_heads is 3"),
        ({"hidden_size": 0}, "hidden_size is 0; it must be a whole number above 0"),
        ({"chunk_size": 1.5}, "chunk_size is 1.5"),
        ({"time_step_min": 0.0}, "wanted 0 < time_step_min <= time_step_max"),
    ],
)
def test_config_wrong_setting_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_reset_parameters_draws_as_documented():
    config = dataclasses.replace(
        SMALL, mamba_num_heads=600, hidden_size=400, initializer_range=0.03, time_step_min=0.002
    )
    model = HybridModel(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    parameters = dict(model.named_parameters())
    spread = {name: p.std().item() for name, p in parameters.items() if p.dim() == 2}
    rescaled = ("out_proj.weight", "o_proj.weight", "down_proj.weight")
    for name, value in spread.items():
        wanted = 0.03 / math.sqrt(7) if name.endswith(rescaled) else 0.03
        assert value == pytest.approx(wanted, rel=0.05), name
    mixer = model.layers[0].mixer
    rate, step = mixer.A_log.exp(), torch.nn.functional.softplus(mixer.dt_bias)
    assert rate.min() >= 1
    assert rate.max() <= 16
    assert rate.mean().item() == pytest.approx(8.5, rel=0.1)
    assert step.min() >= 0.002 * 0.999
    assert step.max() <= 0.1 * 1.001
    middle = math.sqrt(0.002 * 0.1)
    assert step.log().mean().exp().item() == pytest.approx(middle, rel=0.2)
    assert all(
        (p == 1).all() for name, p in parameters.items() if "norm" in name or name[-2:] == ".D"
    )


def test_reset_parameters_seed_decides():
    first, again, other = (dict(model_of(SMALL, s).named_parameters()) for s in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    state = torch.get_rng_state()
    model_of(SMALL, 1)
    assert torch.equal(state, torch.get_rng_state())


@settings(max_examples=8)
@given(lengths=st.lists(st.integers(1, 17), min_size=1, max_size=4))
def test_model_packed_documents_equal_documents_alone(lengths):
    model, tokens = model_of(SMALL), tokens_of(2, sum(lengths))
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, -1)
    packed = model.hidden(tokens, ids).hidden
    alone = [model.hidden(part).hidden for part in tokens.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pattern", ["M", "*", "-", "MM-*-M-", "*M*", "-*MM"])
def test_model_prefill_and_decode_equal_whole(pattern):
    model = model_of(dataclasses.replace(SMALL, hybrid_override_pattern=pattern))
    tokens = tokens_of(2, 24)
    whole = model(tokens)
    logits, state = model(tokens[:, :13], None, model.decode_state(2))
    pieces = [logits]
    for t in range(13, 24):
        logits, state = model(tokens[:, t : t + 1], None, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-4)


def test_model_state_between_packed_pieces_follows_document_ids():
    model, tokens = model_of(SMALL), tokens_of(2, 20)
    ids = torch.tensor([[0] * 7 + [1] * 13, [4] * 12 + [5] * 3 + [6] * 5])
    whole = model(tokens, ids)
    for cut in (3, 7, 9, 12, 15):  # inside documents and at their borders
        first, state = model(tokens[:, :cut], ids[:, :cut], model.decode_state(2))
        second, _ = model(tokens[:, cut:], ids[:, cut:], state)
        torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-4)


def test_model_state_is_differentiable():
    model, tokens = model_of(SMALL).double(), tokens_of(1, 12)
    whole = torch.autograd.grad(model(tokens)[:, 6:].sum(), model.backbone.embeddings.weight)
    _, state = model(tokens[:, :6], None, model.decode_state(1))
    second, _ = model(tokens[:, 6:], None, state)
    pieces = torch.autograd.grad(second.sum(), model.backbone.embeddings.weight)
    torch.testing.assert_close(pieces[0], whole[0])


@pytest.mark.parametrize("tied", [False, True])
def test_loss_equals_cross_entropy_of_logits_with_gradients(tied):
    model = model_of(dataclasses.replace(SMALL, tie_word_embeddings=tied)).double()
    tokens, targets = tokens_of(3, 50), tokens_of(3, 50, seed=1)
    mask = torch.rand(3, 50, generator=torch.Generator().manual_seed(2)) < 0.7
    ids = (torch.arange(50) // 20).expand(3, -1)
    total, count, _ = model.loss(tokens, targets, mask, ids)
    logits = model(tokens, ids)
    wanted = nn.functional.cross_entropy(logits[mask], targets[mask], reduction="sum")
    torch.testing.assert_close(total, wanted)
    assert count == mask.sum()
    parameters = list(model.parameters())
    got = torch.autograd.grad(total / count, parameters)
    for a, b in zip(got, torch.autograd.grad(wanted / count, parameters), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(model.loss(tokens, targets, mask, ids)[0], wanted)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("rows", [1, 7, 20, 64])
def test_linear_cross_entropy_chunk_size_changes_nothing(rows, z_loss):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((20, 6), (11, 6))
    )
    targets = torch.randint(0, 11, (20,), generator=generator)
    mask = torch.arange(20) % 3 > 0
    loss, nats = linear_cross_entropy(hidden, weight, targets, mask, rows, z_loss)
    logits = (hidden @ weight.T)[mask]
    each = nn.functional.cross_entropy(logits, targets[mask], reduction="none")
    wanted = each.sum() + z_loss * logits.logsumexp(1).square().sum()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(nats[mask], each)
    assert not nats[~mask].any()
    with torch.no_grad():
        scored = linear_cross_entropy(hidden, weight, targets, mask, rows, z_loss)
    torch.testing.assert_close(scored, (loss, nats))
    got = torch.autograd.grad(2.5 * loss, [hidden, weight])
    for a, b in zip(got, torch.autograd.grad(2.5 * wanted, [hidden, weight]), strict=True):
        torch.testing.assert_close(a, b)


def test_loss_layer_with_auxiliary_loss_is_in_the_sum():
    class WithAuxiliary(nn.Module):
        def __init__(self, mixer: nn.Module) -> None:
            super().__init__()
            self.mixer = mixer

        def forward(self, hidden, documents, state):
            mixed, state, _ = self.mixer(hidden, documents, state)
            return mixed, state, mixed.square().mean()

    model, tokens = model_of(SMALL), tokens_of(2, 9)
    plain, count, _ = model.loss(tokens, tokens)
    for layer in model.layers[:2]:
        layer.mixer = WithAuxiliary(layer.mixer)
    auxiliary = model.hidden(tokens).auxiliary_loss
    torch.testing.assert_close(model.loss(tokens, tokens)[0], plain + auxiliary * count)
    assert auxiliary > 0


def test_model_bf16_products_stay_near_float32():
    model, tokens = model_of(SMALL), tokens_of(2, 40)
    exact = model(tokens)
    model.compute_dtype = torch.bfloat16
    logits = model(tokens)
    assert logits.dtype == torch.bfloat16
    assert (logits - exact).abs().max() < 0.05 * exact.abs().max()
    total, count, _ = model.loss(tokens, tokens)
    assert total.dtype == torch.float32
    (total / count).backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


# dynamo looks at .grad of its inputs, and says so since warnings are errors here
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_model_compiled_layers_without_graph_breaks_equal_eager():
    model, tokens = model_of(SMALL).double(), tokens_of(2, 24)
    ids = (torch.arange(24) // 10).expand(2, -1)
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(model.loss(tokens, tokens, None, ids)[0], parameters)
    model.compile_layers(backend="aot_eager")
    got = torch.autograd.grad(model.loss(tokens, tokens, None, ids)[0], parameters)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)
