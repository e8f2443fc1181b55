"""Parquet: split by row groups, read in pieces of about 2 MB, text columns of any string type.

A span is a byte range whose borders are those of row groups, so it is found again in the footer
without a list of numbers. Parquet is not read from front to back, so the hash of a span takes a
pass of its own over the compressed bytes (800 MB/s).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.document import ORIGIN, content_hash, valid_text
from pipelines.readers.batches import (
    START,
    BatchBuilder,
    BatchMerger,
    KeyRegister,
    Origin,
    check_columns,
)
from pipelines.readers.reader import (
    BATCH_BYTES,
    SPLIT_BYTES,
    UNREADABLE,
    Reader,
    SourceFile,
    Span,
    Tally,
    open_span,
    span_hash,
    unreadable,
)
from pipelines.readers.row_groups import (
    FAILURES,
    RowGroup,
    group_starts,
    open_parquet,
    reason,
    row_groups,
)
from pipelines.readers.strings import (
    as_dates,
    as_strings,
    invalid_utf8,
    is_date,
    is_text,
    value_hashes,
    without,
)

PIECE_BYTES = BATCH_BYTES // 4
PIECE_ROWS = 256
"""Rows that are decoded at once, fewer where the mean says so: one row may be far above it."""
OPTIONAL = ("url", "date", "language", "licence")
NOTHING_READ = pa.schema([*START, ("text", pa.string())])
"""The columns of a file that cannot be opened."""


@dataclass(frozen=True)
class ParquetReader(Reader):
    """Reads Parquet files with a column of text.

    Columns called url, language and licence are carried along where they hold strings, and date
    where it holds strings, dates or timestamps (made ISO 8601). Rows have no offset of their own.

    Args:
        text_column: any string or binary type, UTF-8.
        id_column: the column that holds the key, strings or integers; where a value is null, or
            with None here, the key is the row's number in the file.
        columns: other columns to carry along, with their types; all string types become string.
        endings: what names end in.
        max_document_bytes: a longer text becomes a row with an error. Its length shows only when
            it is decoded, so it is in memory for a moment.
    """

    text_column: str = "text"
    id_column: str | None = None
    columns: tuple[str, ...] = ()
    endings: tuple[str, ...] = (".parquet", ".pq")
    max_document_bytes: int = 10_000_000

    def __post_init__(self) -> None:
        check_columns("ParquetReader", self.columns)

    def claims(self, path: str) -> bool:
        """Claims the endings."""
        return path.lower().endswith(self.endings)

    def schema(self, file: SourceFile) -> pa.Schema:
        """Returns key, origin, error, text and the carried columns.

        Raises:
            ValueError: the file has no such column, or one of another type.
        """
        try:
            stream = open_span(Span(file, 0, file.size))
        except UNREADABLE:
            return NOTHING_READ
        with stream:
            parquet = open_parquet(stream)
            if isinstance(parquet, str):
                return NOTHING_READ
            return self._schema(file, parquet.schema_arrow)

    def split(self, file: SourceFile) -> list[Span]:
        """Cuts a large file before row groups, into spans of at most SPLIT_BYTES where it can."""
        starts = group_starts(file) if file.size > SPLIT_BYTES else []
        edges = [0]
        for start, stop in pairwise([*starts[1:], file.size]):
            if stop - edges[-1] > SPLIT_BYTES:
                edges.append(start)
        return [Span(file, start, stop) for start, stop in pairwise([*edges, file.size])]

    def read(self, spans: Sequence[Span], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Yields a row for each row, and one for what of a file or row group cannot be read."""
        merger = BatchMerger()
        for span in spans:
            for batch in self._span_batches(span, tally):
                sizes = pc.fill_null(pc.binary_length(batch.column("text")), 0)
                yield from merger.add(batch, sizes.to_numpy())
        if merger:
            yield merger.take()

    def _schema(self, file: SourceFile, there: pa.Schema) -> pa.Schema:
        self._check(file, there, "text_column", self.text_column, is_text, "strings")
        if self.id_column is not None:
            wanted = "strings or integers"
            self._check(file, there, "id_column", self.id_column, _is_key, wanted)
        fields = [*START, pa.field("text", pa.string())]
        for name in self.columns:
            accepts, wanted = (_is_label, "strings or dates") if name in OPTIONAL else (_is_any, "")
            self._check(file, there, "columns", name, accepts, wanted)
        for name in self._carried(there):
            kind = there.field(name).type
            as_text = is_text(kind) or name in OPTIONAL
            fields.append(pa.field(name, pa.string() if as_text else kind))
        return pa.schema(fields)

    def _check(
        self,
        file: SourceFile,
        there: pa.Schema,
        parameter: str,
        name: str,
        accepts: Callable[[pa.DataType], bool],
        wanted: str,
    ) -> None:
        who = f"ParquetReader: {file.path}: {parameter} names {name!r}"
        if there.names.count(name) != 1:
            raise ValueError(
                f"{who}, which is there {there.names.count(name)} times; columns: "
                f"{', '.join(there.names)}. Name one of these."
            )
        if not accepts(there.field(name).type):
            raise ValueError(
                f"{who}, which is {there.field(name).type}; wanted {wanted}. "
                f"Name another column, or convert this one."
            )

    def _carried(self, there: pa.Schema) -> list[str]:
        """Returns the columns to carry along from a file with these columns."""
        found = [name for name in OPTIONAL if there.names.count(name) == 1]
        found = [
            name
            for name in found
            if is_text(there.field(name).type)
            or (name == "date" and is_date(there.field(name).type))
        ]
        return [*self.columns, *(name for name in found if name not in self.columns)]

    def _span_batches(self, span: Span, tally: Tally) -> Iterator[pa.RecordBatch]:
        try:
            tally.digest(span, span_hash(span))
            stream = open_span(replace(span, start=0))
        except UNREADABLE as error:
            tally.digest(span, content_hash(b""))
            yield _error_row(NOTHING_READ, span, "0", unreadable(error), tally)
            return
        with stream:
            parquet = open_parquet(stream)
            if isinstance(parquet, str):
                yield _error_row(NOTHING_READ, span, "0", parquet, tally)
                return
            schema = self._schema(span.file, parquet.schema_arrow)
            keys = KeyRegister()
            for group in row_groups(parquet.metadata, span):
                row = group.first_row
                for piece in self._pieces(parquet, group):
                    if isinstance(piece, str):
                        left = group.first_row + group.rows - row
                        error = f"broken_file: {left} rows from row {row} on: {piece}"
                        yield _error_row(schema, span, keys.unique(str(row)), error, tally)
                        break
                    yield self._convert(piece, row, schema, span, keys, tally)
                    row += piece.num_rows

    def _pieces(self, parquet: pq.ParquetFile, group: RowGroup) -> Iterator[pa.RecordBatch | str]:
        """Yields the rows of a group, and the reason where there are no more."""
        wanted = [self.text_column, *self._carried(parquet.schema_arrow)]
        if self.id_column is not None:
            wanted.append(self.id_column)
        size = max(parquet.metadata.row_group(group.number).total_byte_size, 1)
        rows = max(1, min(PIECE_ROWS, PIECE_BYTES * group.rows // size))
        try:
            yield from parquet.iter_batches(
                rows, [group.number], columns=list(dict.fromkeys(wanted)), use_threads=False
            )
        except FAILURES as error:
            yield reason(error)

    def _convert(
        self,
        piece: pa.RecordBatch,
        first_row: int,
        schema: pa.Schema,
        span: Span,
        keys: KeyRegister,
        tally: Tally,
    ) -> pa.RecordBatch:
        text = as_strings(piece.column(self.text_column))
        errors = self._errors(text)
        hashes = value_hashes(text)
        carried = []
        for field in list(schema)[len(NOTHING_READ) :]:
            column = piece.column(field.name)
            if field.type == pa.string():
                column = as_dates(column)
                wrong = invalid_utf8(column)
                column = without(column, list(wrong))
                for row, detail in wrong.items():
                    errors.setdefault(row, f"invalid_utf8: {field.name!r}: {detail}")
            carried.append(column)
        n = piece.num_rows
        path = pa.repeat(pa.scalar(valid_text(span.file.path)), n)
        nowhere = pa.nulls(n, pa.int64())
        origin = [path, nowhere, nowhere, pa.array(hashes, pa.string())]
        for error in errors.values():
            tally.count("row", error)
        tally.records["row"] += n - len(errors)
        columns = [
            pa.array(self._keys(piece, first_row, keys), pa.string()),
            pa.StructArray.from_arrays(origin, fields=list(ORIGIN)),
            pa.array([errors.get(row) for row in range(n)], pa.string()),
            without(text, list(errors)),
            *carried,
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _errors(self, text: pa.StringArray) -> dict[int, str]:
        limit = self.max_document_bytes
        lengths = pc.fill_null(pc.binary_length(text), 0).to_numpy()
        nulls = np.flatnonzero(text.is_null()) if text.null_count else ()
        errors = {int(row): f"missing_text: {self.text_column!r} is null" for row in nulls}
        for row in np.flatnonzero(lengths > limit).tolist():
            errors[row] = f"too_large: {lengths[row]} bytes, limit {limit}"
        for row, detail in invalid_utf8(text).items():
            errors.setdefault(row, f"invalid_utf8: {detail}")
        return errors

    def _keys(self, piece: pa.RecordBatch, first_row: int, keys: KeyRegister) -> list[str]:
        numbers = [str(row) for row in range(first_row, first_row + piece.num_rows)]
        if self.id_column is None:
            return numbers
        ids = as_strings(piece.column(self.id_column))
        given = without(ids, list(invalid_utf8(ids))).to_pylist()
        return [
            keys.unique(number if key is None else key)
            for number, key in zip(numbers, given, strict=True)
        ]


def _error_row(schema: pa.Schema, span: Span, key: str, error: str, tally: Tally) -> pa.RecordBatch:
    tally.count("row", error)
    rows = BatchBuilder(schema)
    nothing = (None,) * (len(schema) - len(START))
    rows.add(key, Origin(span.file.path, None, None, None), error, nothing, 0)
    return rows.take()


def _is_key(kind: pa.DataType) -> bool:
    return is_text(kind) or pa.types.is_integer(kind)


def _is_label(kind: pa.DataType) -> bool:
    return is_text(kind) or is_date(kind)


def _is_any(kind: pa.DataType) -> bool:
    return True
