import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training_hook.config import LETTERS, HybridConfig
from training_hook.convolution import CausalConvolution
from training_hook.documents import Documents, document_mask, number_documents
from training_hook.linear import make_linear
from training_hook.model import LAYERS
from training_hook.norm import GatedGroupNorm, RMSNorm

CONFIG = HybridConfig(
    hybrid_override_pattern="M-*",
    vocab_size=64,
    hidden_size=24,
    intermediate_size=40,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    mamba_num_heads=6,
    mamba_head_dim=5,
    n_groups=2,
    ssm_state_size=7,
    chunk_size=8,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def documents_of(ids: Tensor) -> Documents:
    numbered = number_documents(ids)
    return Documents(numbered, document_mask(numbered))


@torch.no_grad()
def mixer_of(letter: str) -> torch.nn.Module:
    mixer = LAYERS[letter](CONFIG, "plain").double()
    mixer.reset_parameters(torch.Generator().manual_seed(1))
    for parameter in mixer.parameters():
        parameter.mul_(3)  # away from a near-linear start
    return mixer


def test_layers_letters_of_config_are_those_of_the_model():
    assert LAYERS.keys() == LETTERS.keys()


@pytest.mark.parametrize("letter", LAYERS)
def test_layer_declared_tensors_equal_module(letter):
    built = {name: tuple(p.shape) for name, p in LAYERS[letter](CONFIG, "plain").named_parameters()}
    assert LAYERS[letter].tensor_shapes(CONFIG) == built


@pytest.mark.parametrize("letter", LAYERS)
@settings(max_examples=6)
@given(lengths=st.lists(st.integers(1, 11), min_size=1, max_size=5))
def test_layer_packed_documents_equal_documents_alone(letter, lengths):
    mixer, hidden = mixer_of(letter), normal(2, sum(lengths), 24)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, -1)
    packed, _, _ = mixer(hidden, documents_of(ids), None)
    alone = [mixer(part, None, None)[0] for part in hidden.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("letter", LAYERS)
@pytest.mark.parametrize("sizes", [(13, 1, 1, 1), (1, 9, 6), (2, 14)])
def test_layer_pieces_with_state_equal_whole(letter, sizes):
    mixer, hidden = mixer_of(letter), normal(3, 16, 24)
    whole, _, _ = mixer(hidden, None, None)
    state, pieces = mixer.initial_state(3, torch.float64), []
    for piece in hidden.split(sizes, dim=1):
        mixed, state, _ = mixer(piece, None, state)
        pieces.append(mixed)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("letter", LAYERS)
def test_layer_causal_gradient_never_comes_from_later_tokens(letter):
    mixer, hidden = mixer_of(letter), normal(1, 12, 24).requires_grad_()
    mixed, _, _ = mixer(hidden, None, None)
    (gradient,) = torch.autograd.grad(mixed[:, 5].sum(), hidden)
    assert gradient[:, 6:].abs().max() == 0
    assert gradient[:, 5].abs().max() > 0


def test_attention_grouped_heads_equal_softmax_over_repeated_keys():
    mixer, hidden = mixer_of("*"), normal(2, 9, 24)
    query, keys, values = (
        projection(hidden.flatten(0, 1)).view(2, 9, -1, 8).transpose(1, 2)
        for projection in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    )
    keys, values = keys.repeat_interleave(2, 1), values.repeat_interleave(2, 1)
    scores = (query @ keys.mT / 8**0.5).masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    wanted = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2) @ mixer.o_proj.weight.T
    torch.testing.assert_close(mixer(hidden, None, None)[0], wanted, rtol=0, atol=1e-10)


@settings(max_examples=15)
@given(
    length=st.integers(1, 12),
    kernel=st.integers(2, 5),
    rate=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_convolution_equals_definition_with_gradients(length, kernel, rate, seed):
    module = CausalConvolution(3, kernel).double()
    with torch.no_grad():
        module.reset_parameters(torch.Generator().manual_seed(seed))
    x = normal(2, length, 3, seed=seed)
    initial = normal(2, kernel - 1, 3, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    ids = (torch.rand(2, length, generator=generator) < rate).int().cumsum(1)
    leaves = [t.requires_grad_() for t in (x, initial)]

    rows = []
    for b in range(2):
        inputs = [*initial[b], *x[b]]
        document = [0] * (kernel - 1) + ids[b].tolist()
        for t in range(kernel - 1, len(inputs)):
            taps = (
                module.weight[:, 0, kernel - 1 - back]
                * inputs[t - back]
                * (document[t - back] == document[t])
                for back in range(kernel)
            )
            rows.append(F.silu(sum(taps) + module.bias))
    wanted = torch.stack(rows).view(2, length, 3)
    got, _ = module(x, ids, initial)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)

    leaves += [module.weight, module.bias]
    weights = normal(2, length, 3, seed=7)
    for a, b in zip(
        torch.autograd.grad((got * weights).sum(), leaves),
        torch.autograd.grad((wanted * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_convolution_final_state_forgets_earlier_documents():
    module = CausalConvolution(3, 4).double()
    with torch.no_grad():
        module.reset_parameters(torch.Generator().manual_seed(0))
    x = normal(1, 6, 3)
    _, final = module(x, torch.tensor([[0, 0, 0, 0, 1, 1]]))
    torch.testing.assert_close(final, torch.cat([torch.zeros(1, 1, 3), x[:, 4:]], 1).double())
    _, final = module(x[:, :2], torch.tensor([[0, 0]]), normal(1, 3, 3, seed=1))
    torch.testing.assert_close(final, torch.cat([normal(1, 3, 3, seed=1)[:, 2:], x[:, :2]], 1))


def test_norm_equals_formula():
    x, gate = normal(2, 3, 12), normal(2, 3, 12, seed=1)
    plain, grouped = RMSNorm(12, 1e-5).double(), GatedGroupNorm(12, 3, 1e-5).double()
    with torch.no_grad():
        plain.weight.copy_(normal(12, seed=2))
        grouped.weight.copy_(normal(12, seed=3))
    wanted = F.rms_norm(x, (12,), plain.weight, 1e-5)
    torch.testing.assert_close(plain(x), wanted)
    gated = (x * F.silu(gate)).view(2, 3, 3, 4)
    wanted = F.rms_norm(gated, (4,), eps=1e-5).flatten(2) * grouped.weight
    torch.testing.assert_close(grouped(x, gate), wanted)


def test_norm_bf16_input_is_normalized_in_float32():
    norm = RMSNorm(256, 1e-5)
    with torch.no_grad():
        norm.reset_parameters()
    x = normal(4, 256).to(torch.bfloat16)
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x), norm(x.float()).to(torch.bfloat16), rtol=0, atol=0)


def test_number_documents_any_ids_rise_by_one():
    ids = torch.tensor([[5, 5, 3, 5, 5], [1, 2, 2, 2, 9]])
    assert number_documents(ids).tolist() == [[0, 0, 1, 2, 2], [0, 1, 1, 1, 2]]
    last = torch.tensor([5, 7])
    assert number_documents(ids, last).tolist() == [[0, 0, 1, 2, 2], [1, 2, 2, 2, 3]]


def test_make_linear_unknown_recipe_names_the_known():
    with pytest.raises(ValueError, match="'fp3'; known recipes: plain"):
        make_linear(2, 2, "fp3")
