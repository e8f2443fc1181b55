"""Global steps: what needs the whole dataset, reduced to fixed-width keys and verdicts.

A global step never sees the corpus. Each work unit gives a table of keys (a 128-bit group, the
order of the keep policy, the document's id and its place); the engine brings equal groups together,
the step decides each group, and the engine joins the verdicts back by place. So the largest thing
that moves is about 60 bytes a document, and any engine that can group and join will do.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from pipelines.step import Step

VERDICTS = pa.schema(
    [
        ("unit", pa.int32()),
        ("row", pa.int64()),
        ("dropped", pa.bool_()),
        ("matched_id", pa.string()),  # the kept document; null for a kept one
        ("similarity", pa.float32()),  # verified, 1.0 for equal; null for a kept one
        ("cluster_size", pa.int32()),  # documents in the group, the kept one included
    ]
)


@dataclass(frozen=True)
class Keys:
    """The keys of n documents, as columns.

    Attributes:
        group: (n, 2) uint64, equal for documents that the step has to see together.
        rank: (n, r) uint64, the keep policy: smaller is kept first, compared column by column.
        id: (n, 2) uint64, the document id; it breaks ties.
        row: (n,) int64, the document's place in its work unit.
    """

    group: np.ndarray
    rank: np.ndarray
    id: np.ndarray
    row: np.ndarray


@dataclass(frozen=True)
class GlobalStep(Step):
    """A step that decides on groups of documents. Only documents that broke no rule take part."""

    rule: ClassVar[str] = ""
    """The name under which it drops documents."""
    max_share: ClassVar[float] = 0.95
    """Above this share of one source's documents (1,000 or more) the run stops before commit."""

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
