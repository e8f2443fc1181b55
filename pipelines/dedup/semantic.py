"""Semantic duplicates: documents whose embeddings point in the same direction.

Embeddings are clustered and compared within a cluster only, so the work grows with the number of
documents times the size of a cluster. The published method drops what any document before it in the
cluster resembles; here a document is dropped if and only if its own embedding is similar enough to
that of one document that is kept, so nothing goes through a chain. What it cannot find is a pair
whose documents fall into two clusters: a few per cent of the planted pairs of
benchmarks/semantic.py, but one in ten where 3,000 questions of one kind make 55 clusters.

Source: Abbas et al. 2023, SemDeDup: Data-efficient learning at web-scale through semantic
deduplication, arXiv:2303.09540, section 3.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa

from pipelines.dedup.keep import Order, ranks
from pipelines.dedup.vector_kernels import normalise
from pipelines.global_step import Clustering, VectorStep

DOCUMENTS_PER_CLUSTER = 16_384
"""About 0.1 ms of comparisons a document; to embed it takes a hundred times as long."""


@dataclass(frozen=True)
class SemanticDedup(VectorStep):
    """Keeps one document of those with similar embeddings, by the keep policy; ties by id.

    Reads a column of fixed-size lists of floats. A document is dropped by the kept one of its
    cluster whose embedding is the most similar, of equally similar ones the first. The cosine is
    rounded to six decimals before it is compared and stored. A null embedding, one that holds a
    null, NaN or infinity and one of zeros only are similar to nothing.

    Raises:
        ValueError: a parameter is out of its range; before any data moves, the column has another
            type.
    """

    min_similarity: float = 0.95
    """Cosine from which on a document is dropped. What it means depends on the model."""
    num_clusters: int | None = None
    """None: one for each 16,384 documents that have an embedding, so that up to that number all are
    compared with all. Fewer clusters mostly find more, and take longer."""
    num_rounds: int = 20
    """How often the centroids are moved."""
    seed: int = 0
    """Draws the sample that the centroids are trained on."""
    column: str = "embedding"
    keep: tuple[Order, ...] = ()

    version = 1
    rule = "semantic_duplicate"

    def __post_init__(self) -> None:
        share = Fraction(str(self.min_similarity))
        if not 0 < share <= 1 or (share * 10**6).denominator != 1:
            raise ValueError(
                f"SemanticDedup: min_similarity is {self.min_similarity}; wanted above 0 and up "
                f"to 1, with six decimals at most"
            )
        if self.num_clusters is not None and self.num_clusters < 1:
            raise ValueError(
                f"SemanticDedup: num_clusters is {self.num_clusters}; wanted 1 or more"
            )
        if self.num_rounds < 1:
            raise ValueError(f"SemanticDedup: num_rounds is {self.num_rounds}; wanted 1 or more")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"SemanticDedup: seed is {self.seed}; wanted 0 up to 2**64 - 1")

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The embedding and the columns of the keep policy."""
        return tuple(dict.fromkeys((self.column, *(order.column for order in self.keep))))

    def least(self) -> int:
        """Returns min_similarity in millionths, as it is written in decimals."""
        return int(Fraction(str(self.min_similarity)) * 10**6)

    def clustering(self, num_documents: int) -> Clustering:
        """Returns the number of clusters, never more than documents, and how they are trained."""
        wanted = self.num_clusters or -(-num_documents // DOCUMENTS_PER_CLUSTER)
        return Clustering(min(wanted, num_documents), self.num_rounds, self.seed)

    def keys(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns no hashes, the ranks, and the dimensions of each usable embedding, else 0."""
        unit, usable = self._scaled(batch)
        group = np.zeros((batch.num_rows, 0), np.uint64)
        return group, ranks(self.keep, batch), (usable * unit.shape[1]).astype(np.int32)

    def vectors(self, batch: pa.RecordBatch) -> np.ndarray:
        """Returns the embeddings scaled to length 1, float32 (n, d)."""
        return self._scaled(batch)[0]

    def _scaled(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        column = batch.column(self.column)
        kind = column.type
        if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
            raise ValueError(
                f"SemanticDedup: column {self.column!r} is {kind}; wanted a fixed-size list of "
                f"floats, such as pa.list_(pa.float32(), 384). Cast it in the source, or let a "
                f"step such as SentenceEmbedding make it."
            )
        size = kind.list_size
        inner = column.values.slice(column.offset * size, len(column) * size)
        values = inner.cast(pa.float32()).to_numpy(zero_copy_only=False)
        values = values.reshape(len(column), size)
        unit = np.empty(values.shape, np.float32)
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        return unit, normalise(np.ascontiguousarray(values), valid, unit)
