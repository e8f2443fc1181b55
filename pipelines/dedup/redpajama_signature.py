"""The signatures of RedPajama-V2, made again from the text.

The published ones need not be made, but cover its own documents only. A text loses its ASCII
punctuation, is lower-cased and decomposed (NFD) and split at white space; a shingle is 13 words,
its hash the first four bytes of their SHA-1: 2.5 MB/s of text a core.
"""

import hashlib
import string
import unicodedata
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from pipelines.dedup.minhash import Shingles
from pipelines.dedup.peer_bands import MERSENNE, banded, check_counts, minima

NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class RedpajamaMinHash:
    """Bands of RedPajama-V2's `minhash_signature_0.7` unless told; too short a text has none.

    It is reproduced from the source, which has no test vectors. It was not compared with the
    published signatures: they need Common Crawl's texts as CCNet left them.

    Raises:
        ValueError: a parameter is out of its range.

    Source: github.com/togethercomputer/RedPajama-Data at 6d2cee9, app/src/dedupe/minhash.py
        (MinHash), dedupe/utils.py (generate_signature), utilities/text/normalization.py
        (normalize), core/document.py, configs/rp_v2.0.conf; seed 42 is the default of pipeline.py.
    """

    num_bands: int = 14
    num_rows: int = 9
    num_words: int = 13
    """Words in a shingle."""
    seed: int = 42

    libraries: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        counts = {"num_bands": self.num_bands, "num_rows": self.num_rows}
        check_counts("RedpajamaMinHash", **counts, num_words=self.num_words)

    def bands(self, text: pa.StringArray, shingles: Shingles) -> tuple[np.ndarray, np.ndarray]:
        """Returns the hashes of the bands and bounds of the sizes; `shingles` is not looked at."""
        values, signed = self.signatures(text)
        return banded(text, values, signed, self.num_rows)

    def signatures(self, text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """Returns uint64 (n, num_bands * num_rows), and bool (n,): which texts have one."""
        stops, hashes = np.empty(len(text), np.int64), []
        for row, value in enumerate(text.to_pylist()):
            words = _normalised(value or "").split()
            last = len(words) - self.num_words + 1
            for shingle in {" ".join(words[i : i + self.num_words]) for i in range(last)}:
                hashes.append(int.from_bytes(hashlib.sha1(shingle.encode()).digest()[:4], "little"))
            stops[row] = len(hashes)
        values = minima(stops, np.array(hashes, np.uint64), *self._numbers(), 32)
        return values, np.diff(stops, prepend=0) > 0

    def _numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns multipliers and additions: drawn in turn, a pair for a permutation.

        RedPajama draws 128 pairs and uses as many as fill its bands, the first ones.
        """
        rng = np.random.RandomState(self.seed)
        pairs = [
            (rng.randint(1, MERSENNE, dtype=np.uint64), rng.randint(0, MERSENNE, dtype=np.uint64))
            for _ in range(self.num_bands * self.num_rows)
        ]
        numbers = np.array(pairs, np.uint64)
        return np.ascontiguousarray(numbers[:, 0]), np.ascontiguousarray(numbers[:, 1])


def _normalised(text: str) -> str:
    return unicodedata.normalize("NFD", text.translate(NO_PUNCTUATION).lower())
