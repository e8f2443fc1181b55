"""Shingles and MinHash signatures of texts.

Two sets share the minimum of a random permutation with a probability that is their Jaccard
similarity s; a band of r permutations is shared with s^r, one of b bands with 1 - (1 - s^r)^b.

Source: Broder 1997, On the resemblance and containment of documents; Leskovec, Rajaraman and
Ullman, Mining of Massive Datasets, section 3.4 (banding).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from pipelines.dedup.folds import word_folds
from pipelines.dedup.minhash_kernels import PADDING, shingle_sets, sign
from pipelines.text_buffers import eight_bytes, string_buffers

UNITS = ("word", "character")
HASH_BITS = (32, 64)


@dataclass(frozen=True)
class Shingles:
    """Runs of `size` folded words, or of folded characters with one space between words.

    What a word is says pipelines.dedup.folds. A shorter text is one run of all it has.

    Raises:
        ValueError: a parameter is out of its range.
    """

    unit: str = "word"
    """"word" or "character"."""
    size: int = 5
    fold_digits: bool = False
    """Whether all digits count as one: then documents that differ in their numbers are alike."""

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"Shingles: unit is {self.unit!r}; wanted one of: {', '.join(UNITS)}")
        if self.size < 1:
            raise ValueError(f"Shingles: size is {self.size}; wanted 1 or more")

    def sets(self, text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the sets of the shingles' 64-bit hashes, each ascending.

        Returns:
            int64 (n + 1,): where each text's set lies; and uint64: the sets, one after the other.
        """
        arguments, scratch, num_bytes = _arguments(text, self)
        stops = np.empty(len(text), np.int64)
        values = np.empty(num_bytes + len(text), np.uint64)
        shingle_sets(*arguments, scratch, stops, values)
        starts = np.concatenate([np.zeros(1, np.int64), stops])
        return starts, values[: starts[-1]]


@dataclass(frozen=True)
class MinHash:
    """Bands of minima of the permutations x -> a x + b modulo 2^hash_bits, a odd.

    Raises:
        ValueError: a parameter is out of its range.
    """

    num_bands: int = 20
    num_rows: int = 5
    """Permutations in a band."""
    hash_bits: int = 32
    """Width of a permuted hash, 32 or 64."""
    seed: int = 1

    libraries: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in ("num_bands", "num_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"MinHash: {name} is {getattr(self, name)}; wanted 1 or more")
        if self.hash_bits not in HASH_BITS:
            raise ValueError(f"MinHash: hash_bits is {self.hash_bits}; wanted 32 or 64")

    def bands(self, text: pa.StringArray, shingles: Shingles) -> tuple[np.ndarray, np.ndarray]:
        """Returns the hashes of the bands, uint64 (n, num_bands), and the numbers of shingles."""
        arguments, scratch, _ = _arguments(text, shingles)
        bands = np.empty((len(text), self.num_bands), np.uint64)
        sizes = np.empty(len(text), np.int32)
        hashing = (*self._permutations(), self.hash_bits, self.num_rows)
        sign(*arguments, *hashing, scratch, bands, sizes)
        return bands, sizes

    def _permutations(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the multipliers and additions as uint64."""
        rng = np.random.default_rng(self.seed)
        count = self.num_bands * self.num_rows
        high = 2 ** (self.hash_bits - 1)
        multipliers = rng.integers(0, high, count, np.uint64) * np.uint64(2) + np.uint64(1)
        return multipliers, rng.integers(0, 2**self.hash_bits, count, np.uint64)


def _arguments(
    text: pa.StringArray, shingles: Shingles
) -> tuple[tuple[object, ...], tuple[np.ndarray, ...], int]:
    """Returns what the kernels take of a text, room for them to work in, and its bytes."""
    offsets, data, valid = string_buffers(text)
    folds = word_folds(shingles.fold_digits)
    arguments = (offsets, data, eight_bytes(data), valid, folds)
    arguments += (shingles.unit == "character", shingles.size)
    room = 2 * int(np.diff(offsets).max(initial=0)) + PADDING
    folded = np.empty(room, np.uint8)
    units, hashes = np.empty(room, np.uint64), np.empty(room, np.uint64)
    scratch = (folded, eight_bytes(folded), units, hashes)
    return arguments, scratch, int(offsets[-1] - offsets[0])
