import pytest
import torch

from training_hook.config import HybridConfig
from training_hook.generate import generate
from training_hook.model import HybridModel


@pytest.fixture(scope="module")
def model() -> HybridModel:
    config = HybridConfig(
        hybrid_override_pattern="M-*",
        vocab_size=48,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        mamba_num_heads=4,
        mamba_head_dim=16,
        n_groups=1,
        ssm_state_size=16,
        chunk_size=8,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    model = HybridModel(config)
    model.reset_parameters(torch.Generator().manual_seed(3))
    return model


@torch.no_grad()
def greedy(model: HybridModel, prompt: list[int], max_tokens: int, stop: set[int]) -> list[int]:
    """One prompt, from the beginning for every token."""
    found: list[int] = []
    for _ in range(max_tokens):
        token = int(model(torch.tensor([prompt + found]))[0, -1].argmax())
        if token in stop:
            break
        found.append(token)
    return found


def test_batches_give_what_one_prompt_at_a_time_gives(model):
    generator = torch.Generator().manual_seed(0)
    lengths = [1, 3, 3, 9, 3, 1, 17, 9]
    prompts = [torch.randint(0, 48, (n,), generator=generator).tolist() for n in lengths]
    wanted = [greedy(model, prompt, 12, {5, 7}) for prompt in prompts]
    for batch_size in (1, 2, 3, 8):
        assert generate(model, prompts, 12, [5, 7], batch_size) == wanted
    assert len({len(ids) for ids in wanted}) > 1, "some have to end early"


def test_no_tokens_are_generated_where_none_are_wanted(model):
    assert generate(model, [[1, 2], [3]], 0, [5]) == [[], []]


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        generate(model, [[1], []], 4, [])
