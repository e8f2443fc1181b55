import gzip
import json
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixtures import vocabulary as module
from mixtures.special_tokens import SPECIAL_TOKENS, SpecialIds
from mixtures.vocabulary import Vocabulary, load_vocabulary

LANGUAGES = Path(__file__).parents[3] / "shared" / "data" / "languages" / "sentences.jsonl.gz"
TRICKY = [
    "",
    " ",
    "\n",
    "  leading and trailing  ",
    "a \u2581 b\u2581\u2581 c",  # the character that SentencePiece writes for a space
    "\ufdd0 \ufdd00 \ufdd01\u2581\ufdd0",  # our escape
    "<0x41> <0xE2><0x96><0x81>",  # byte pieces spelt out
    "tab\there\r\nnull\0\ufeff\u2047 \u2585",
    "\U0001f600 e\u0301 \u0915\u093f \u65e5\u672c\u8a9e",
    "=" * 999 + " " * 77 + "-" * 333 + "\n" * 50,
    " ".join(SPECIAL_TOKENS) + "".join(SPECIAL_TOKENS),
]
# strings in which equal pieces and runs meet: where ties are
runs = st.lists(
    st.tuples(
        st.sampled_from(["=", "-", " ", "a", "b", "\n", "0", "\u2581", "#"]), st.integers(1, 40)
    ),
    max_size=12,
).map(lambda parts: "".join(character * count for character, count in parts))
quiet = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def reference(vocabulary: Vocabulary, text: str) -> list[int]:
    return vocabulary.tokenizer.encode(text, add_special_tokens=False).ids


@quiet
@given(text=st.text())
def test_encode_any_text_decodes_to_itself(vocabulary: Vocabulary, text: str) -> None:
    (ids,) = vocabulary.encode_batch([text])
    assert vocabulary.decode(ids) == text


@pytest.mark.parametrize("text", TRICKY)
def test_encode_tricky_text_decodes_to_itself(vocabulary: Vocabulary, text: str) -> None:
    (ids,) = vocabulary.encode_batch([text])
    assert vocabulary.decode(ids) == text
    assert ids.tolist() == reference(vocabulary, text)


@quiet
@given(text=runs)
def test_encode_runs_equals_tokenizer_json(vocabulary: Vocabulary, text: str) -> None:
    (ids,) = vocabulary.encode_batch([text])
    assert ids.tolist() == reference(vocabulary, text)
    assert vocabulary.decode(ids) == text


def test_encode_real_text_equals_tokenizer_json(
    vocabulary: Vocabulary, real_texts: list[str]
) -> None:
    texts = real_texts[::3]
    for text, ids in zip(texts, vocabulary.encode_batch(texts), strict=True):
        assert ids.dtype == np.uint16
        assert ids.tolist() == reference(vocabulary, text)
        assert vocabulary.decode(ids) == text


def test_encode_many_languages_equals_tokenizer_json(vocabulary: Vocabulary) -> None:
    if not LANGUAGES.exists():
        pytest.skip("needs ../shared/data/languages/sentences.jsonl.gz")
    with gzip.open(LANGUAGES, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in list(file)[::40]]
    for text, ids in zip(texts, vocabulary.encode_batch(texts), strict=True):
        assert ids.tolist() == reference(vocabulary, text)
        assert vocabulary.decode(ids) == text


def test_encode_special_tokens_in_text_stay_text(vocabulary: Vocabulary) -> None:
    texts = [*SPECIAL_TOKENS, "x<s>y</s>", "<think>sure</think>", " <SPECIAL_12>\n"]
    for text, ids in zip(texts, vocabulary.encode_batch(texts), strict=True):
        assert ids.min() >= len(SPECIAL_TOKENS), text
        assert vocabulary.decode(ids) == text


def test_special_tokens_have_their_ids(vocabulary: Vocabulary) -> None:
    assert [vocabulary.tokenizer.id_to_token(i) for i in range(32)] == list(SPECIAL_TOKENS)
    wanted = {"<unk>": 0, "<s>": 1, "</s>": 2, "<SPECIAL_10>": 10, "<SPECIAL_11>": 11}
    wanted |= {"<SPECIAL_12>": 12, "<think>": 24, "</think>": 25, "</TOOL_RESPONSE>": 31}
    for token, number in wanted.items():
        assert vocabulary.tokenizer.token_to_id(token) == number
    assert vocabulary.special_ids == SpecialIds(bos=1, eos=2, pad=0, stops=(2, 12))


def test_vocabulary_size_is_what_was_asked_for(vocabulary: Vocabulary) -> None:
    assert vocabulary.size == vocabulary.tokenizer.get_vocab_size() == 2000
    assert vocabulary.dtype == np.uint16
    assert np.frombuffer(vocabulary.end_of_document, np.uint16).tolist() == [2]


def test_digits_are_single_tokens(vocabulary: Vocabulary) -> None:
    (ids,) = vocabulary.encode_batch(["1234567890" * 3])
    assert len(ids) == 30


def cut_at_borders(text: str, size: int) -> bool:
    places = list(accumulate(len(piece) for piece in module._cut(text, size)))[:-1]
    return all(module._WORD_BORDER.match(text, place) for place in places)


@pytest.mark.parametrize(("size", "line_size"), [(1500, 50), (4000, 700)])
def test_encode_in_pieces_equals_encode_whole(
    vocabulary: Vocabulary,
    real_texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    line_size: int,
) -> None:
    some = [text[:20_000] for text in real_texts[::9]] + TRICKY
    # a text without a border for three pieces (a table of links) is cut anywhere, as it says
    texts = [text for text in some if cut_at_borders(text, size)]
    assert len(texts) > 0.9 * len(some)
    whole = vocabulary.encode_batch(texts)
    monkeypatch.setattr(module, "PIECE_CHARACTERS", size)
    monkeypatch.setattr(vocabulary, "_run_characters", line_size)
    assert len(list(vocabulary._pieces(texts[0]))) > len(texts[0]) // size // 4
    for ids, parts in zip(whole, vocabulary.encode_batch(texts), strict=True):
        assert ids.tolist() == parts.tolist()


def test_encode_without_any_border_still_decodes_to_itself(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 64)
    text = "0123456789abcdef\ufdd0\u2581\u65e5 " * 100
    (ids,) = vocabulary.encode_batch([text])
    assert vocabulary.decode(ids) == text


@pytest.mark.slow
def test_write_hf_loads_in_transformers(vocabulary: Vocabulary, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary.write_hf(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id) == (1, 2, 0)
    assert loaded.pad_token_id == 0
    assert len(loaded) == vocabulary.size
    text = "def f(x):\n    return x ** 2  # \u2581 \u65e5\u672c\n"
    ids = vocabulary.encode_batch([text])[0].tolist()
    assert loaded(text)["input_ids"] == ids
    assert loaded.decode(ids) == text
    chat = loaded("<SPECIAL_10>System\n<think>")["input_ids"]  # a template's tokens are parsed
    assert (chat[0], chat[-1]) == (10, 24)


def test_load_vocabulary_without_manifest_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no vocabulary\.json"):
        load_vocabulary(tmp_path)
