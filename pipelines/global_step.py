"""Global steps: what needs the whole dataset, reduced to fixed-width keys and verdicts.

A global step never sees the corpus. Each work unit gives a table of keys (hashes, the order of the
keep policy, the document's id and its place) and the engine joins the verdicts back by place. There
are three kinds. A `GroupStep` decides on documents of equal key: the engine brings these together.
A `PairStep` compares documents that share one of many keys, by the sets of hashes that stand for
them: the engine proposes, the sets decide. What moves is 60 bytes a document, or 20 hashes, and any
engine that can group and join will do. A `VectorStep` compares documents whose vectors are nearest
to the same centroid, by these vectors, which have to move as well. What cuts spans out of texts is
in span_step.py.
"""

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.span_step import SPANS, PieceStep, SpanStep, WindowStep
from pipelines.step import Step

VERDICTS = pa.schema(
    [
        ("unit", pa.int32()),
        ("row", pa.int64()),
        ("dropped", pa.bool_()),
        ("matched_id", pa.string()),  # the kept document; null for a kept one
        ("similarity", pa.float32()),  # verified, 1.0 for equal; null for a kept one
        ("cluster_size", pa.int32()),  # documents in the group, the kept one included
        ("skipped", pa.int32()),  # kept ones that a kept one might have been compared with
        ("component_id", pa.string()),  # of a PairStep: the first of all that pairs link; or null
        ("component_size", pa.int32()),  # how many these are
    ]
)


@dataclass(frozen=True)
class Keys:
    """The keys of n documents, as columns.

    Attributes:
        group: (n, k) uint64: the words of the one hash of a GroupStep, or the k hashes of a
            PairStep, of which documents share one or more that the step has to see together; a
            VectorStep has none, k = 0.
        rank: (n, r) uint64, the keep policy: smaller is kept first, compared column by column.
        id: (n, 2) uint64, the document id; it breaks ties.
        row: (n,) int64, the document's place in its work unit.
        size: (n,) int32, how many values the set of a PairStep's document has at most, or the
            vector of a VectorStep's, 0 for one that is compared with nothing; else empty.
    """

    group: np.ndarray
    rank: np.ndarray
    id: np.ndarray
    row: np.ndarray
    size: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))


class Comparison(NamedTuple):
    """How a PairStep compares a document with kept ones, in whole numbers.

    It is similar to one if at least numerator / denominator of the union of the two sets, or with
    `containment` of its own set, is in both.
    """

    containment: bool
    numerator: int
    denominator: int
    max_anchors: int
    """Kept documents that a document is compared with at most, and that one key proposes."""


@dataclass(frozen=True)
class GroupStep(Step):
    """A step that decides on groups of equal key. Only documents that broke no rule take part."""

    rule: ClassVar[str] = ""
    """The name under which it drops documents."""
    max_share: ClassVar[float] = 0.95
    """Above this share of the documents of a source that reach it (1,000 or more) the run stops."""
    engines: ClassVar[tuple[str, ...]] = ("local", "spark")
    """Where it runs."""

    def keys(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Returns group (n, 2) uint64 and rank (n, r) uint64 of a batch's documents."""
        raise NotImplementedError(f"{self.name} does not define keys")

    def decide(self, keys: Keys, unit: np.ndarray) -> pa.Table:
        """Returns VERDICTS for whole groups; documents that it does not name are kept.

        Args:
            keys: n keys, every group whole.
            unit: (n,) int32, the work unit of each key.
        """
        raise NotImplementedError(f"{self.name} does not define decide")


@dataclass(frozen=True)
class PairStep(Step):
    """A step that drops a document if its set is similar enough to that of a kept one.

    Documents are walked in the order of the keep policy and compared with those already kept that
    share a key with them. Only documents that broke no rule take part.
    """

    rule: ClassVar[str] = ""
    """The name under which it drops documents."""
    max_share: ClassVar[float] = 0.95
    """Above this share of the documents of a source that reach it (1,000 or more) the run stops."""
    engines: ClassVar[tuple[str, ...]] = ("local", "spark")
    """Where it runs."""

    def keys(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns group (n, k) uint64, rank (n, r) uint64 and size (n,) int32 of documents."""
        raise NotImplementedError(f"{self.name} does not define keys")

    def sets(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Returns int64 (n + 1,) offsets into uint64 values: each document's set, ascending."""
        raise NotImplementedError(f"{self.name} does not define sets")

    def comparison(self) -> Comparison:
        """Returns how similar a document has to be to be dropped, and how many are tried."""
        raise NotImplementedError(f"{self.name} does not define comparison")


class Clustering(NamedTuple):
    """How a VectorStep parts documents into those that are compared with each other."""

    num_clusters: int
    num_rounds: int
    seed: int


@dataclass(frozen=True)
class VectorStep(Step):
    """A step that drops a document if its vector is similar enough to that of a kept one.

    Documents are walked in the order of the keep policy, cluster by cluster, and compared with all
    of the cluster that are already kept. Only documents that broke no rule take part.
    """

    rule: ClassVar[str] = ""
    """The name under which it drops documents."""
    max_share: ClassVar[float] = 0.95
    """Above this share of the documents of a source that reach it (1,000 or more) the run stops."""
    engines: ClassVar[tuple[str, ...]] = ("local",)
    """Where it runs."""

    def keys(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns group (n, 0) uint64, rank (n, r) uint64 and size (n,) int32 of documents."""
        raise NotImplementedError(f"{self.name} does not define keys")

    def vectors(self, batch: pa.RecordBatch) -> np.ndarray:
        """Returns the vectors, float32 (n, d) of length 1; all zeros where the size is 0."""
        raise NotImplementedError(f"{self.name} does not define vectors")

    def clustering(self, num_documents: int) -> Clustering:
        """Returns how so many documents are parted."""
        raise NotImplementedError(f"{self.name} does not define clustering")

    def least(self) -> int:
        """Returns the cosine, in millionths, from which on a document is dropped."""
        raise NotImplementedError(f"{self.name} does not define least")


DropStep = GroupStep | PairStep | VectorStep
"""The kinds that drop documents: they have `rule`, `max_share` and `keys`."""
GlobalStep = DropStep | SpanStep
"""All kinds; each says in `engines` where it runs."""


def verdict_schema(step: GlobalStep) -> pa.Schema:
    """Returns what a step's verdicts are: VERDICTS on documents, or SPANS."""
    return SPANS if isinstance(step, (PieceStep, WindowStep)) else VERDICTS
