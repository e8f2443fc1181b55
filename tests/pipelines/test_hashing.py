import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.hashing import hash128, normalised_hash128

M = (1 << 64) - 1


def reference(data: bytes) -> tuple[int, int]:
    """MurmurHash3_x64_128 in plain Python."""
    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F

    def rotate(x: int, r: int) -> int:
        return (x << r | x >> (64 - r)) & M

    def final(k: int) -> int:
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            k = (k ^ k >> 33) * factor & M
        return k ^ k >> 33

    h1 = h2 = 0
    blocks = len(data) // 16
    for at in range(0, 16 * blocks, 16):
        k1, k2 = (int.from_bytes(data[at + o : at + o + 8], "little") for o in (0, 8))
        h1 ^= rotate(k1 * c1 & M, 31) * c2 & M
        h1 = ((rotate(h1, 27) + h2) * 5 + 0x52DCE729) & M
        h2 ^= rotate(k2 * c2 & M, 33) * c1 & M
        h2 = ((rotate(h2, 31) + h1) * 5 + 0x38495AB5) & M
    tail = data[16 * blocks :]
    h2 ^= rotate(int.from_bytes(tail[8:], "little") * c2 & M, 33) * c1 & M
    h1 ^= rotate(int.from_bytes(tail[:8], "little") * c1 & M, 31) * c2 & M
    h1, h2 = h1 ^ len(data), h2 ^ len(data)
    h1 = (h1 + h2) & M
    h2 = (h2 + h1) & M
    h1, h2 = final(h1), final(h2)
    h1 = (h1 + h2) & M
    return h1, (h2 + h1) & M


def test_hash_of_published_vectors():
    # mmh3.hash64("foo", signed=False) in its README; and the empty text
    values = pa.array(["foo", ""])
    assert hash128(values).tolist() == [[16316970633193145697, 9128664383759220103], [0, 0]]


@given(st.lists(st.none() | st.binary(max_size=70), max_size=8), st.integers(0, 3))
@settings(max_examples=200)
def test_hash_equals_the_plain_reference(values, start):
    array = pa.array(values, pa.binary()).slice(start)
    want = [list(reference(value or b"")) for value in values[start:]]
    assert hash128(array).tolist() == want


SPACES = [
    " ",
    "\t",
    "\n",
    "\r",
    "\x0b",
    "\x1c",
    "\x85",
    "\xa0",
    "\u1680",
    "\u2003",
    "\u2028",
    "\u202f",
]
SPACES += ["\u205f", "\u3000"]


@given(
    st.lists(
        st.none()
        | st.lists(
            st.sampled_from([*SPACES, "a", "\u00e9", "\u200b", "\u4e2d", "\U0001f600"])
            | st.characters(codec="utf-8"),
            max_size=30,
        ).map("".join),
        max_size=6,
    )
)
@settings(max_examples=300)
def test_normalised_hash_is_the_hash_of_joined_words(values):
    want = [" ".join((value or "").split()) for value in values]
    folded = normalised_hash128(pa.array(values, pa.string()))
    assert np.array_equal(folded, hash128(pa.array(want, pa.string())))


def test_every_white_space_character_folds():
    spaces = [chr(c) for c in range(0x110000) if chr(c).isspace()]
    assert len(spaces) == 29
    hashes = normalised_hash128(pa.array([f"{s}a{s}{s}b{s}" for s in spaces]))
    assert np.array_equal(hashes, np.repeat(hash128(pa.array(["a b"])), len(spaces), axis=0))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.int64()])
def test_another_type_is_refused(kind):
    with pytest.raises(ValueError, match="wanted string"):
        hash128(pa.array([], kind))
