import unicodedata

import ftfy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from ftfy.badness import MOJIBAKE_CATEGORIES, is_bad
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.clean import CONTROLS, CleanText
from pipelines.clean_kernels import COMPOSES, CONTROL, MOJIBAKE, members, suspects

NEIGHBOURS = "".join(MOJIBAKE_CATEGORIES.values()) + "aAz1?., \n\x1a\u0412\u0422\u4e2d\u0301"
ODD = "aZ 1\n\t\r\x00\x0b\x0c\x1b[3m\x1f\x7f\x85\x92\xa0\ufeff\ufff9e\u0301\u0327\u212b\u1100\u1161"
PIECES = [
    "caf\u00e9",
    "\u201cquoted\u201d",
    "\u043f\u0440\u0438\u0432\u0435\u0442",
    "\u65e5\u672c",
    "\u20ac5",
    "na\u00efve",
]
CODE_PAGES = ["latin-1", "cp1252", "cp1250", "cp1251", "cp1253", "cp1257", "cp437", "mac_roman"]


@st.composite
def mojibake(draw):
    piece = draw(st.sampled_from(PIECES))
    page = draw(st.sampled_from(CODE_PAGES))
    return piece.encode().decode(page, draw(st.sampled_from(["replace", "ignore"])))


TEXTS = st.one_of(
    st.text(st.sampled_from(NEIGHBOURS), max_size=12),
    st.text(st.sampled_from(ODD), max_size=30),
    st.lists(mojibake() | st.sampled_from([*PIECES, " ", "\n", "\x1b[0m", "\u0303"])).map("".join),
    st.text(max_size=30),
)


def cleaned(*texts):
    return CleanText()(pa.record_batch({"text": pa.array(texts, pa.string())}))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("l\u00e2\u20ac\u2122ann\u00c3\u00a9e", "l\u2019ann\u00e9e"),
        ("Intel\x92s", "Intel\u2019s"),
        ("e\u0301t\u00e9", "\u00e9t\u00e9"),
        ("a\x00b\x7fc\ufeffd", "abcd"),
        ("page\x0cpage\x1fword", "page\npage word"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("tab\tend\r\nend\n", "tab\tend\r\nend\n"),
        ("\u65e5\u672c\u8a9e, caf\u00e9 \u2013 \ufb01ne \u201cquotes\u201d", None),
    ],
)
def test_clean_of_a_known_text_gives_the_known_result(before, after):
    assert cleaned(before)["text"].to_pylist() == [before if after is None else after]


def test_clean_says_what_it_did():
    result = cleaned("plain", "caf\u00c3\u00a9", "e\u0301", "\u00e9\x07\x07z\x0c", None)
    assert result["mojibake_repaired"].to_pylist() == [False, True, False, False, None]
    assert result["nfc_changed"].to_pylist() == [False, False, True, False, None]
    spans = result["removed_spans"].to_pylist()
    assert spans[:3] == [[], [], []]
    assert spans[3] == [{"start": s, "end": s + 1} for s in (2, 3, 5)]
    assert spans[4] is None
    assert result["text"].to_pylist()[3:] == ["\u00e9z\n", None]


def test_clean_repairs_one_line_beside_another_alphabet():
    text = "\u65e5\u672c\u8a9e\ncaf\u221a\u00a9\n"
    assert ftfy.fix_encoding(text) == text  # as a whole it cannot be encoded in one code page
    assert cleaned(text)["text"].to_pylist() == ["\u65e5\u672c\u8a9e\ncaf\u00e9\n"]


def test_clean_of_texts_without_fault_keeps_the_buffers():
    batch = pa.record_batch({"text": ["plain", None, "caf\u00e9 \u4e2d\u6587\r\n"]})
    before, after = batch["text"].buffers(), CleanText()(batch)["text"].buffers()
    assert [b.address for b in before[1:]] == [b.address for b in after[1:]]


@given(st.lists(TEXTS, max_size=4))
@settings(max_examples=300)
def test_clean_of_a_clean_text_changes_nothing(texts):
    once = cleaned(*texts)["text"]
    twice = CleanText()(pa.record_batch({"text": once}))
    assert twice["text"].to_pylist() == once.to_pylist()
    assert not pc.any(twice["mojibake_repaired"]).as_py()
    assert not pc.any(twice["nfc_changed"]).as_py()
    for text in once.to_pylist():
        assert not CONTROLS.search(text)
        assert unicodedata.is_normalized("NFC", text)
        assert all(ftfy.fix_encoding(line) == line for line in text.split("\n"))


@given(st.lists(TEXTS, max_size=8))
@settings(max_examples=500)
def test_suspects_miss_nothing(texts):
    found = suspects(pa.array(texts, pa.string()))
    for text, bits in zip(texts, found.tolist(), strict=True):
        if not bits & MOJIBAKE:
            assert not is_bad(text)
        if not bits & COMPOSES:
            assert unicodedata.is_normalized("NFC", text)
        assert bool(bits & CONTROL) == bool(CONTROLS.search(text))


def test_suspects_miss_no_pair_of_mojibake_characters():
    characters = sorted({chr(c) for name in MOJIBAKE_CATEGORIES for c in members(name)} | {*" a"})
    assert len(characters) > 400
    missed = set()
    for first in characters:
        texts = [f"a{first}{second}a" for second in characters]
        texts += [f" {first}{second}{first}{second} " for second in characters]
        found = suspects(pa.array(texts)) & MOJIBAKE
        missed |= {t for t, bits in zip(texts, found, strict=True) if not bits and is_bad(t)}
    assert not missed


def test_suspects_miss_no_code_point_outside_nfc():
    codes = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    texts = [f"{base}{chr(c)}" for c in codes for base in ("", "e", "\u1100", "\u0915")]
    found = suspects(pa.array(texts)) & COMPOSES
    passed = [text for text, bits in zip(texts, found, strict=True) if not bits]
    assert all(unicodedata.is_normalized("NFC", text) for text in passed)
    assert 0 < np.count_nonzero(found) < len(texts) / 20


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
@settings(max_examples=200)
def test_suspects_of_invalid_utf8_stay_within_their_memory(values):
    assert len(suspects(pa.array(values, pa.binary()).view(pa.string()))) == len(values)
