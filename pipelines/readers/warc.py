"""WARC and WET files: a document is a response, resource or conversion record.

`warc_records` cuts a file into records, `http_message` parses responses. A record that is no page
(an error page, an image) keeps its row, with an error, so that what a crawl holds can be counted
from the ledger.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
from resiliparse.parse.encoding import detect_mime

from pipelines.document import CONTENT, content_hash, valid_text
from pipelines.readers.batches import START, BatchBuilder, KeyRegister, Origin
from pipelines.readers.compression import COMPRESSED_ENDINGS, decompress
from pipelines.readers.http_message import parse_response
from pipelines.readers.reader import (
    UNREADABLE,
    HashingFile,
    Reader,
    SourceFile,
    Span,
    Tally,
    open_span,
    unreadable,
)
from pipelines.readers.warc_records import VERSION, Cut, RecordCutter

WARC_ENDINGS = tuple(
    f".{name}{compression}"
    for name in ("warc", "wet")
    for compression in ("", ".gz", ".zst", ".lz4")
)
DOCUMENT_TYPES = ("response", "resource", "conversion")
OTHER_TYPES = ("warcinfo", "request", "metadata", "revisit", "continuation")
PAGE_TYPES = ("text/html", "application/xhtml+xml", "text/plain")


class Page(NamedTuple):
    """The columns of a document after START."""

    text: str | None = None
    content: bytes | None = None
    content_type: str | None = None
    url: str | None = None
    date: str | None = None


@dataclass(frozen=True)
class WarcReader(Reader):
    """Reads WARC files: plain, or compressed with gzip, zstd or lz4.

    Yields beside key, origin and error: text of a conversion record in plain text (WET), else
    content (binary) with content_type (as the server gave it, or guessed); url and date as in the
    header. The key is the WARC-Record-ID, or the place of the record in the uncompressed stream.

    Args:
        record_types: which records are documents: response, resource, conversion.
        page_types: media types that are documents; others become rows with an error, as do HTTP
            responses with another status than 2xx.
        endings: what names end in.
        max_document_bytes: a larger record, or body once decoded, becomes a row with an error.
    """

    record_types: tuple[str, ...] = DOCUMENT_TYPES
    page_types: tuple[str, ...] = PAGE_TYPES
    endings: tuple[str, ...] = WARC_ENDINGS
    max_document_bytes: int = 10_000_000
    libraries = ("fastwarc", "resiliparse", "zstandard")

    def __post_init__(self) -> None:
        for name in self.record_types:
            if name not in DOCUMENT_TYPES:
                raise ValueError(
                    f"WarcReader: record_types names {name!r}; "
                    f"wanted some of {', '.join(DOCUMENT_TYPES)}"
                )

    def claims(self, path: str) -> bool:
        """Claims the endings."""
        return path.lower().endswith(self.endings)

    def schema(self, file: SourceFile) -> pa.Schema:
        """Returns key, origin, error, text, content, content_type, url and date."""
        fields = [(name, pa.binary() if name == CONTENT else pa.string()) for name in Page._fields]
        return pa.schema([*START, *fields])

    def read(self, spans: Sequence[Span], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Yields a row for each document and for each broken record; the others are counted."""
        rows: BatchBuilder | None = None
        for span in spans:
            rows = BatchBuilder(self.schema(span.file)) if rows is None else rows
            keys = KeyRegister()
            for cut in _cuts(span, tally, self.max_document_bytes):
                self._add(rows, keys, span, cut, tally)
                if rows.full:
                    yield rows.take()
        if rows:
            yield rows.take()

    def _add(
        self, rows: BatchBuilder, keys: KeyRegister, span: Span, cut: Cut, tally: Tally
    ) -> None:
        header = header_fields(cut.head)
        kind, error = header.get("warc-type", "").lower(), cut.error
        if error is None and not kind:
            error = "broken_record: no WARC-Type"
        counted = kind if kind in (*DOCUMENT_TYPES, *OTHER_TYPES) else "unknown"
        page = Page()
        if error is None and kind in self.record_types:
            page, error = self._page(kind, header, cut)
        broken = tally.count(counted, error)
        if not broken and kind not in self.record_types:
            return
        page = page._replace(
            url=_trimmed(header.get("warc-target-uri")), date=header.get("warc-date")
        )
        name = (_trimmed(header.get("warc-record-id")) or str(cut.position)).removeprefix(
            "urn:uuid:"
        )
        origin = Origin(span.file.path, cut.offset, cut.length, cut.digest)
        size = len(page.content or b"") + len((page.text or "").encode())
        rows.add(keys.unique(name), origin, error, page, size)

    def _page(self, kind: str, header: dict[str, str], cut: Cut) -> tuple[Page, str | None]:
        """Returns the content of a document, or the error."""
        limit, body, given = self.max_document_bytes, cut.body, header.get("content-type")
        if kind == "response" and (given is None or given.lower().startswith("application/http")):
            try:
                status, given, body = parse_response(body, limit)
            except ValueError as error:
                return Page(), f"broken_http: {error}"
            if not 200 <= status < 300:
                return Page(), f"http_status: {status}"
            if len(body) > limit:
                return Page(), f"too_large: more than {limit} bytes when decoded"
            given = given or header.get("warc-identified-payload-type")
        given = valid_text(given or detect_mime(body))
        media = given.partition(";")[0].strip().lower()
        if media not in self.page_types:
            return Page(), f"content_type: {media}"
        if kind != "conversion" or media != "text/plain":
            return Page(content=body, content_type=given), None
        try:
            return Page(text=body.decode("utf-8")), None
        except UnicodeDecodeError as error:
            return Page(), f"invalid_utf8: byte 0x{body[error.start]:02x} at byte {error.start}"


def _cuts(span: Span, tally: Tally, limit: int) -> Iterator[Cut]:
    try:
        stream = open_span(span)
    except UNREADABLE as error:
        nothing = content_hash(b"")
        tally.digest(span, nothing)
        yield Cut(0, None, None, nothing, b"", b"", unreadable(error))
        return
    with stream:
        file = HashingFile(stream)
        plain = not span.file.path.lower().endswith(COMPRESSED_ENDINGS)
        pieces = decompress(file, span.file.path, VERSION)
        yield from RecordCutter(pieces, plain, span.file.size, limit).cuts()
        tally.digest(span, file.drain())


def header_fields(head: bytes) -> dict[str, str]:
    """Returns the fields of a header block by lower-case name; the first of a name counts."""
    fields: dict[str, str] = {}
    for line in head.decode("utf-8", "replace").split("\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


def _trimmed(value: str | None) -> str | None:
    """Returns a URI without the angle brackets and spaces that some tools write around it."""
    return None if value is None else value.strip(" \t<>") or None
