import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from training_hook.config import HybridConfig
from training_hook.model import HybridModel
from training_hook.rotary import rotate

TRANSFORMER = HybridConfig(
    hybrid_override_pattern="*-*-",
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
    position_embedding_type="rope",
)


def model_of(config: HybridConfig) -> HybridModel:
    model = HybridModel(config).double()
    model.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embeddings" not in name:
                parameter.mul_(8)  # attention that looks somewhere
    return model


def tokens_of(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 97, (batch, length), generator=torch.Generator().manual_seed(0))


def test_rotate_equals_llama_of_transformers():
    generator = torch.Generator().manual_seed(0)
    query, keys = (torch.randn(2, heads, 19, 16, generator=generator) for heads in (4, 2))
    positions = torch.arange(7, 26).expand(2, -1)
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=16)
    cos, sin = LlamaRotaryEmbedding(config)(query, positions)
    wanted = apply_rotary_pos_emb(query, keys, cos, sin)
    found = [rotate(tensor, 7, 10_000.0) for tensor in (query, keys)]
    torch.testing.assert_close(found, list(wanted), rtol=0, atol=1e-5)


@settings(max_examples=20)
@given(first=st.integers(0, 2_000), length=st.integers(1, 12))
def test_rotate_products_depend_on_distances_alone(first, length):
    heads = torch.randn(1, 2, length, 8, dtype=torch.float64, generator=torch.manual_seed(1))
    here, there = rotate(heads, 0, 100.0), rotate(heads, first, 100.0)
    torch.testing.assert_close(here @ here.mT, there @ there.mT, rtol=0, atol=1e-9)
    torch.testing.assert_close(here.norm(dim=-1), heads.norm(dim=-1))
    assert rotate(heads.bfloat16(), first, 100.0).dtype == torch.bfloat16


@settings(max_examples=8)
@given(lengths=st.lists(st.integers(1, 17), min_size=1, max_size=4))
def test_rope_packed_documents_equal_documents_alone(lengths):
    model, tokens = model_of(TRANSFORMER), tokens_of(2, sum(lengths))
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, -1)
    packed = model.hidden(tokens, ids).hidden
    alone = [model.hidden(part).hidden for part in tokens.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=0, atol=1e-9)


def test_rope_prefill_and_decode_equal_whole():
    model, tokens = model_of(TRANSFORMER), tokens_of(2, 24)
    whole = model(tokens)
    logits, state = model(tokens[:, :13], None, model.decode_state(2))
    pieces = [logits]
    for t in range(13, 24):
        logits, state = model(tokens[:, t : t + 1], None, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-9)


def test_rope_tells_orders_apart_that_nope_does_not():
    tokens = tokens_of(1, 12)
    swapped = tokens[:, [1, 0, *range(2, 12)]]
    last = {}
    for kind in ("rope", "nope"):
        config = dataclasses.replace(
            TRANSFORMER, hybrid_override_pattern="*-", position_embedding_type=kind
        )
        model = model_of(config)
        difference = model(tokens)[:, -1] - model(swapped)[:, -1]
        last[kind] = float(difference.detach().abs().max())
    assert last["nope"] < 1e-9
    assert last["rope"] > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "alibi"}, "is 'alibi'; wanted one of: nope, rope"),
        ({"head_dim": 7}, "head_dim is 7; rope wants an even number"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0; wanted above 0"),
    ],
)
def test_config_wrong_positions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TRANSFORMER, **changes)


# dynamo looks at .grad of its inputs, and says so since warnings are errors here
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_rope_compiled_layers_equal_eager():
    model, tokens = model_of(TRANSFORMER), tokens_of(2, 24)
    ids = (torch.arange(24) // 7).expand(2, -1)
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(model.loss(tokens, tokens, None, ids).total, parameters)
    model.compile_layers("aot_eager")
    got = torch.autograd.grad(model.loss(tokens, tokens, None, ids).total, parameters)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)
