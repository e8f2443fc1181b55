"""HTTP responses as crawlers store them: status, media type and the body without its encodings.

fastwarc parses the message and its chunks. Contents are decompressed here, because a body that is
cut off must not pass for a short one, and because 10 KB of gzip may hide 10 MB.

Crawlers often store bodies decoded and leave the headers as they were, so a header counts only
where the body looks like it.
"""

import io
import re
import zlib
from typing import Any, NamedTuple

import zstandard
from fastwarc.stream_io import BrotliReader
from fastwarc.warc import WarcRecord

from pipelines.document import valid_text

CHUNK = re.compile(rb"[ \t]*[0-9A-Fa-f]{1,8}[ \t]*(;[^\r\n]*)?\r?\n")
MAGIC = {"gzip": b"\x1f\x8b", "x-gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
NO_MAGIC = ("deflate", "br")
SLICE_BYTES = 256
ERROR_CHARACTERS = 100
HEAD = (
    b"WARC/1.0\r\nWARC-Type: response\r\n"
    b"Content-Type: application/http; msgtype=response\r\nContent-Length: %d\r\n\r\n"
)


class HttpResponse(NamedTuple):
    """A response; the body of another status than 2xx is left as it is."""

    status: int
    content_type: str | None
    body: bytes


def parse_response(message: bytes, limit: int) -> HttpResponse:
    """Parses a response.

    Args:
        message: status line, headers and body; lines may end with a line feed alone.
        limit: bytes; of a decoded body that is longer only a little more is returned.

    Raises:
        ValueError: there is no status line, or the body is not what its encoding wants.
    """
    stored = HEAD % len(message) + message
    try:
        record = _record(stored, chunked=False)
        headers = record.http_headers
        status = None if headers is None else headers.status_code
        if headers is None or status is None:
            raise ValueError("no status line")
        content_type = headers.get("Content-Type")
        body = record.reader.read()
        if not 200 <= status < 300:
            return HttpResponse(status, content_type, body)
        if "chunked" in (headers.get("Transfer-Encoding") or "").lower() and CHUNK.match(body):
            body = _record(stored, chunked=True).reader.read(limit + 1)
        return HttpResponse(status, content_type, _decoded(body, headers, limit))
    except OSError as error:  # what fastwarc raises for a broken message
        raise ValueError(valid_text(str(error))[:ERROR_CHARACTERS]) from error


def _record(stored: bytes, chunked: bool) -> WarcRecord:
    record = WarcRecord.from_bytes(stored)
    record.parse_http(auto_decode="transfer" if chunked else "none", quirks_mode=True)
    return record


def _decoded(body: bytes, headers: Any, limit: int) -> bytes:
    names = (headers.get("Content-Encoding") or "").lower().split(",")
    for name in reversed([name.strip() for name in names]):
        if _looks_like(body, name):
            body = _inflated(body, name, limit)
    return body


def _looks_like(body: bytes, name: str) -> bool:
    """Says whether a body can be in an encoding: has it its magic, or is it at least no HTML?"""
    if name in NO_MAGIC:
        return bool(body.strip()) and not body.lstrip().startswith(b"<")
    return name in MAGIC and body.startswith(MAGIC[name])


def _inflated(body: bytes, name: str, limit: int) -> bytes:
    if name == "br":
        return BrotliReader(io.BytesIO(body)).read(limit + 1)
    decoder = _decoder(body, name)
    data = bytearray()
    try:
        for start in range(0, len(body), SLICE_BYTES):
            data += decoder.decompress(body[start : start + SLICE_BYTES])
            if decoder.eof or len(data) > limit:
                return bytes(data)
    except (zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"{name}: {error}") from error
    raise ValueError(f"{name}: the body is cut off")


def _decoder(body: bytes, name: str) -> Any:
    if name == "zstd":
        return zstandard.ZstdDecompressor().decompressobj()
    if name != "deflate":
        return zlib.decompressobj(31)
    zlib_header = body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0
    return zlib.decompressobj(15 if zlib_header else -15)
