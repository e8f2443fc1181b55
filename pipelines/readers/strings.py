"""String columns as other programs write them, made into valid Arrow strings.

Arrow believes what a file says of its strings. One check of a whole column runs at several GB/s;
only where it fails are the values looked at one by one.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.document import content_hash
from pipelines.text_buffers import string_buffers


def is_text(kind: pa.DataType) -> bool:
    """Says whether values of a type can be read as text: any string or binary type, or nulls."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        test(kind)
        for test in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_null,
        )
    )


def is_date(kind: pa.DataType) -> bool:
    """Says whether values of a type are dates or points in time."""
    return pa.types.is_date(kind) or pa.types.is_timestamp(kind)


def as_strings(column: pa.Array) -> pa.StringArray:
    """Returns a column of text as pa.string(), whose values may still be invalid UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_binary(column.type):
        column = column.view(pa.large_string())
    if pa.types.is_binary(column.type):
        return column.view(pa.string())
    return column.cast(pa.string())


def as_dates(column: pa.Array) -> pa.StringArray:
    """Returns dates and timestamps in ISO 8601; other columns as `as_strings`."""
    if not is_date(column.type):
        return as_strings(column)
    text = pc.replace_substring(column.cast(pa.string()), " ", "T", max_replacements=1)
    return pc.replace_substring_regex(text, r"\.0+([Z+-].*)?$", r"\1")


def invalid_utf8(column: pa.StringArray) -> dict[int, str]:
    """Returns what is wrong with the values that are no UTF-8, by row; empty where all is well."""
    try:
        column.view(pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        return {row: wrong for row, wrong in enumerate(map(_wrong, byte_values(column))) if wrong}
    return {}


def _wrong(value: memoryview | None) -> str | None:
    try:
        str(value or b"", "utf-8")
    except UnicodeDecodeError as error:
        return f"byte 0x{error.object[error.start]:02x} at byte {error.start}"
    return None


def byte_values(column: pa.StringArray) -> list[memoryview | None]:
    """Returns the bytes of each value without copying them."""
    bounds, data, valid = string_buffers(column)
    view, edges = data.data, bounds.tolist()
    return [
        view[edges[row] : edges[row + 1]] if there else None
        for row, there in enumerate(valid.tolist())
    ]


def value_hashes(column: pa.StringArray) -> list[str | None]:
    """Returns the content hash of each value."""
    return [None if value is None else content_hash(value) for value in byte_values(column)]


def without(column: pa.StringArray, rows: list[int]) -> pa.StringArray:
    """Returns the column with null in some rows."""
    if not rows:
        return column
    mask = np.zeros(len(column), bool)
    mask[rows] = True
    return pc.if_else(pa.array(mask), pa.scalar(None, column.type), column)
