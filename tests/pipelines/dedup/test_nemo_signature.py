"""NeMo's signatures: cuDF's published values, and the formula in plain Python."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dedup.minhash import Shingles
from pipelines.dedup.nemo_signature import NemoMinHash, character_minima
from pipelines.dedup.peer_kernels import murmur32

WORD = 2**32


def python_murmur(data: bytes, seed: int) -> int:
    """MurmurHash3_x86_32, from its specification."""

    def rotate(x: int, left: int) -> int:
        return (x << left | x >> (32 - left)) % WORD

    h = seed
    whole = len(data) // 4 * 4
    for start in range(0, whole, 4):
        k = int.from_bytes(data[start : start + 4], "little") * 0xCC9E2D51 % WORD
        h = (rotate(h ^ rotate(k, 15) * 0x1B873593 % WORD, 13) * 5 + 0xE6546B64) % WORD
    k = int.from_bytes(data[whole:], "little") * 0xCC9E2D51 % WORD
    h ^= rotate(k, 15) * 0x1B873593 % WORD
    h ^= len(data)
    h = (h ^ h >> 16) * 0x85EBCA6B % WORD
    h = (h ^ h >> 13) * 0xC2B2AE35 % WORD
    return h ^ h >> 16


def python_minima(text: str, width: int, seed: int, pairs: list[tuple[int, int]]) -> list[int]:
    if not text:
        return [0] * len(pairs)
    runs = [text[i : i + width] for i in range(max(1, len(text) - width + 1))]
    hashes = [max(1, python_murmur(run.encode(), seed)) for run in runs]
    return [min((h * a + b) % WORD % (2**61 - 1) for h in hashes) for a, b in pairs]


@pytest.mark.parametrize(
    ("data", "seed", "wanted"),
    [
        (b"", 0, 0),
        (b"", 1, 0x514E28B7),
        (b"", 0xFFFFFFFF, 0x81F16F39),
        (b"\xff\xff\xff\xff", 0, 0x76293B50),
        (b"\x21\x43\x65\x87", 0, 0xF55B516B),
        (b"\x21\x43\x65\x87", 0x5082EDEE, 0x2362F9DE),
        (b"\x21\x43\x65", 0, 0x7E4A8634),
    ],
)
def test_murmur_gives_the_published_values(data, seed, wanted):
    """Of SMHasher, as several libraries test them."""
    found = murmur32(np.frombuffer(data + b"tail", np.uint8), 0, len(data), np.uint64(seed))
    assert found == python_murmur(data, seed) == wanted


def test_minima_are_those_of_cudfs_own_tests():
    """cpp/tests/text/minhash_tests.cpp, Permuted and PermutedWide; docstring of str.minhash."""
    texts = [
        "doc 1",
        "this is doc 2",
        "d",
        "The quick brown fox jump\u00e9d over the lazy brown dog.",
    ]
    numbers = np.arange(10, 13, dtype=np.uint32)
    assert character_minima(pa.array(texts), 4, 0, numbers, numbers).tolist() == [
        [1392101586, 394869177, 811528444],
        [211415830, 187088503, 130291444],
        [2264583304, 2920538364, 3576493424],
        [253327882, 41747273, 302030804],
    ]
    numbers = np.arange(20, 23, dtype=np.uint32)
    wide = pa.array(["x" * (2 << 10), "y" * (2 << 19)])
    assert character_minima(wide, 4, 0, numbers, numbers).tolist() == [
        [1731998032, 315359380, 3193688024],
        [1293098788, 2860992281, 133918478],
    ]
    a, b = np.arange(1, 4, dtype=np.uint32), np.arange(4, 7, dtype=np.uint32)
    documented = pa.array(["this is my", "favorite book"])
    assert character_minima(documented, 5, 0, a, b).tolist() == [
        [1305480171, 462824409, 74608232],
        [32665388, 65330773, 97996158],
    ]


@given(
    st.lists(st.one_of(st.text(max_size=60), st.text("ab\u00e9\u65e5\U0001f600", max_size=60))),
    st.integers(0, 5),
)
@settings(max_examples=100, deadline=None)
def test_signatures_follow_the_formula(texts, start):
    step = NemoMinHash(num_bands=2, num_rows=3)
    rng = np.random.RandomState(42)
    pairs = [
        (
            int(rng.randint(1, 2**31 - 1, dtype=np.uint32)),
            int(rng.randint(0, 2**31 - 1, dtype=np.uint32)),
        )
        for _ in range(6)
    ]
    column = pa.array([*texts, None], pa.string())[start:]
    values, signed = step.signatures(column)
    assert signed.tolist() == column.is_valid().to_pylist()
    for text, found in zip(column.to_pylist(), values.tolist(), strict=True):
        if text is not None:
            assert found == python_minima(text, 24, pairs[0][0], pairs)


def test_bands_are_shared_where_all_thirteen_minima_are():
    base = "".join(chr(97 + i) for i in np.random.default_rng(0).integers(0, 26, 600))
    texts = [base, base, base[:500] + "x" + base[500:], "other " * 60, "", "", None]
    step = NemoMinHash()
    column = pa.array(texts, pa.string())
    values, _ = step.signatures(column)
    bands, sizes = step.bands(column, Shingles())
    assert bands.shape == (7, 20)
    rows = values.reshape(7, 20, 13)
    for i in range(6):
        for j in range(6):
            assert ((bands[i] == bands[j]) == (rows[i] == rows[j]).all(axis=1)).all()
    assert sizes.tolist() == [600, 600, 601, 360, 1, 1, 0]
    assert 0 < (bands[0] == bands[2]).sum() < 20


@pytest.mark.parametrize("name", ["num_bands", "num_rows", "num_characters"])
def test_parameters_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"NemoMinHash: {name} is 0; wanted 1 or more"):
        NemoMinHash(**{name: 0})
