"""Keep policies: which copy of a duplicate stays. Stated as data, never decided by timing.

A policy is a tuple of orders, compared one after the other; ties go to the smaller id. Each order
becomes a uint64 a document, smaller first, so that keys stay of fixed width.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LAST = np.uint64(2**64 - 1)
"""The rank of a document whose column is null."""


@dataclass(frozen=True)
class Highest:
    """Prefers the largest value of a numeric column: the best quality."""

    column: str

    def rank(self, batch: pa.RecordBatch) -> np.ndarray:
        """Returns (n,) uint64, smaller for larger values; nulls last."""
        return _ranked(~_ordered(batch.column(self.column)), batch.column(self.column))


@dataclass(frozen=True)
class Lowest:
    """Prefers the smallest value of a numeric column."""

    column: str

    def rank(self, batch: pa.RecordBatch) -> np.ndarray:
        """Returns (n,) uint64, smaller for smaller values; nulls last."""
        return _ranked(_ordered(batch.column(self.column)), batch.column(self.column))


@dataclass(frozen=True)
class Longest:
    """Prefers the longest text, in bytes."""

    column: str = "text"

    def rank(self, batch: pa.RecordBatch) -> np.ndarray:
        """Returns (n,) uint64, smaller for longer texts; nulls last."""
        lengths = pc.binary_length(batch.column(self.column))
        return _ranked(~_ordered(lengths), lengths)


@dataclass(frozen=True)
class Oldest:
    """Prefers the earliest date; the column holds ISO 8601 text, of which 8 characters count."""

    column: str = "date"

    def rank(self, batch: pa.RecordBatch) -> np.ndarray:
        """Returns (n,) uint64 from the first 10 characters less the dashes; nulls last."""
        dates = batch.column(self.column)
        days = pc.replace_substring(pc.utf8_slice_codeunits(dates, 0, 10), "-", "")
        padded = pc.utf8_rpad(pc.fill_null(days, ""), 8, "0")
        padded = np.asarray(padded.to_pylist(), dtype="S8")
        return _ranked(padded.view(">u8").astype(np.uint64), dates)


@dataclass(frozen=True)
class SourceRank:
    """Prefers the sources in the order given; sources that are not named come last."""

    sources: tuple[str, ...]
    column: str = "source"

    def rank(self, batch: pa.RecordBatch) -> np.ndarray:
        """Returns (n,) uint64, the place of the source."""
        place = pc.index_in(batch.column(self.column), pa.array(self.sources, pa.string()))
        return pc.fill_null(place, len(self.sources)).to_numpy().astype(np.uint64)


Order = Highest | Lowest | Longest | Oldest | SourceRank


def ranks(policy: tuple[Order, ...], batch: pa.RecordBatch) -> np.ndarray:
    """Returns the policy's ranks of a batch as (n, len(policy)) uint64."""
    columns = [order.rank(batch) for order in policy]
    return np.stack(columns, axis=1) if columns else np.zeros((batch.num_rows, 0), np.uint64)


def _ordered(column: pa.Array) -> np.ndarray:
    """Maps numbers to uint64 so that the order is kept (IEEE 754 total order)."""
    values = pc.fill_null(pc.cast(column, pa.float64()), 0.0).to_numpy(zero_copy_only=False)
    bits = (values + 0.0).view(np.uint64)  # + 0.0 makes -0.0 and 0.0 one value
    sign = bits >> np.uint64(63)
    return np.where(sign == 1, ~bits, bits | np.uint64(1 << 63))


def _ranked(rank: np.ndarray, column: pa.Array) -> np.ndarray:
    return np.where(pc.is_null(column).to_numpy(zero_copy_only=False), LAST, rank)
