import gzip
import json
from collections import defaultdict
from pathlib import Path

import fasttext
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.language import LanguageId
from pipelines.step import broken

SENTENCES = Path(__file__).parents[3] / "shared" / "data" / "languages" / "sentences.jsonl.gz"
LARGE = [
    *("en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "uk"),
    *("ja", "zh", "ko", "ar", "tr", "vi", "cs", "sv", "fa", "hi"),
]
MODEL = LanguageId().model


@pytest.fixture(scope="module")
def peer():
    if not Path(MODEL).is_file():
        pytest.skip("no language model; `make setup` fetches it")
    fasttext.FastText.eprint = lambda *_: None  # it warns of an API change on every load
    return fasttext.load_model(MODEL)


@pytest.fixture(scope="module")
def sentences() -> dict[str, list[str]]:
    if not SENTENCES.is_file():
        pytest.skip("../shared/data/languages is not here")
    found = defaultdict(list)
    with gzip.open(SENTENCES, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            found[row["lang"]].append(row["text"])
    return found


def identified(texts, **settings) -> tuple[list[str | None], list[float | None]]:
    batch = LanguageId(**settings)(pa.record_batch({"text": pa.array(texts, pa.string())}))
    return batch["language"].to_pylist(), batch["language_score"].to_pylist()


def check_against(peer, texts: list[str]) -> None:
    languages, scores = identified(texts, max_bytes=10**9)
    labels, probabilities = peer.predict([text.replace("\n", " ") for text in texts])
    for row, text in enumerate(texts):
        assert languages[row] == labels[row][0].removeprefix("__label__"), text
        assert scores[row] == pytest.approx(min(float(probabilities[row][0]), 1.0), abs=6e-5)


def test_language_of_real_sentences_is_fasttexts(peer, sentences):
    texts = [text for group in sentences.values() for text in group[:40]]
    texts += ["\n".join(group[:30]) for group in sentences.values()]
    check_against(peer, texts)


WORDS = st.sampled_from(
    [
        *("the", "und", "\u043f\u0440\u0438\u0432\u0435\u0442", "\u65e5\u672c", "caf\u00e9\xa0x"),
        *("__label__en", "__label__", "</s>", "\x00", "\t", "\x0b", "\x1f", "\u2028", "x"),
    ]
)


@given(st.lists(st.lists(WORDS | st.text(max_size=8), min_size=1).map(" ".join), max_size=5))
@settings(max_examples=200)
def test_language_of_odd_texts_is_fasttexts(peer, texts):
    known = [text for text in texts if text.replace("\0", " ").strip(" \t\n\r\x0b\x0c")]
    check_against(peer, known)


@pytest.mark.usefixtures("peer")
def test_language_of_twenty_large_languages_is_right(sentences):
    texts = [" ".join(sentences[name][i : i + 5]) for name in LARGE for i in range(0, 100, 5)]
    languages, _ = identified(texts)
    wanted = [name for name in LARGE for _ in range(0, 100, 5)]
    assert np.mean([a == b for a, b in zip(languages, wanted, strict=True)]) >= 0.99


@pytest.mark.usefixtures("peer")
def test_language_of_a_text_without_words_is_null():
    assert identified([None, "", " \n\t\0 ", "word"])[0][:3] == [None] * 3
    languages, scores = identified([None, "", " \n\t\0 ", "word"])
    assert [score is None for score in scores] == [True, True, True, False]
    assert languages[3] is not None


@pytest.mark.usefixtures("peer")
def test_language_of_a_long_text_is_read_all_over():
    english, german = "This is a plain English sentence. ", "Dies ist ein deutscher Satz. "
    text = english * 40 + german * 400
    assert identified([text], max_bytes=1_000)[0] == ["de"]
    assert identified([english * 40], max_bytes=1_000)[0] == ["en"]


@pytest.mark.usefixtures("peer")
def test_language_of_a_text_within_the_limit_does_not_depend_on_it():
    texts = ["\u00e9t\u00e9 " * 16, "\u65e5\u672c\u8a9e" * 11, "plain words here"]
    assert identified(texts, max_bytes=100) == identified(texts, max_bytes=10**6)


@pytest.mark.usefixtures("peer")
def test_language_rules_break_on_language_and_score():
    step = LanguageId(("en", "fr"), min_score=0.7)
    texts = ["This is what we have been told about it.", "Das ist doch ganz einfach.", "xq zz"]
    batch = step(pa.record_batch({"text": texts}))
    wrong, low = (broken(rule, step, batch).tolist() for rule in step.rules)
    assert wrong[:2] == [False, True]
    assert low == [False, False, True]


@pytest.mark.usefixtures("peer")
def test_scores_are_rounded_to_four_decimals(sentences):
    _, scores = identified([group[0] for group in sentences.values()])
    assert all(np.float32(round(score, 4)) == np.float32(score) for score in scores)
    assert max(scores) <= 1


def test_model_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no model at .*nothing\.ftz; `make setup`"):
        identified(["text"], model=str(tmp_path / "nothing.ftz"))


@pytest.mark.usefixtures("peer")
def test_model_that_is_broken_is_refused(tmp_path):
    path = tmp_path / "broken.ftz"
    path.write_bytes(b"not a model" * 10)
    with pytest.raises(ValueError, match=r"broken\.ftz is no fastText model"):
        identified(["text"], model=str(path))
    path = tmp_path / "half.ftz"
    path.write_bytes(Path(MODEL).read_bytes()[:400_000])
    with pytest.raises(ValueError, match=r"half\.ftz is truncated: 400000 bytes"):
        identified(["text"], model=str(path))


@pytest.mark.usefixtures("peer")
def test_model_with_another_loss_is_refused(tmp_path):
    data = bytearray(Path(MODEL).read_bytes())
    data[8 + 6 * 4] = 3  # magic, version, then the seventh argument: softmax
    (tmp_path / "softmax.ftz").write_bytes(data)
    with pytest.raises(ValueError, match=r"softmax\.ftz: loss 3, model 3, .*wanted a supervised"):
        identified(["text"], model=str(tmp_path / "softmax.ftz"))


def test_limit_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="max_bytes is 99, wanted 100 or more"):
        LanguageId(max_bytes=99)
