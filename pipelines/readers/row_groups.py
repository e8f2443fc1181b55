"""Row groups: what a Parquet file can be cut into, found from its footer alone."""

from typing import IO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.readers.reader import UNREADABLE, SourceFile, Span, open_span

BUFFER_BYTES = 1 << 20
"""Read ahead of each column; without it a whole column of a row group is held compressed."""
FAILURES = (pa.ArrowException, OSError)
"""What Arrow raises for a damaged file; `reason` tells it from a failing disk or network."""


class RowGroup(NamedTuple):
    """A row group of a file."""

    number: int
    first_row: int
    rows: int


def open_parquet(stream: IO[bytes]) -> pq.ParquetFile | str:
    """Opens a Parquet file, or returns the error of one that is no Parquet file or damaged."""
    try:
        file = pq.ParquetFile(
            stream, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        )
        str(file.schema_arrow.names)  # names need not be UTF-8 in a damaged file
    except (*FAILURES, UnicodeDecodeError) as error:
        return f"broken_file: {reason(error)}"
    return file


def row_groups(metadata: pq.FileMetaData, span: Span) -> list[RowGroup]:
    """Returns the row groups that begin in a span; those with absurd offsets are not lost."""
    first, last = span.start == 0, span.stop == span.file.size
    groups, row = [], 0
    for number in range(metadata.num_row_groups):
        rows = metadata.row_group(number).num_rows
        start = 0 if first and last else _start(metadata.row_group(number))
        if (first or start >= span.start) and (last or start < span.stop):
            groups.append(RowGroup(number, row, rows))
        row += rows
    return groups


def group_starts(file: SourceFile) -> list[int]:
    """Returns where the row groups begin; nothing where they are not in order or not readable."""
    try:
        stream = open_span(Span(file, 0, file.size))
    except UNREADABLE:
        return []
    with stream:
        parquet = open_parquet(stream)
        if isinstance(parquet, str):
            return []
        metadata = parquet.metadata
        starts = [_start(metadata.row_group(i)) for i in range(metadata.num_row_groups)]
    return starts if starts == sorted(set(starts)) else []


def _start(group: pq.RowGroupMetaData) -> int:
    """Returns the offset of a row group.

    Arrow 26 ends the process where the sizes in a column's metadata contradict each other, so
    this is asked only of files that are large enough to be split.
    """
    columns = [group.column(i) for i in range(group.num_columns)]
    return min((c.dictionary_page_offset or c.data_page_offset for c in columns), default=0)


def reason(error: Exception) -> str:
    """Returns the first line of an Arrow error; an error of the disk or network is raised again."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return next(iter(str(error).splitlines()), type(error).__name__)
