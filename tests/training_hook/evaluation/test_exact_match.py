from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training_hook.evaluation.exact_match import (
    EncodedItem,
    Item,
    Match,
    check_lengths,
    encode_items,
    match_items,
    summarise,
)
from training_hook.evaluation.share import share
from training_hook.generate import generate
from training_hook.model import HybridModel

VOCABULARY = 24


@pytest.fixture(scope="module")
def model(make_model: Callable[[int, int], HybridModel]) -> HybridModel:
    return make_model(VOCABULARY, 5)


class Letters:
    """A vocabulary of letters in which "ab" is one token."""

    eos_id = 2

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array([ord(c) for c in text.replace("ab", "\x01")], np.uint16) for text in texts]


@settings(max_examples=60)
@given(
    prompts=st.lists(
        st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30), min_size=1, max_size=6
    ),
    length=st.integers(1, 6),
    changed=st.integers(0, 6),
    shift=st.integers(1, VOCABULARY - 1),
    batch_tokens=st.sampled_from([1, 40, 1_000]),
)
def test_an_item_matches_exactly_where_greedy_decoding_gives_its_answer(
    model, prompts, length, changed, shift, batch_tokens
):
    greedy = generate(model, prompts, length, stop=[])
    answers = [list(answer) for answer in greedy]
    if changed < length:  # another token than greedy decoding's, in every other item
        for answer in answers[::2]:
            answer[changed] = (answer[changed] + shift) % VOCABULARY
    items = [
        EncodedItem(np.array(prompt + answer), len(prompt))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    found = match_items(model, items, batch_tokens)
    assert [m.exact for m in found] == [a == g for a, g in zip(answers, greedy, strict=True)]
    assert [m.tokens for m in found] == [length] * len(items)


@torch.no_grad()
def test_right_tokens_are_those_that_are_likeliest_behind_the_true_ones(model):
    generator = torch.Generator().manual_seed(1)
    lengths = [(3, 8), (30, 1), (12, 8), (12, 3), (1, 17)]
    items = [
        EncodedItem(torch.randint(0, VOCABULARY, (p + a,), generator=generator).numpy(), p)
        for p, a in lengths
    ]
    done: list[int] = []
    found = match_items(model, items, 25, done.append)
    assert sum(done) == len(items)
    assert len(done) > 2
    for item, match in zip(items, found, strict=True):
        right, nats = 0, 0.0
        for place in range(item.answer_start, len(item.tokens)):
            logits = model(torch.from_numpy(item.tokens[None, :place]))[0, -1].double()
            right += int(logits.argmax()) == item.tokens[place]
            nats += torch.log_softmax(logits, 0)[item.tokens[place]].item()
        assert (match.tokens, match.right_tokens) == (len(item.tokens) - item.answer_start, right)
        assert match.log_likelihood == pytest.approx(nats, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_gpu_says_what_the_cpu_says(model):
    sizes = {"hidden_size": 128, "head_dim": 64, "mamba_head_dim": 64, "ssm_state_size": 64}
    there = HybridModel(replace(model.config, **sizes, chunk_size=128, initializer_range=0.05))
    there.reset_parameters(torch.Generator().manual_seed(5))
    here = HybridModel(there.config)
    here.load_state_dict(there.state_dict())
    here.cuda().compute_dtype = torch.float32
    generator = torch.Generator().manual_seed(2)
    lengths = [(7, 5), (61, 12), (130, 9), (255, 3), (33, 1)]
    items = [
        EncodedItem(torch.randint(0, VOCABULARY, (p + a,), generator=generator).numpy(), p)
        for p, a in lengths
    ]
    wanted, found = match_items(there, items, 300), match_items(here, items, 300)
    likelihoods = [match.log_likelihood for match in wanted]
    assert [match.log_likelihood for match in found] == pytest.approx(likelihoods, rel=1e-2)


def test_items_are_encoded_as_their_prompt_goes_on():
    (item,) = encode_items(Letters(), [Item("x", "Ann:", " 12", {})])
    assert item.tokens.tolist() == [ord(c) for c in "Ann: 12"]
    assert item.answer_start == 4


@pytest.mark.parametrize(("prompt", "answer"), [("a", "b"), ("", "b"), ("b", "")])
def test_items_whose_answer_has_no_tokens_of_its_own_are_refused(prompt, answer):
    with pytest.raises(ValueError, match=r"item x: .*wanted a prompt that ends where a token"):
        encode_items(Letters(), [Item("x", prompt, answer, {})])


def test_items_that_are_too_long_are_refused():
    items = [EncodedItem(np.arange(9), 4)]
    check_lengths("task", items, 8, "")
    with pytest.raises(ValueError, match=r"an item has 8 tokens and .* of 7; ask for less"):
        check_lengths("task", items, 7, "ask for less")


def test_a_summary_tells_groups_apart_by_their_labels():
    items = [Item(str(n), "p", "a", {"entries": n % 2, "depth": n // 4}) for n in range(6)]
    encoded = [EncodedItem(np.arange(5 + n), 3) for n in range(6)]
    tokens = [(2, 2), (2, 1), (2, 0), (4, 4), (2, 2), (2, 2)]
    matches = [Match(number, right, -1.0) for number, right in tokens]
    found = summarise(items, encoded, matches)
    assert (found["right"], found["asked"], found["token_accuracy"]) == (4, 6, 11 / 14)
    rows = [(g["entries"], g["depth"], g["right"], g["asked"]) for g in found["groups"]]
    assert rows == [(0, 0, 1, 2), (0, 1, 1, 1), (1, 0, 1, 2), (1, 1, 1, 1)]
    assert [g["tokens"] for g in found["groups"]] == [7, 9, 8, 10]


@pytest.mark.parametrize(("right", "asked"), [(0, 10), (10, 10), (3, 10), (1, 1), (120, 200)])
def test_the_interval_holds_the_shares_from_which_the_result_is_no_surprise(right, asked):
    """Wilson's interval holds p where |found - p| <= z sqrt(p (1 - p) / n)."""
    low, high = share(right, asked)["interval"]
    for p in (low, high):
        squared = (right / asked - p) ** 2
        assert squared == pytest.approx(1.959964**2 * p * (1 - p) / asked, abs=1e-12)
    assert 0 <= low <= right / asked + 1e-12
    assert right / asked - 1e-12 <= high <= 1
