"""The signatures of NeMo Curator's fuzzy deduplication, which Nemotron-CC was made with.

NeMo has them made by cuDF on a GPU: every run of 24 characters of the raw text (nothing is folded)
is hashed by MurmurHash3_x86_32, and a permutation is a h + b in 32 bits: cuDF then applies the
modulus 2^61 - 1, which no 32-bit number reaches. 260 minima a character: 4 MB/s of text a core.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from pipelines.dedup.minhash import Shingles
from pipelines.dedup.peer_bands import banded, check_counts
from pipelines.dedup.peer_kernels import hash_characters, permuted_minima32
from pipelines.text_buffers import string_buffers

BOUND = np.uint32((1 << 31) - 1)


@dataclass(frozen=True)
class NemoMinHash:
    """Bands of NeMo Curator's GPUMinHash and LSHActor with 32-bit hashes.

    A text shorter than `num_characters` is one shingle; all empty texts share every band, as in
    cuDF; a null has no signature here (in NeMo all nulls share one). The hash's seed is the first
    multiplier.

    It is reproduced from the source and checked with the values in cuDF's own tests and
    documentation. It was not run beside NeMo: that takes a GPU and RAPIDS. Nemotron-CC is older
    than this source; whether its permutations were these could not be verified.

    Raises:
        ValueError: a parameter is out of its range.

    Source: github.com/NVIDIA-NeMo/Curator at 1e2e427, stages/deduplication/fuzzy/minhash.py
        (generate_seeds, minhash32) and lsh/lsh.py (minhash_to_bands); github.com/rapidsai/cudf at
        6a22d1d, cpp/src/text/minhash.cu (minhash_seed_kernel, minhash_kernel).
    """

    num_bands: int = 20
    num_rows: int = 13
    num_characters: int = 24
    """Characters in a shingle."""
    seed: int = 42

    libraries: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        counts = {"num_bands": self.num_bands, "num_rows": self.num_rows}
        check_counts("NemoMinHash", **counts, num_characters=self.num_characters)

    def bands(self, text: pa.StringArray, shingles: Shingles) -> tuple[np.ndarray, np.ndarray]:
        """Returns the hashes of the bands and bounds of the sizes; `shingles` is not looked at."""
        return banded(text, *self.signatures(text), self.num_rows)

    def signatures(self, text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """Returns uint64 (n, num_bands * num_rows), and bool (n,): which texts have one."""
        multipliers, additions = self.numbers()
        seed = int(multipliers[0])
        values = character_minima(text, self.num_characters, seed, multipliers, additions)
        return values, string_buffers(text)[2]

    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns multipliers and additions, uint32: drawn in turn, a pair for a permutation."""
        rng = np.random.RandomState(self.seed)
        pairs = [
            (rng.randint(1, BOUND, dtype=np.uint32), rng.randint(0, BOUND, dtype=np.uint32))
            for _ in range(self.num_bands * self.num_rows)
        ]
        numbers = np.array(pairs, np.uint32)
        return np.ascontiguousarray(numbers[:, 0]), np.ascontiguousarray(numbers[:, 1])


def character_minima(
    text: pa.StringArray, width: int, seed: int, multipliers: np.ndarray, additions: np.ndarray
) -> np.ndarray:
    """Returns cuDF's `Series.str.minhash` of 32 bits, uint64 (n, p); zeros for an empty text.

    Args:
        text: n documents.
        width: characters in a shingle.
        seed: of the hash.
        multipliers: uint32 (p,).
        additions: uint32 (p,).
    """
    offsets, data, valid = string_buffers(text)
    stops = np.empty(len(text), np.int64)
    hashes = np.empty(int(offsets[-1] - offsets[0]), np.uint32)
    hash_characters(offsets, data, valid, width, np.uint64(seed), stops, hashes)
    values = np.empty((len(text), len(multipliers)), np.uint64)
    permuted_minima32(stops, hashes, multipliers, additions, values)
    return values
