"""Near-duplicates: MinHash proposes pairs, the exact similarity decides.

Two documents that share the hash of one band of their MinHash signatures become a candidate pair;
with 20 bands of 5 permutations a pair of Jaccard similarity 0.8 is missed once in 2,500 and one of
0.9 practically never. A document is dropped if and only if its own set of shingles is similar
enough to that of one kept document; nothing goes through a chain of links. Because pairs are
verified, bands may be many and short: more proposals cost time, never a wrong removal. What
thousands of pages of one template could cost is bounded: a document is compared with
`max_anchors` kept ones at most, those that share most bands, and the ledger says how many others
there were.

Source: Broder 1997, On the resemblance and containment of documents; Leskovec, Rajaraman and
Ullman, Mining of Massive Datasets, section 3.4 (banding).
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa

from pipelines.dedup.folds import word_folds
from pipelines.dedup.keep import Order, ranks
from pipelines.dedup.minhash_kernels import PADDING, shingle_sets, sign
from pipelines.document import id_words
from pipelines.global_step import Comparison, PairStep
from pipelines.text_buffers import eight_bytes, string_buffers

MEASURES = ("jaccard", "containment")
UNITS = ("word", "character")
HASH_BITS = (32, 64)


@dataclass(frozen=True)
class FuzzyDedup(PairStep):
    """Keeps one document of those that are near-duplicates, by the keep policy; ties by id.

    Similarity is that of the sets of shingles: runs of `ngram_size` folded words, or of folded
    characters with one space between words (pipelines.dedup.folds says what a word is). A shorter
    document is one run of all it has; one without words, or null, is similar to nothing.

    Raises:
        ValueError: a parameter is out of its range.
    """

    min_similarity: float = 0.8
    """Dropped from this similarity on."""
    measure: str = "jaccard"
    """"jaccard", or "containment": the share of the document's own set that the kept one holds.
    Bands propose by Jaccard similarity, so a short part of a long document is seldom found."""
    ngram_unit: str = "word"
    """"word" or "character"."""
    ngram_size: int = 5
    fold_digits: bool = False
    """Whether all digits count as one: then documents that differ in their numbers are alike."""
    num_bands: int = 20
    num_rows: int = 5
    """Permutations in a band."""
    hash_bits: int = 32
    """Width of a permuted hash, 32 or 64."""
    seed: int = 1
    """Of the permutations."""
    max_anchors: int = 256
    """Kept documents that a document is compared with at most, and that one band proposes."""
    column: str = "text"
    keep: tuple[Order, ...] = ()

    version = 2
    rule = "near_duplicate"

    def __post_init__(self) -> None:
        if not 0 < self.min_similarity <= 1:
            raise ValueError(
                f"FuzzyDedup: min_similarity is {self.min_similarity}; wanted above 0 and up to 1"
            )
        for name in ("ngram_size", "num_bands", "num_rows", "max_anchors"):
            if getattr(self, name) < 1:
                raise ValueError(f"FuzzyDedup: {name} is {getattr(self, name)}; wanted 1 or more")
        choices = {"measure": MEASURES, "ngram_unit": UNITS, "hash_bits": HASH_BITS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"FuzzyDedup: {name} is {getattr(self, name)!r}; "
                    f"wanted one of: {', '.join(map(str, known))}"
                )

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The compared column and those of the keep policy."""
        return tuple(dict.fromkeys((self.column, *(order.column for order in self.keep))))

    def comparison(self) -> Comparison:
        """Returns the measure, min_similarity as it is written in decimals, and max_anchors."""
        share = Fraction(str(self.min_similarity))
        contains = self.measure == "containment"
        return Comparison(contains, share.numerator, share.denominator, self.max_anchors)

    def keys(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the band hashes, ranks and sizes; a document without words gets own hashes."""
        text = _Text(batch, self)
        bands = np.empty((batch.num_rows, self.num_bands), np.uint64)
        sizes = np.empty(batch.num_rows, np.int32)
        multipliers, additions = self._permutations()
        hashing = (multipliers, additions, self.hash_bits, self.num_rows)
        sign(*text.arguments, *hashing, text.scratch, bands, sizes)
        alone = np.flatnonzero(sizes == 0)
        bands[alone] = id_words(batch.column("id").take(pa.array(alone)))[:, :1]
        return bands, ranks(self.keep, batch), sizes

    def sets(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Returns the set of shingle hashes (64 bits) of each document."""
        text = _Text(batch, self)
        stops = np.empty(batch.num_rows, np.int64)
        values = np.empty(text.num_bytes + batch.num_rows, np.uint64)
        shingle_sets(*text.arguments, text.scratch, stops, values)
        starts = np.concatenate([np.zeros(1, np.int64), stops])
        return starts, values[: starts[-1]]

    def _permutations(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns odd multipliers and additions: x -> a x + b modulo 2^hash_bits, as uint64."""
        rng = np.random.default_rng(self.seed)
        count = self.num_bands * self.num_rows
        high = 2 ** (self.hash_bits - 1)
        multipliers = rng.integers(0, high, count, np.uint64) * np.uint64(2) + np.uint64(1)
        return multipliers, rng.integers(0, 2**self.hash_bits, count, np.uint64)


class _Text:
    """A batch's column as the kernels take it, and room for them to work in."""

    def __init__(self, batch: pa.RecordBatch, step: FuzzyDedup) -> None:
        offsets, data, valid = string_buffers(batch.column(step.column))
        folds = word_folds(step.fold_digits)
        characters = step.ngram_unit == "character"
        text = (offsets, data, eight_bytes(data), valid)
        self.arguments = (*text, folds, characters, step.ngram_size)
        self.num_bytes = int(offsets[-1] - offsets[0])
        room = 2 * int(np.diff(offsets).max(initial=0)) + PADDING
        folded = np.empty(room, np.uint8)
        units, shingles = np.empty(room, np.uint64), np.empty(room, np.uint64)
        self.scratch = (folded, eight_bytes(folded), units, shingles)
