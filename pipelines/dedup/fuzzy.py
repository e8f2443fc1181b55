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
from typing import ClassVar, Protocol

import numpy as np
import pyarrow as pa

from pipelines.dedup.keep import Order, ranks
from pipelines.dedup.minhash import MinHash, Shingles
from pipelines.document import id_words
from pipelines.global_step import Comparison, PairStep

MEASURES = ("jaccard", "containment")


class Signature(Protocol):
    """What proposes pairs."""

    libraries: ClassVar[tuple[str, ...]]
    """Distributions whose version is part of the fingerprint."""

    def bands(self, text: pa.StringArray, shingles: Shingles) -> tuple[np.ndarray, np.ndarray]:
        """Returns the band hashes of documents, uint64 (n, k), and their sizes, int32 (n,).

        A size is the number of shingles at most, repeated ones counted each time; 0 says that a
        document has no signature, and then its hashes are not looked at.
        """
        ...


@dataclass(frozen=True)
class FuzzyDedup(PairStep):
    """Keeps one document of those that are near-duplicates, by the keep policy; ties by id.

    Raises:
        ValueError: a parameter is out of its range.
    """

    min_similarity: float = 0.8
    """Dropped from this similarity on."""
    measure: str = "jaccard"
    """"jaccard", or "containment": the share of the document's own set that the kept one holds.
    Bands propose by Jaccard similarity, so a short part of a long document is seldom found."""
    shingles: Shingles = Shingles()  # noqa: RUF009 (frozen)
    """What the sets consist of that are compared."""
    signature: Signature = MinHash()  # noqa: RUF009 (frozen)
    """What proposes pairs."""
    max_anchors: int = 256
    """Kept documents that a document is compared with at most, and that one band proposes."""
    column: str = "text"
    keep: tuple[Order, ...] = ()

    version = 3
    rule = "near_duplicate"

    def __post_init__(self) -> None:
        if not 0 < self.min_similarity <= 1:
            raise ValueError(
                f"FuzzyDedup: min_similarity is {self.min_similarity}; wanted above 0 and up to 1"
            )
        if self.max_anchors < 1:
            raise ValueError(f"FuzzyDedup: max_anchors is {self.max_anchors}; wanted 1 or more")
        if self.measure not in MEASURES:
            raise ValueError(
                f"FuzzyDedup: measure is {self.measure!r}; wanted one of: {', '.join(MEASURES)}"
            )

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The compared column and those of the keep policy."""
        return tuple(dict.fromkeys((self.column, *(order.column for order in self.keep))))

    @property
    def libraries(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the signature."""
        return self.signature.libraries

    def comparison(self) -> Comparison:
        """Returns the measure, min_similarity as it is written in decimals, and max_anchors."""
        share = Fraction(str(self.min_similarity))
        contains = self.measure == "containment"
        return Comparison(contains, share.numerator, share.denominator, self.max_anchors)

    def keys(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the band hashes, ranks and sizes; a document without words gets own hashes."""
        bands, sizes = self.signature.bands(batch.column(self.column), self.shingles)
        alone = np.flatnonzero(sizes == 0)
        bands[alone] = id_words(batch.column("id").take(pa.array(alone)))[:, :1]
        return bands, ranks(self.keep, batch), sizes

    def sets(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Returns the set of shingle hashes (64 bits) of each document."""
        return self.shingles.sets(batch.column(self.column))
