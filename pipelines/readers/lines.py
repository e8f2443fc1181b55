"""The lines of a span, cut without ever holding one that is longer than the limit.

A line belongs to the span in which it starts, so spans need no index and no look at the file: a
span passes over the end of the line before it and reads its last line to the end.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import IO, NamedTuple

from pipelines.document import ContentDigest, content_hash
from pipelines.readers.compression import COMPRESSED_ENDINGS, decompress
from pipelines.readers.reader import UNREADABLE, HashingFile, Span, Tally, open_span, unreadable

READ_BYTES = 1 << 17


class Line(NamedTuple):
    """A line without its line feed; `data` is null where it is longer than the limit."""

    offset: int
    length: int
    data: bytes | None
    digest: str
    error: str | None


def span_lines(span: Span, tally: Tally, limit: int) -> Iterator[Line]:
    """Yields the lines that start in a span, and one with an error for what cannot be read.

    Args:
        span: a part of a plain file or the whole of a compressed one; the name tells.
        tally: where the hash of the span's bytes goes.
        limit: bytes; a longer line has its offset, length and hash, but no data.
    """
    try:
        stream = open_span(replace(span, start=max(span.start - 1, 0)))
    except UNREADABLE as error:
        tally.digest(span, content_hash(b""))
        yield Line(0, 0, None, content_hash(b""), unreadable(error))
        return
    with stream:
        if span.file.path.lower().endswith(COMPRESSED_ENDINGS):
            yield from _compressed_lines(stream, span, tally, limit)
        else:
            yield from _plain_lines(stream, span, tally, limit)


def _plain_lines(stream: IO[bytes], span: Span, tally: Tally, limit: int) -> Iterator[Line]:
    """Reads from the byte before the span, so that the first line is always another span's."""
    digest = ContentDigest()
    position = max(span.start - 1, 0)
    foreign = span.start > 0
    cutter = LineCutter(position, limit)
    while cutter.offset < span.stop:
        data = stream.read(READ_BYTES)
        start, stop = (max(edge - position, 0) for edge in (span.start, span.stop))
        digest.update(memoryview(data)[start:stop])
        position += len(data)
        lines = cutter.feed(data) if data else cutter.rest()
        for line in lines[1:] if foreign else lines:
            if line.offset < span.stop:
                yield line
        foreign = foreign and not lines
        if not data:
            break
    tally.digest(span, digest.hexdigest())


def _compressed_lines(stream: IO[bytes], span: Span, tally: Tally, limit: int) -> Iterator[Line]:
    file = HashingFile(stream)
    cutter = LineCutter(0, limit)
    for piece in decompress(file, span.file.path, b""):
        if piece.error is not None:
            lost = cutter.rest()
            line = lost[0] if lost else Line(cutter.offset, 0, None, content_hash(b""), None)
            yield line._replace(data=None, error=piece.error)
            break
        yield from cutter.feed(piece.data)
    else:
        yield from cutter.rest()
    tally.digest(span, file.drain())


class LineCutter:
    """Cuts bytes that come in pieces into lines."""

    def __init__(self, offset: int, limit: int) -> None:
        self.offset = offset
        """Where the line begins that has not ended yet."""
        self._limit = limit
        self._begin()

    def feed(self, data: bytes) -> list[Line]:
        """Returns the lines that end in the data."""
        first, *others = data.split(b"\n")
        self._extend(first)
        if not others:
            return []
        lines = [self._finish()]
        last = others.pop()
        for line in others:
            lines.append(self._line(line))
            self.offset += len(line) + 1
        self._extend(last)
        return lines

    def rest(self) -> list[Line]:
        """Returns the last line, of a file that does not end with a line feed."""
        return [self._finish()] if self._length else []

    def _begin(self) -> None:
        self._length = 0
        self._parts: list[bytes] = []
        self._digest = ContentDigest()

    def _extend(self, data: bytes) -> None:
        self._length += len(data)
        self._parts.append(data)
        if self._length > self._limit:
            for part in self._parts:
                self._digest.update(part)
            self._parts.clear()

    def _finish(self) -> Line:
        if self._length > self._limit:
            line = Line(self.offset, self._length, None, self._digest.hexdigest(), None)
        else:
            line = self._line(b"".join(self._parts))
        self.offset += self._length + 1
        self._begin()
        return line

    def _line(self, data: bytes) -> Line:
        held = data if len(data) <= self._limit else None
        return Line(self.offset, len(data), held, content_hash(data), None)
