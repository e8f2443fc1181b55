"""Exact deduplication by a 128-bit hash of a column.

At 10^12 documents the chance that any two unlike ones share a hash is under 10^-14, so equal hash
is taken as equal text and the similarity in the ledger is 1.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dedup.keep import Order, ranks
from pipelines.document import id_strings
from pipelines.global_step import VERDICTS, GroupStep, Keys
from pipelines.hashing import hash128, normalised_hash128


@dataclass(frozen=True)
class ExactDedup(GroupStep):
    """Keeps one document of those that are equal, by the keep policy; ties by id.

    With `fold_white_space` values are compared with white-space runs folded to one space and the
    ends trimmed, else byte by byte. A null is equal to nothing.

    Its rule is exact_duplicate for texts and duplicate_COLUMN for another column, such as url, so
    that a recipe can have both.
    """

    column: str = "text"
    keep: tuple[Order, ...] = ()
    fold_white_space: bool = True

    version = 1

    @property
    def rule(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The name under which it drops documents."""
        return "exact_duplicate" if self.column == "text" else f"duplicate_{self.column}"

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The compared column and those of the keep policy."""
        return tuple(dict.fromkeys((self.column, *(order.column for order in self.keep))))

    def keys(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Returns the hash of the column as the group; a null gets a group of its own."""
        column = batch.column(self.column)
        group = (normalised_hash128 if self.fold_white_space else hash128)(column)
        nulls = column.is_null().to_numpy(zero_copy_only=False)
        if nulls.any():
            group[nulls] = hash128(batch.column("id").filter(column.is_null()))
        return group, ranks(self.keep, batch)

    def decide(self, keys: Keys, unit: np.ndarray) -> pa.Table:
        """Drops all but the first of each group in the order of the policy."""
        group, ids, rank = keys.group, keys.id, keys.rank
        order = np.lexsort((ids[:, 1], ids[:, 0], *reversed(rank.T), group[:, 1], group[:, 0]))
        group = group[order]
        same = np.zeros(len(order), bool)
        same[1:] = (group[1:] == group[:-1]).all(axis=1)
        first = np.flatnonzero(~same)
        counts = np.diff(np.append(first, len(order)))
        head, size = np.repeat(first, counts), np.repeat(counts, counts)
        named = np.flatnonzero(size > 1)
        dropped = pa.array(same[named])
        none = pa.scalar(None)
        columns = {
            "unit": unit[order[named]],
            "row": keys.row[order[named]],
            "dropped": dropped,
            "matched_id": pc.if_else(dropped, id_strings(ids[order[head[named]]]), none),
            "similarity": pc.if_else(dropped, pa.scalar(1, pa.float32()), none),
            "cluster_size": size[named].astype(np.int32),
            "skipped": np.zeros(len(named), np.int32),
            "component_id": pa.nulls(len(named), pa.string()),
            "component_size": pa.nulls(len(named), pa.int32()),
        }
        return pa.table(columns, schema=VERDICTS)
