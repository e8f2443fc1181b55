import re
import sysconfig
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import gopher_repetition_filter as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.filters_decisions import REPETITION_REASONS
from filters.gopher_repetition import GopherRepetition
from pipelines.step import broken

ODD = " \t\n\r\x0b\x1c\x85\xa0\u2028\u3000"
RATIOS = GopherRepetition.adds.names[1:]


def ratios_of(text: str) -> list[float]:
    """The 13 ratios by datatrove's own functions, on words split at white space."""
    if not text:
        return [0.0] * 13
    result = []
    for elements in (re.split("\n{2,}", text.strip()), re.split("\n+", text)):
        duplicates, characters = oracle.find_duplicates(elements)
        result += [duplicates / len(elements), characters / len(text)]
    words = text.split()
    for n in (2, 3, 4):
        grams = oracle.get_n_grams(words, n)
        result.append(oracle.find_top_duplicate(grams) / len(text) if grams else 0.0)
    return result + [oracle.find_all_duplicate(words, n) / len(text) for n in range(5, 11)]


def judged(texts) -> pa.RecordBatch:
    return GopherRepetition()(pa.record_batch({"text": pa.array(texts, pa.string())}))


def first_broken(batch: pa.RecordBatch) -> list[str | None]:
    step = GopherRepetition()
    masks = [broken(rule, step, batch) for rule in step.rules]
    names = [rule.name for rule in step.rules]
    return [
        next((name for name, mask in zip(names, masks, strict=True) if mask[row]), None)
        for row in range(batch.num_rows)
    ]


def check_ratios(texts: list[str]) -> None:
    batch = judged(texts)
    for row, text in enumerate(texts):
        assert [batch[name][row].as_py() for name in RATIOS] == ratios_of(text), text[:200]


@st.composite
def repetitive_texts(draw):
    words = draw(st.lists(st.text("ab\u00e9\U0001f642-", min_size=1, max_size=3), min_size=1))
    blanks = st.sampled_from([" ", " ", "\n", "\n\n", " \n", *ODD])
    picks = draw(st.lists(st.tuples(st.sampled_from(words), blanks), max_size=80))
    return "".join(word + blank for word, blank in picks)


@given(
    st.lists(
        repetitive_texts() | st.text(st.sampled_from("ab" + ODD), max_size=150) | st.text(),
        max_size=6,
    )
)
@settings(max_examples=500)
def test_ratios_of_odd_texts_are_datatroves(texts):
    check_ratios(texts)


@given(st.lists(st.sampled_from(["abcdefgh", "abcd", "efgh", "a", "b" * 20, "c\u00e9"])))
@settings(max_examples=300)
def test_ratios_of_words_that_join_to_equal_strings_are_datatroves(words):
    check_ratios([" ".join(words * 3)])


def real_texts(count: int) -> list[str]:
    root = Path(sysconfig.get_paths()["purelib"])
    paths = sorted(p for pattern in ("*.py", "METADATA", "*.md") for p in root.rglob(pattern))
    texts = []
    for path in paths[:: max(len(paths) // (2 * count), 1)]:
        data = path.read_bytes()[:30_000]
        texts.append(data.decode("utf-8", "ignore"))
    return [text for text in texts if text][:count]


def test_ratios_and_verdicts_of_real_files_are_datatroves(monkeypatch):
    texts = real_texts(400)
    assert len(texts) == 400
    check_ratios(texts)
    monkeypatch.setattr(oracle, "split_into_words", lambda text, _: text.split())
    peer = oracle.GopherRepetitionFilter()
    wanted = []
    for text in texts:
        verdict = peer.filter(Document(text=text, id="0"))
        wanted.append(None if verdict is True else REPETITION_REASONS[verdict[1]])
    assert first_broken(judged(texts)) == wanted
    assert len(set(wanted)) > 5


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "empty_text"),
        (
            "one\n\none\n\none\n\nand something that is a lot longer than those",
            "duplicate_paragraphs",
        ),
        ("a line\na line\na line\nanother line of words that are all different", "duplicate_lines"),
        ("same words " * 12 + "then ever new ones come", "top_2_gram_characters"),
    ],
)
def test_rule_of_a_repetitive_text_is_broken(text, rule):
    assert first_broken(judged([text])) == [rule]


def test_text_without_repetition_breaks_no_rule():
    words = [f"word{i}" for i in range(60)]
    text = " ".join(words[:20]) + "\n" + " ".join(words[20:40]) + "\n\n" + " ".join(words[40:])
    assert first_broken(judged([text])) == [None]


def test_first_gram_counts_where_none_is_repeated():
    # as in datatrove: Counter.most_common answers with a gram that occurs once
    batch = judged(["aa bb cc dd ee"])
    assert batch["top_4_gram_character_ratio"].to_pylist() == [11 / 14]
    assert first_broken(batch) == ["top_2_gram_characters"]


def test_ratios_of_a_null_are_null():
    batch = judged([None, "a", None])
    for name in GopherRepetition.adds.names:
        assert batch[name].is_valid().to_pylist() == [False, True, False]


def test_ratios_do_not_depend_on_the_batch():
    texts = real_texts(60)
    whole = judged(texts)
    parts = [judged(texts[:7]), judged(texts[7:8]), judged(texts[8:])]
    for name in GopherRepetition.adds.names:
        joined = np.concatenate([part[name].to_numpy() for part in parts])
        assert np.array_equal(whole[name].to_numpy(), joined)
