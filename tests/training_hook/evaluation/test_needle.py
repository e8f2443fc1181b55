import re
from pathlib import Path

import pytest

from mixtures.holdout import held_out
from mixtures.vocabulary import load_vocabulary
from synth.phonebook import full_names
from training_hook.evaluation.exact_match import encode_items, score_items
from training_hook.evaluation.needle import Needle, held_out_texts, needle_items
from training_hook.evaluation.trained import load_trained

NEEDLE = re.compile(r"The special magic number for ([A-Za-z]+ [A-Za-z]+) is (\d{7})\.")


def test_haystacks_have_their_length_and_hide_one_needle_at_its_depth(work):
    vocabulary = load_vocabulary(work / "tokenizer")
    task = Needle((128, 250), (0, 40, 100), num_items=6)
    items = needle_items(vocabulary, 256, task, work / "mixture")
    encoded = encode_items(vocabulary, items)
    assert len(items) == len({item.id for item in items}) == 2 * 3 * 6
    for item, tokens in zip(items, encoded, strict=True):
        length, depth = item.labels["length"], item.labels["depth"]
        assert 0.5 * length < len(tokens.tokens) <= length
        haystack, _, question = item.prompt.rpartition("\n\n")
        (found,) = NEEDLE.finditer(haystack)
        assert question + item.answer == found[0]
        assert found[1] in full_names("heldout")
        place = 100 * found.start() / (len(haystack) - len(found[0]))
        if depth in (0, 100):
            assert place == pytest.approx(depth, abs=1)


def test_haystacks_are_the_same_at_every_depth_but_for_the_needle(work):
    vocabulary = load_vocabulary(work / "tokenizer")
    items = needle_items(vocabulary, 256, Needle((200,), (0, 50, 100), 4), work / "mixture")
    for first, middle, last in zip(items[::3], items[1::3], items[2::3], strict=True):
        assert first.answer == middle.answer == last.answer
        texts = [
            NEEDLE.sub("", i.prompt.rpartition("\n\n")[0]).split() for i in (first, middle, last)
        ]
        shortest = min(map(len, texts))
        assert shortest > 10
        assert texts[0][:shortest] == texts[1][:shortest] == texts[2][:shortest]


def test_haystacks_are_held_out_text(work):
    vocabulary = load_vocabulary(work / "tokenizer")
    texts = held_out_texts(work / "mixture", vocabulary, 10**6)
    documents = list(held_out(work / "mixture", 10**6))
    assert [len(text.encode()) for text in texts] == [d.size_bytes for d in documents]
    words = " ".join(" ".join(texts).split())
    for item in needle_items(vocabulary, 256, Needle((128,), (0,), 5), work / "mixture"):
        haystack = item.prompt.rpartition("\n\n")[0]
        assert " ".join(NEEDLE.sub("", haystack).split()[:20]) in words


def test_scores_come_by_length_and_depth(work):
    trained = load_trained(work / "training", work / "tokenizer", "cpu")
    task = Needle((), (0, 100), num_items=3)
    items = needle_items(trained.vocabulary, 256, task, work / "mixture")
    found = score_items(trained.model, trained.vocabulary, items)
    groups = [(group["length"], group["depth"], group["asked"]) for group in found["groups"]]
    assert groups == [(length, depth, 3) for length in (128, 256) for depth in (0, 100)]
    assert found["asked"] == 12


@pytest.mark.parametrize(
    ("max_tokens", "lengths", "words"),
    [
        (
            256,
            (512,),
            "haystacks of 512 tokens are asked and the model was trained on sequences of 256",
        ),
        (256, (20,), "the needle and the question leave no room for text in 20 tokens"),
        (10**7, (10**6,), "held-out documents have .* words; haystacks of 1,000,000 tokens"),
        (100, (), "the model was trained on sequences of 100 tokens; wanted 128 or more"),
    ],
)
def test_lengths_that_cannot_be_are_refused(work: Path, max_tokens, lengths, words):
    vocabulary = load_vocabulary(work / "tokenizer")
    with pytest.raises(ValueError, match=words):
        needle_items(vocabulary, max_tokens, Needle(lengths, (0,), 1), work / "mixture")
