"""RedPajama-V2's signatures: the formula in plain Python and as numpy evaluates it."""

import hashlib
import re
import string
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dedup.minhash import Shingles
from pipelines.dedup.redpajama_signature import RedpajamaMinHash

PRIME = 2**61 - 1


def shingle_hashes(text: str) -> list[int]:
    text = "".join(c for c in text if c not in string.punctuation).lower()
    text = unicodedata.normalize("NFD", re.sub(r"\s+", " ", text.strip()))
    words = text.split()
    runs = [" ".join(words[i : i + 13]) for i in range(len(words) - 12)]
    return [int.from_bytes(hashlib.sha1(run.encode()).digest()[3::-1]) for run in runs]


def numbers(count: int) -> list[tuple[int, int]]:
    rng = np.random.RandomState(42)
    draw = rng.randint
    return [
        (int(draw(1, PRIME, dtype=np.uint64)), int(draw(0, PRIME, dtype=np.uint64)))
        for _ in range(count)
    ]


WORDS = st.sampled_from(
    ["The", "cat", "sat,", "don't", "\u00c9t\u00e9", "\u65e5\u672c", "--", "2\u00a03", "\n"]
)
TEXTS = st.one_of(st.none(), st.text(max_size=80), st.lists(WORDS, max_size=40).map(" ".join))


@given(st.lists(TEXTS, max_size=6))
@settings(max_examples=100, deadline=None)
def test_signatures_follow_the_formula(texts):
    step = RedpajamaMinHash()
    values, signed = step.signatures(pa.array(texts, pa.string()))
    assert values.shape == (len(texts), 126)
    pairs = numbers(128)[:126]
    for text, found, has in zip(texts, values.tolist(), signed.tolist(), strict=True):
        hashes = shingle_hashes(text or "")
        assert has == bool(hashes)
        if has:
            assert found == [
                min((h * a + b) % 2**64 % PRIME % 2**32 for h in hashes) for a, b in pairs
            ]


def test_sums_overflow_as_numpys_do():
    text = " ".join(f"word{i % 37}" for i in range(400))
    a, b = np.array(numbers(126), np.uint64).T
    hashes = np.array(shingle_hashes(text), np.uint64)[:, None]
    wanted = ((hashes * a + b) % np.uint64(PRIME) & np.uint64(2**32 - 1)).min(axis=0)
    assert (RedpajamaMinHash().signatures(pa.array([text]))[0][0] == wanted).all()
    exact = [
        min((int(h) * int(x) + int(y)) % PRIME % 2**32 for h in hashes[:, 0])
        for x, y in zip(a, b, strict=True)
    ]
    assert exact != wanted.tolist()  # without overflow the values are others


def test_bands_are_shared_where_their_minima_are():
    words = [f"w{i}" for i in range(300)]
    texts = [" ".join(words), " ".join(words).upper() + "!", " ".join(words[4:]), "too short", None]
    step = RedpajamaMinHash(9, 13)
    column = pa.array(texts, pa.string())
    rows = step.signatures(column)[0][:, :117].reshape(5, 9, 13)
    bands, sizes = step.bands(column, Shingles())
    assert (bands[0] == bands[1]).all()
    assert ((bands[0] == bands[2]) == (rows[0] == rows[2]).all(axis=1)).all()
    assert (bands[0] == bands[2]).any()
    assert sizes.tolist() == [len(t.encode()) for t in texts[:3]] + [0, 0]


@pytest.mark.parametrize("name", ["num_bands", "num_rows", "num_words"])
def test_parameters_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"RedpajamaMinHash: {name} is 0; wanted 1 or more"):
        RedpajamaMinHash(**{name: 0})
