"""Rows in, record batches out: where a batch ends depends on the rows alone.

A batch is closed by the row with which it reaches BATCH_BYTES of text or content, or BATCH_ROWS
rows, whichever file that row came from; so it holds at most one document more than that.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.document import (
    CONTENT,
    CONTENT_TYPE,
    ERROR,
    KEY,
    ORIGIN,
    RESERVED,
    valid_text,
)
from pipelines.readers.reader import BATCH_BYTES

BATCH_ROWS = 1 << 16
"""Rows at which a batch is closed, for records without text have no bytes to count."""

START = pa.schema([(KEY, pa.string()), ("origin", ORIGIN), (ERROR, pa.string())])
"""The columns that every reader's batches begin with."""
CARRIED = frozenset({"url", "date", "language", "licence"})
"""Reserved columns that a source may fill."""


class Origin(NamedTuple):
    """Where a record came from: the fields of document.ORIGIN."""

    path: str
    offset: int | None
    length: int | None
    content_hash: str | None


def check_columns(reader: str, columns: Sequence[str]) -> None:
    """Refuses to carry columns whose names gristmill uses itself, or the same one twice.

    Raises:
        ValueError: a column has such a name.
    """
    own = {*START.names, *RESERVED.names, CONTENT, CONTENT_TYPE} - CARRIED
    for name in columns:
        if name in own:
            raise ValueError(
                f"{reader}: columns names {name!r}, a column that gristmill makes itself. "
                f"Leave it out, or rename it in the source."
            )
    if len(set(columns)) < len(columns):
        raise ValueError(f"{reader}: columns is {columns!r}; wanted each name once")


class BatchBuilder:
    """Collects rows of a schema that begins with START."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def full(self) -> bool:
        """Whether the batch is to be closed now."""
        return self._bytes >= BATCH_BYTES or len(self._rows) >= BATCH_ROWS

    def add(
        self, key: str, origin: Origin, error: str | None, values: tuple[Any, ...], size: int
    ) -> None:
        """Adds a row.

        Args:
            key: unique in its file.
            origin: where the row came from.
            error: "kind: detail", or null for a good record.
            values: the columns after START, in order; all null for a broken record.
            size: bytes of text or content.
        """
        self._rows.append((key, *origin, error, *values))
        self._bytes += size

    def take(self) -> pa.RecordBatch:
        """Returns the rows, of which there must be some, as a batch and begins a new one."""
        key, path, offset, length, digest, error, *values = zip(*self._rows, strict=True)
        names = {name: valid_text(name) for name in set(path)}
        origin = [pa.array([names[name] for name in path], pa.string())]
        origin += [pa.array(offset, pa.int64()), pa.array(length, pa.int64())]
        origin.append(pa.array(digest, pa.string()))
        arrays = [pa.array(key, pa.string())]
        arrays.append(pa.StructArray.from_arrays(origin, fields=list(ORIGIN)))
        arrays.append(pa.array(error, pa.string()))
        for field, column in zip(list(self._schema)[len(START) :], values, strict=True):
            arrays.append(pa.array(column, field.type))
        self._rows, self._bytes = [], 0
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)


class BatchMerger:
    """Cuts and joins batches so that they end where BatchBuilder's would."""

    def __init__(self) -> None:
        self._parts: list[pa.RecordBatch] = []
        self._bytes = 0
        self._rows = 0

    def add(self, batch: pa.RecordBatch, sizes: np.ndarray) -> Iterator[pa.RecordBatch]:
        """Takes a batch and yields those that are full; another schema closes the one before.

        Args:
            batch: rows, any number.
            sizes: bytes of text or content of each row.
        """
        if self._parts and self._parts[0].schema != batch.schema:
            yield self.take()
        while batch.num_rows:
            closing = np.searchsorted(np.cumsum(sizes), BATCH_BYTES - self._bytes)
            rows = min(int(closing) + 1, BATCH_ROWS - self._rows, batch.num_rows)
            self._parts.append(batch.slice(0, rows))
            self._bytes += int(sizes[:rows].sum())
            self._rows += rows
            batch, sizes = batch.slice(rows), sizes[rows:]
            if self._bytes >= BATCH_BYTES or self._rows >= BATCH_ROWS:
                yield self.take()

    def __len__(self) -> int:
        return self._rows

    def take(self) -> pa.RecordBatch:
        """Returns the rows as one batch and begins a new one."""
        batch = pa.concat_batches(self._parts)
        self._parts, self._bytes, self._rows = [], 0, 0
        return batch


class KeyRegister:
    """Makes the keys of one span unique: a repeated one gets #2, #3 and so on, in order.

    It holds every key, about 120 bytes for a WARC-Record-ID: 18 MB for a WARC file of 1 GB.
    """

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def unique(self, key: str) -> str:
        """Returns the key, numbered where it was seen before."""
        name = key
        while name in self._seen:
            self._seen[key] += 1
            name = f"{key}#{self._seen[key]}"
        self._seen[name] = 1
        return name
