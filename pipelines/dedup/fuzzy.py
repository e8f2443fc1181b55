"""Near-duplicates: MinHash proposes pairs, the exact Jaccard similarity decides.

Two documents that share the hash of one band of their MinHash signatures become a candidate pair;
with 20 bands of 5 permutations a pair of similarity 0.8 is missed once in 2,500 and one of 0.9
practically never. A document is dropped if and only if its own set of shingles is similar enough to
that of one kept document; nothing goes through a chain of links. Because pairs are verified, bands
may be many and short: more proposals cost time, never a wrong removal.

Source: Broder 1997, On the resemblance and containment of documents; Leskovec, Rajaraman and
Ullman, Mining of Massive Datasets, section 3.4 (banding).
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa

from pipelines.dedup.folds import word_folds
from pipelines.dedup.keep import Order, ranks
from pipelines.dedup.minhash_kernels import shingle_sets, sign
from pipelines.document import id_words
from pipelines.global_step import PairStep
from pipelines.text_buffers import string_buffers


@dataclass(frozen=True)
class FuzzyDedup(PairStep):
    """Keeps one document of those that are near-duplicates, by the keep policy; ties by id.

    Similarity is the Jaccard index of the sets of runs of `num_words` words (pipelines.dedup.folds
    says what a word is). A shorter document is one run of all its words; one without words, or
    null, is similar to nothing.

    Raises:
        ValueError: a parameter is out of its range.
    """

    min_similarity: float = 0.8
    """Dropped from this similarity on."""
    num_words: int = 5
    """Words in a shingle."""
    num_bands: int = 20
    num_rows: int = 5
    """Permutations in a band."""
    seed: int = 1
    """Of the permutations."""
    column: str = "text"
    keep: tuple[Order, ...] = ()

    version = 1
    rule = "near_duplicate"

    def __post_init__(self) -> None:
        if not 0 < self.min_similarity <= 1:
            raise ValueError(
                f"FuzzyDedup: min_similarity is {self.min_similarity}; wanted above 0 and up to 1"
            )
        for name in ("num_words", "num_bands", "num_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"FuzzyDedup: {name} is {getattr(self, name)}; wanted 1 or more")

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The compared column and those of the keep policy."""
        return tuple(dict.fromkeys((self.column, *(order.column for order in self.keep))))

    def least_similarity(self) -> tuple[int, int]:
        """Returns min_similarity as it is written in decimals, as numerator and denominator."""
        return Fraction(str(self.min_similarity)).as_integer_ratio()

    def keys(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Returns the band hashes; a document without words gets hashes of its own."""
        column = string_buffers(batch.column(self.column))
        bands = np.empty((batch.num_rows, self.num_bands), np.uint64)
        sizes = np.empty(batch.num_rows, np.int32)
        sign(
            *column,
            word_folds(),
            self.num_words,
            *self._permutations(),
            self.num_rows,
            bands,
            sizes,
        )
        alone = np.flatnonzero(sizes == 0)
        bands[alone] = id_words(batch.column("id").take(pa.array(alone)))[:, :1]
        return bands, ranks(self.keep, batch)

    def sets(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Returns the set of shingle hashes (64 bits) of each document."""
        offsets, data, valid = string_buffers(batch.column(self.column))
        stops = np.empty(batch.num_rows, np.int64)
        values = np.empty(int(offsets[-1] - offsets[0]) + batch.num_rows, np.uint64)
        shingle_sets(offsets, data, valid, word_folds(), self.num_words, stops, values)
        starts = np.concatenate([np.zeros(1, np.int64), stops])
        return starts, values[: starts[-1]].copy()

    def _permutations(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns odd multipliers and additions: the permutations x -> a x + b modulo 2^32."""
        rng = np.random.default_rng(self.seed)
        count = self.num_bands * self.num_rows
        multipliers = rng.integers(0, 2**31, count, np.uint32) * np.uint32(2) + np.uint32(1)
        return multipliers, rng.integers(0, 2**32, count, np.uint32)
