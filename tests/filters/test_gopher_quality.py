import sysconfig
from pathlib import Path

import pyarrow as pa
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import gopher_quality_filter as oracle
from datatrove.utils.text import PUNCTUATION_SET
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.filters_decisions import QUALITY_REASONS
from filters.gopher_quality import GopherQuality
from pipelines.step import broken

ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
PROSE = "the quick brown fox and that lazy dog have been to the market of words with us " * 4
# Few words keep generated texts near the thresholds.
SMALL = GopherQuality(min_words=3, max_words=12)


def judged(texts, step: GopherQuality | None = None) -> pa.RecordBatch:
    step = step or GopherQuality()
    return step(pa.record_batch({"text": pa.array(texts, pa.string())}))


def first_broken(texts, step: GopherQuality | None = None) -> list[str | None]:
    step = step or GopherQuality()
    batch = judged(texts, step)
    masks = [broken(rule, step, batch) for rule in step.rules]
    names = [rule.name for rule in step.rules]
    return [
        next((name for name, mask in zip(names, masks, strict=True) if mask[row]), None)
        for row in range(batch.num_rows)
    ]


def peer_verdicts(texts, **settings) -> list[str | None]:
    """datatrove's first reason; its words must be patched to white-space words before."""
    peer = oracle.GopherQualityFilter(**settings)
    verdicts = [peer.filter(Document(text=text, id="0")) for text in texts]
    return [None if verdict is True else QUALITY_REASONS[verdict[1]] for verdict in verdicts]


@pytest.fixture(autouse=True)
def _white_space_words(monkeypatch):
    monkeypatch.setattr(oracle, "split_into_words", lambda text, _: text.split())


WORDS = st.sampled_from(
    [
        *("the", "and", "of", "a", "I", "word", "sesquipedalianism", "The", "caf\u00e9"),
        *("#", "...", "....", "12", "--", "\u3002", "x" + ELLIPSIS, "\u65e5\u672c", "\N{BULLET}"),
    ]
)
LINES = st.tuples(st.sampled_from(["", "", "- ", "\N{BULLET}"]), st.lists(WORDS, max_size=6)).map(
    lambda line: line[0] + " ".join(line[1])
)
TEXTS = st.lists(LINES, min_size=1, max_size=5).map("\n".join)


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value encountered")
@given(st.lists(TEXTS, max_size=8))
@settings(max_examples=500)
def test_verdicts_of_odd_texts_are_datatroves(texts):
    wanted = peer_verdicts(texts, min_doc_words=3, max_doc_words=12)
    assert first_broken(texts, SMALL) == wanted


@given(st.lists(TEXTS, min_size=1, max_size=6))
@settings(max_examples=200)
def test_signals_of_odd_texts_are_the_stated_formulas(texts):
    batch = judged(texts)
    for row, text in enumerate(texts):
        words, lines = text.split(), text.splitlines()
        plain = [word for word in words if any(c not in PUNCTUATION_SET for c in word)]
        wanted = {
            "n_words": len(words),
            "n_non_symbol_words": len(plain),
            "mean_word_length": sum(map(len, plain)) / max(len(plain), 1),
            "hash_sign_ratio": text.count("#") / max(len(words), 1),
            "ellipsis_ratio": (text.count("...") + text.count(ELLIPSIS)) / max(len(words), 1),
            "bullet_line_ratio": sum(s.lstrip().startswith(("-", "\N{BULLET}")) for s in lines)
            / max(len(lines), 1),
            "ellipsis_line_ratio": sum(s.rstrip().endswith(("...", ELLIPSIS)) for s in lines)
            / max(len(lines), 1),
            "alpha_word_ratio": sum(any(c.isalpha() for c in word) for word in words)
            / max(len(words), 1),
            "n_stop_words": len(set(words) & set(GopherQuality().stop_words)),
        }
        assert {name: batch[name][row].as_py() for name in wanted} == wanted


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value encountered")
def test_verdicts_of_real_files_are_datatroves():
    root = Path(sysconfig.get_paths()["purelib"])
    paths = sorted(p for pattern in ("*.py", "METADATA", "*.md") for p in root.rglob(pattern))
    texts = [p.read_bytes()[:30_000].decode("utf-8", "ignore") for p in paths[:: len(paths) // 500]]
    wanted = peer_verdicts(texts)
    assert first_broken(texts) == wanted
    assert len(set(wanted)) > 5


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (PROSE, None),
        ("too few words", "too_few_words"),
        (f"{PROSE} " * 2_000, "too_many_words"),
        ("a b " * 100 + PROSE, "words_too_short"),
        ("incomprehensibilities " * 100 + PROSE, "words_too_long"),
        ("#hash " * 60 + PROSE, "too_many_hash_signs"),
        ("wait... " * 60 + PROSE, "too_many_ellipses"),
        (f"well{ELLIPSIS} " * 60 + PROSE, "too_many_ellipses"),
        ("- the point of that\n" * 30, "too_many_bullet_lines"),
        (f"{PROSE}{ELLIPSIS}\n" * 3, "too_many_ellipsis_lines"),
        ("1984 " * 100 + PROSE, "too_few_alpha_words"),
        ("lorem ipsum dolor sit amet " * 20, "too_few_stop_words"),
    ],
)
def test_rule_of_a_text_made_for_it_is_broken(text, rule):
    assert first_broken([text]) == [rule]


def test_signals_of_a_text_without_words_are_zero():
    batch = judged(["", " \n\n", "\u3000"])
    for name in GopherQuality.adds.names:
        assert batch[name].to_pylist() == [0, 0, 0]


def test_signals_of_a_null_are_null():
    batch = judged([None, "a"])
    for name in GopherQuality.adds.names:
        assert batch[name].is_valid().to_pylist() == [False, True]


def test_stop_words_of_another_language_are_counted():
    step = GopherQuality(stop_words=("der", "die", "und", "k\u00f6nnen", "l\u00e4ngeres"))
    batch = judged(["der Hund und die Katze k\u00f6nnen und k\u00f6nnen", "the dog"], step)
    assert batch["n_stop_words"].to_pylist() == [4, 0]


@pytest.mark.parametrize("word", ["", " ", "two words", "the\n"])
def test_stop_word_that_is_no_word_is_refused(word):
    with pytest.raises(ValueError, match=r"GopherQuality: stop word .* give single words"):
        GopherQuality(stop_words=("the", word))
