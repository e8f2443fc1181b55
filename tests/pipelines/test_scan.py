import re
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from datatrove.utils.text import PUNCTUATION_SET
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.scan import Scan, scan
from pipelines.scan_kernels import ALPHA, LINE_END, NOT_SYMBOL, SPACE
from pipelines.unicode_tables import character_classes

ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
BULLET = "\N{BULLET}"
ODD = (
    " \t\n\n\n\r\x0b\x0c\x1c\x1f\x85\xa0\u2003\u2028\u3000\ufeff\x00\x07\x7f"
    f"ab1#-.{ELLIPSIS}{BULLET}\u3002\u00e9\u0301\u4e2d\U0001f642\U00010a56"
)
TEXTS = st.one_of(
    st.none(),
    st.text(st.sampled_from(ODD), max_size=60),
    st.text(max_size=40),
    st.lists(st.sampled_from(["...", "....", "-x", " - ", f"a{ELLIPSIS} ", "\r\n", "\n"])).map(
        "".join
    ),
    st.text(st.sampled_from("abcdefgh \n"), min_size=30, max_size=200),
)


def words_of(found: Scan, d: int) -> list[bytes]:
    first, last = found.word_offsets[d : d + 2]
    bounds = found.word_bounds[first : last + 1].tolist()
    letters = found.letters
    return [letters[a:b].tobytes() for a, b in pairwise(bounds)]


def check_document(text: str, found: Scan, d: int, names: dict[int, bytes]) -> None:
    """Compares one document with Python's own string methods; names collects what has a hash."""
    words = text.split()
    first, last = found.word_offsets[d : d + 2]
    assert words_of(found, d) == [word.encode() for word in words]
    assert found.word_length[first:last].tolist() == [len(word) for word in words]
    for word, value in zip(words, found.word_hash[first:last].tolist(), strict=True):
        assert names.setdefault(value, word.encode()) == word.encode()

    plain = [word for word in words if any(c not in PUNCTUATION_SET for c in word)]
    assert found.n_code_points[d] == len(text)
    assert found.n_words[d] == len(words)
    assert found.n_non_symbol_words[d] == len(plain)
    assert found.n_non_symbol_characters[d] == sum(map(len, plain))
    assert found.n_alpha_words[d] == sum(any(c.isalpha() for c in word) for word in words)
    assert found.n_hash_signs[d] == text.count("#")
    assert found.n_ellipses[d] == text.count("...") + text.count(ELLIPSIS)

    lines = text.splitlines()
    assert found.n_text_lines[d] == len(lines)
    assert found.n_bullet_lines[d] == sum(s.lstrip().startswith((BULLET, "-")) for s in lines)
    assert found.n_ellipsis_lines[d] == sum(s.rstrip().endswith(("...", ELLIPSIS)) for s in lines)

    pieces = re.split("\n+", text)
    first, last = found.line_offsets[d : d + 2]
    data = text.encode()
    assert [data[a:b].decode() for a, b in found.line_spans[first:last]] == pieces
    assert found.line_length[first:last].tolist() == list(map(len, pieces))
    paragraphs = re.split("\n{2,}", text.strip())
    start, stop = found.paragraph_offsets[d : d + 2]
    assert found.paragraph_length[start:stop].tolist() == list(map(len, paragraphs))
    for elements, hashes in (
        (pieces, found.line_hash[first:last]),
        (paragraphs, found.paragraph_hash[start:stop]),
    ):
        same = {(a, b) for a, b in zip(elements, hashes.tolist(), strict=True)}
        assert len(same) == len({a for a, _ in same}) == len({b for _, b in same})


@given(st.lists(TEXTS, max_size=6), st.integers(0, 3))
@settings(max_examples=400)
def test_scan_of_odd_texts_agrees_with_str(texts, start):
    found = scan(pa.array(texts, pa.string()).slice(start))
    names: dict[int, bytes] = {}
    for d, text in enumerate(texts[start:]):
        assert found.valid[d] == (text is not None)
        if text is None:
            assert found.n_words[d] == found.n_text_lines[d] == found.n_code_points[d] == 0
            assert found.line_offsets[d] == found.line_offsets[d + 1]
            assert found.paragraph_offsets[d] == found.paragraph_offsets[d + 1]
        else:
            check_document(text, found, d, names)


def test_scan_of_real_source_files_agrees_with_str():
    modules = [m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
    texts = []
    for path in sorted(path for path in modules if path.endswith(".py"))[::6][:150]:
        with open(path, encoding="utf-8", newline="") as file:
            texts.append(file.read())
    found = scan(pa.array(texts))
    names: dict[int, bytes] = {}
    for d, text in enumerate(texts):
        check_document(text, found, d, names)
    assert len(names) > 5_000


def test_character_classes_of_all_code_points_agree_with_str():
    classes = character_classes()
    characters = [chr(code) for code in range(0x110000)]
    for bit, member in (
        (SPACE, str.isspace),
        (ALPHA, str.isalpha),
        (NOT_SYMBOL, lambda c: c not in PUNCTUATION_SET),
    ):
        wanted = np.fromiter(map(member, characters), bool, len(characters))
        assert np.array_equal((classes & bit) > 0, wanted)
    ends = np.flatnonzero(classes & LINE_END)
    assert all(len(f"a{chr(code)}b".splitlines()) == 2 for code in ends)
    # "\r\n" does not occur in code point order, and the last line has no end
    assert len(ends) + 1 == len("".join(characters[:0xD800]).splitlines())


def test_words_of_all_ascii_pairs_are_classified_like_their_characters():
    texts = [f"{chr(a)}{chr(b)}" for a in range(128) for b in range(128)]
    found = scan(pa.array([f"{text} xxxxxxxxxxxxxxxx" for text in texts]))
    names: dict[int, bytes] = {}
    for d, text in enumerate(texts):
        check_document(f"{text} xxxxxxxxxxxxxxxx", found, d, names)


def test_hashes_of_half_a_million_words_differ():
    words = [f"w{i}" for i in range(300_000)]
    words += [f"a-rather-long-identifier-{i:x}-with-a-tail" for i in range(200_000)]
    hashes = scan(pa.array([" ".join(words)])).word_hash
    assert len(np.unique(hashes)) == len(words)
    for shift in (0, 20, 40, 56):  # any byte of it serves as a hash: 256 bins of 1,953 +- 44
        counts = np.bincount((hashes >> np.uint64(shift)).astype(np.uint8), minlength=256)
        assert abs(counts - len(words) / 256).max() < 6 * (len(words) / 256) ** 0.5


def test_hash_of_a_word_depends_on_the_word_alone():
    words = ["a", "seven77", "eight888", "ninenine9", "caf\u00e9", "\u4e2d\u6587", "x" * 100]
    alone = scan(pa.array(words)).word_hash
    inside = scan(pa.array([f"\u3000{word}\n{'z' * d}" for d, word in enumerate(words)])).word_hash
    first = inside[[i * 2 - 1 if i else 0 for i in range(len(words))]]
    assert np.array_equal(alone, first)


def test_scan_of_the_same_buffers_is_kept():
    batch = pa.record_batch({"text": ["one two", "three"]})
    found = scan(batch.column("text"))
    assert scan(batch.column("text")) is found
    assert scan(batch.slice(1).column("text")) is not found
    assert scan(batch.slice(1).column("text")).n_words.tolist() == [1]


def test_scan_of_an_empty_array_has_no_words():
    found = scan(pa.array([], pa.string()))
    assert found.n_words.tolist() == []
    assert found.word_offsets.tolist() == [0]


def test_scan_of_one_long_line_is_whole():
    text = "word " * 2_000_000
    found = scan(pa.array([text]))
    assert found.n_words.tolist() == [2_000_000]
    assert Counter(found.word_length.tolist()) == {4: 2_000_000}
    assert found.line_length.tolist() == [len(text)]


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
@settings(max_examples=300)
def test_scan_of_invalid_utf8_stays_within_its_memory(values):
    array = pa.array(values, pa.binary()).view(pa.string())
    try:
        found = scan(array)
    except ValueError:  # more words than UTF-8 can hold
        return
    assert int(found.word_bounds[-1]) <= sum(map(len, values))


def test_scan_of_another_type_is_refused():
    with pytest.raises(ValueError, match="large_string, wanted string"):
        scan(pa.array(["a"], pa.large_string()))
