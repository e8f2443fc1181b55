"""JSON Lines: one document a line, plain files split at any byte, gzip and zstd files read whole.

Splitting without an index has a price: no span knows how many lines came before it, so the key of
a line without an id is its offset, not its number. orjson parses 800 MB/s; hashing the bytes of
the span and of each line costs more than that.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from pipelines.readers.batches import START, BatchBuilder, KeyRegister, Origin, check_columns
from pipelines.readers.compression import COMPRESSED_ENDINGS
from pipelines.readers.lines import Line, span_lines
from pipelines.readers.reader import SPLIT_BYTES, Reader, SourceFile, Span, Tally

LINE_ENDINGS = tuple(
    f".{name}{compression}"
    for name in ("jsonl", "ndjson")
    for compression in ("", ".gz", ".zst", ".zstd")
)
BOM = b"\xef\xbb\xbf"
JSON_TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}


@dataclass(frozen=True)
class JsonlReader(Reader):
    """Reads JSON Lines, plain or compressed with gzip or zstd.

    Offsets count in what the file decompresses to. Blank lines are counted, but are no documents.
    NaN and Infinity, which Python writes and JSON lacks, are read. What follows an error of
    compression is not read.

    Args:
        text_field: the member that holds the text, a string.
        id_field: the member that holds the key, a string or an integer; where it is missing, or
            None here, the key is the line's offset.
        columns: members to carry along as string columns; what is no string is carried as JSON.
        endings: what names end in; `(".json.gz",)` reads C4.
        max_document_bytes: a longer line becomes a row with an error, without being held.
    """

    text_field: str = "text"
    id_field: str | None = None
    columns: tuple[str, ...] = ()
    endings: tuple[str, ...] = LINE_ENDINGS
    max_document_bytes: int = 10_000_000
    libraries = ("orjson",)

    def __post_init__(self) -> None:
        check_columns("JsonlReader", self.columns)

    def claims(self, path: str) -> bool:
        """Claims the endings."""
        return path.lower().endswith(self.endings)

    def schema(self, file: SourceFile) -> pa.Schema:
        """Returns key, origin, error, and as strings text and the carried columns."""
        return pa.schema([*START, *((name, pa.string()) for name in ("text", *self.columns))])

    def split(self, file: SourceFile) -> list[Span]:
        """Cuts a plain file at multiples of SPLIT_BYTES."""
        if file.size <= SPLIT_BYTES or file.path.lower().endswith(COMPRESSED_ENDINGS):
            return [Span(file, 0, file.size)]
        starts = range(0, file.size, SPLIT_BYTES)
        return [Span(file, start, min(start + SPLIT_BYTES, file.size)) for start in starts]

    def read(self, spans: Sequence[Span], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Yields a row for each line that is not blank."""
        rows: BatchBuilder | None = None
        for span in spans:
            rows = BatchBuilder(self.schema(span.file)) if rows is None else rows
            keys = KeyRegister()
            for line in span_lines(span, tally, self.max_document_bytes):
                if line.data is not None and not line.data.strip():
                    tally.count("blank", None)
                    continue
                tally.count("line", self._add(rows, keys, span, line))
                if rows.full:
                    yield rows.take()
        if rows:
            yield rows.take()

    def _add(self, rows: BatchBuilder, keys: KeyRegister, span: Span, line: Line) -> str | None:
        """Adds the row of a line and returns its error."""
        record, error = self._record(line)
        text = None
        if error is None:
            text, error = self._text(record)
        key = str(line.offset)
        if self.id_field is not None:
            key = keys.unique(_key(record.get(self.id_field)) or key)
        carried = (_as_string(record.get(name)) for name in self.columns)
        origin = Origin(span.file.path, line.offset, line.length, line.digest)
        size = 0 if text is None else len(text) if text.isascii() else len(text.encode())
        rows.add(key, origin, error, (text, *carried), size)
        return error

    def _record(self, line: Line) -> tuple[dict[str, Any], str | None]:
        """Returns the object on a line, or an empty one and the error."""
        if line.error is not None:
            return {}, line.error
        if line.data is None:
            return {}, f"too_large: {line.length} bytes, limit {self.max_document_bytes}"
        data = line.data.removeprefix(BOM) if line.offset == 0 else line.data
        try:
            record = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            return _parse_again(data, f"invalid_json: {error}")
        if isinstance(record, dict):
            return record, None
        return {}, f"wrong_type: the line is {_json_type(record)}, wanted object"

    def _text(self, record: dict[str, Any]) -> tuple[str | None, str | None]:
        """Returns the text of a record, or the error."""
        text = record.get(self.text_field)
        if isinstance(text, str):
            return text, None
        if text is None:
            what = "null" if self.text_field in record else "missing"
            return None, f"missing_text: {self.text_field!r} is {what}"
        return None, f"wrong_type: {self.text_field!r} is {_json_type(text)}, wanted string"


def _parse_again(data: bytes, reason: str) -> tuple[dict[str, Any], str | None]:
    """Parses what orjson refused: is it no UTF-8, or is only a NaN or an Infinity wrong with it?"""
    try:
        record = orjson.loads(orjson.dumps(json.loads(data.decode("utf-8"))))
    except UnicodeDecodeError as error:
        byte = data[error.start]
        return {}, f"invalid_utf8: byte 0x{byte:02x} at byte {error.start} of the line"
    except (ValueError, RecursionError, orjson.JSONEncodeError):
        return {}, reason
    return (record, None) if isinstance(record, dict) else ({}, reason)


def _key(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else None


def _as_string(value: Any) -> str | None:
    return value if isinstance(value, str) or value is None else orjson.dumps(value).decode()


def _json_type(value: Any) -> str:
    return JSON_TYPES.get(type(value), "number")
