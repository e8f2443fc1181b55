import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures.holdout import HeldOut
from training_hook.evaluation.bits_per_byte import evaluate, pack, total_score
from training_hook.model import HybridModel

END = 2
VOCABULARY = 48


@pytest.fixture(scope="module")
def model(make_model: Callable[[int, int], HybridModel]) -> HybridModel:
    return make_model(VOCABULARY, 0)


def documents(lengths: list[int], part: str = "text", seed: int = 0) -> list[HeldOut]:
    rng = np.random.default_rng(seed)
    return [
        HeldOut(
            part,
            str(i),
            np.append(rng.integers(3, VOCABULARY, n - 1), END).astype(np.uint16),
            3 * n,
        )
        for i, n in enumerate(lengths)
    ]


def ignore(_rows: int) -> None:
    pass


def score(model: HybridModel, held_out: list[HeldOut], length: int, batch: int = 3):
    return evaluate(model, held_out, length, batch, END, ignore)


def test_score_of_packed_documents_is_that_of_each_alone(model):
    held_out = documents([5, 1, 40, 16, 17, 2, 33, 9])
    (packed,) = score(model, held_out, 16)
    alone = [score(model, [document], 16)[0] for document in held_out]
    assert packed.nats == pytest.approx(sum(s.nats for s in alone), rel=1e-5)
    assert packed.tokens == sum(len(d.tokens) for d in held_out)
    assert packed.documents == len(held_out)
    assert packed.bytes == sum(d.size_bytes for d in held_out)


def test_score_of_one_document_is_its_likelihood_token_by_token(model):
    (document,) = documents([9])
    tokens = torch.from_numpy(document.tokens.astype(np.int64))
    with torch.no_grad():
        first = model(torch.tensor([[END]]))[0, -1]
        rest = model(tokens[None, :-1])[0]
    likelihood = torch.log_softmax(torch.cat([first[None], rest]).double(), dim=-1)
    nats = -likelihood[torch.arange(9), tokens].sum().item()
    (scored,) = score(model, [document], 16)
    assert scored.nats == pytest.approx(nats, rel=1e-5)
    assert scored.bits_per_byte == pytest.approx(nats / math.log(2) / document.size_bytes)


def test_score_of_a_long_document_is_that_of_pieces_that_know_one_token(model):
    (document,) = documents([20])
    tokens = torch.from_numpy(document.tokens.astype(np.int64))
    nats = 0.0
    with torch.no_grad():
        first = torch.log_softmax(model(torch.tensor([[END]]))[0, -1].double(), dim=-1)
        nats -= first[tokens[0]].item()
        # 8 targets a piece: the first piece spends one place on the token that ends the last one
        for inputs, targets in ((tokens[0:7], tokens[1:8]), (tokens[7:15], tokens[8:16])):
            likelihood = torch.log_softmax(model(inputs[None])[0].double(), dim=-1)
            nats -= likelihood.gather(1, targets[:, None]).sum().item()
        likelihood = torch.log_softmax(model(tokens[None, 15:19])[0].double(), dim=-1)
        nats -= likelihood.gather(1, tokens[16:20, None]).sum().item()
    assert score(model, [document], 8)[0].nats == pytest.approx(nats, rel=1e-5)


def test_score_of_a_model_that_knows_nothing_is_the_logarithm_of_the_vocabulary(model):
    blank = HybridModel(model.config)
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
    held_out = documents([3, 50, 7])
    (scored,) = score(blank, held_out, 16, batch=4)
    wanted = 60 * math.log2(VOCABULARY) / 180
    assert scored.bits_per_byte == pytest.approx(wanted, rel=1e-6)


def test_score_does_not_depend_on_batch_or_padding(model):
    held_out = documents([5, 30, 11, 2])
    scores = [score(model, held_out, 16, batch)[0] for batch in (1, 2, 5)]
    assert {s.tokens for s in scores} == {48}
    for other in scores[1:]:
        assert other.nats == pytest.approx(scores[0].nats, rel=1e-5)


def test_scores_come_by_part_and_add_up(model):
    text, code = documents([5, 9], "text"), documents([12], "code", seed=1)
    scores = score(model, [text[0], *code, text[1]], 16)
    assert [s.part for s in scores] == ["text", "code"]
    assert scores[0].nats == pytest.approx(score(model, text, 16)[0].nats, rel=1e-5)
    total = total_score(scores)
    assert (total.documents, total.tokens, total.bytes) == (3, 26, 78)
    bits = sum(s.bits_per_byte * s.bytes for s in scores) / 78
    assert total.bits_per_byte == pytest.approx(bits)


def test_evaluate_without_documents_is_refused(model):
    with pytest.raises(ValueError, match="hold some out when mixing"):
        score(model, [], 16)


def test_evaluate_of_an_empty_document_is_refused(model):
    empty = HeldOut("text", "0", np.array([END], np.uint16), 0)
    with pytest.raises(ValueError, match="a held-out document of 'text' is empty"):
        score(model, [empty], 16)


def test_evaluate_of_a_broken_model_names_the_part(model):
    broken = HybridModel(model.config)
    broken.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        broken.backbone.norm_f.weight[0] = torch.nan
    with pytest.raises(FloatingPointError, match="likelihood of part 'text' is nan"):
        score(broken, documents([5]), 16)


@settings(max_examples=150)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    length=st.integers(1, 24),
)
def test_pack_scores_every_token_once_after_its_predecessor(lengths, length):
    # Token values that name their document and place, so that rows can be read back.
    whole = [np.arange(n) + 100 * (i + 1) for i, n in enumerate(lengths)]
    rows = pack(whole, length, END)
    assert rows.tokens.shape == rows.targets.shape == rows.mask.shape == rows.document_ids.shape
    assert rows.tokens.shape[1] == length
    assert sorted(rows.targets[rows.mask]) == sorted(np.concatenate(whole))
    inputs, targets = rows.tokens[rows.mask], rows.targets[rows.mask]
    starts = inputs == END
    assert np.array_equal(inputs[~starts] + 1, targets[~starts])
    assert set(targets[starts]) == {100 * (i + 1) for i in range(len(lengths))}
    for tokens, ids, mask in zip(rows.tokens, rows.document_ids, rows.mask, strict=True):
        assert all(np.diff(ids) >= 0)
        for position in np.flatnonzero(mask)[1:]:
            follows = tokens[position] == tokens[position - 1] + 1 and tokens[position - 1] != END
            assert (ids[position] == ids[position - 1]) == follows


def test_pack_wastes_little():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 400, 500)
    rows = pack([np.full(n, 9) for n in lengths], 128, END)
    assert rows.mask.mean() > 0.95
