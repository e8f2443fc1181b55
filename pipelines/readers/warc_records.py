"""Where the records of a WARC file begin and end, whatever is broken in between.

fastwarc parses records, but stops for good at the first broken one. So they are cut here: by their
Content-Length where that leads to the next record, else at the next thing that looks like one.
Every byte of the file is in a record, in the blank lines behind it, or in a cut that says what is
wrong. No more than one record is in memory, and none that is larger than the limit.
"""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipelines.document import ContentDigest, content_hash
from pipelines.readers.compression import Piece

HEAD_BYTES = 1 << 16
"""Longest header block."""
LOOK_BYTES = 16
"""What is looked at behind a record, and the longest beginning of one that is searched for."""
VERSION = b"WARC/"
BLANK = re.compile(rb"[\r\n]*")
RECORD_START = re.compile(rb"WARC/[01]\.\d{1,4}\r?\n")
HEAD_END = re.compile(rb"\r?\n\r?\n")
CONTENT_LENGTH = re.compile(rb"\nContent-Length[ \t]*:[ \t]*(\d{1,18})[ \t]*\r?\n", re.IGNORECASE)


@dataclass(frozen=True)
class Cut:
    """A record, or bytes that are none."""

    position: int
    """In the uncompressed stream."""
    offset: int | None
    """In the file; null where no compressed frame begins with the record."""
    length: int | None
    """In the file; null where no compressed frame ends with the record."""
    digest: str
    """Hash of the uncompressed bytes, without the blank lines behind them."""
    head: bytes
    """The header block; empty where there is none."""
    body: bytes
    """What follows the header block; empty where there is an error."""
    error: str | None


class RecordCutter:
    """Cuts the decompressed pieces of a WARC file into records."""

    def __init__(self, pieces: Iterator[Piece], plain: bool, file_size: int, limit: int) -> None:
        """Takes the pieces of a file.

        Args:
            pieces: what `decompress` yields.
            plain: whether the file is uncompressed, so that a position is an offset.
            file_size: bytes; a plain record that ends behind it is cut off.
            limit: bytes; the body of a record that has more is not held.
        """
        self._pieces = pieces
        self._plain = plain
        self._file_size = file_size
        self._limit = limit
        self._buffer = bytearray()
        self._position = 0  # of the buffer's first byte
        self._frames: deque[tuple[int, int]] = deque()  # position and offset of their beginnings
        self._error: str | None = None  # of the compression, behind the buffer
        self._paused = False  # behind the buffer is an error or the end of the file
        self._finished = False

    def cuts(self) -> Iterator[Cut]:
        """Yields the records in order, broken ones too."""
        while True:
            self._skip_blank()
            if self._buffer:
                cut = self._next()
                self._skip_blank()
                stop = self._offset()
                if not self._plain and cut.offset is not None and stop is not None:
                    cut = replace(cut, length=stop - cut.offset)
                yield cut
            elif self._error is not None:
                yield Cut(self._position, None, None, content_hash(b""), b"", b"", self._error)
                self._error = None
            elif self._finished:
                return
            else:
                self._paused = False

    def _fill(self, size: int) -> bool:
        """Says whether the buffer could be filled to a size."""
        while len(self._buffer) < size and not self._paused:
            piece = next(self._pieces, None)
            if piece is None:
                self._paused = self._finished = True
            elif piece.error is not None:
                self._paused, self._error = True, piece.error
            else:
                if piece.frame is not None:
                    self._frames.append((self._position + len(self._buffer), piece.frame))
                self._buffer += piece.data
        return len(self._buffer) >= size

    def _drop(self, size: int) -> None:
        del self._buffer[:size]
        self._position += size
        while self._frames and self._frames[0][0] < self._position:
            self._frames.popleft()

    def _skip_blank(self) -> None:
        while self._fill(1) and (blank := BLANK.match(self._buffer)) and blank.end():
            self._drop(blank.end())

    def _offset(self) -> int | None:
        """Returns where in the file the buffer begins, if that can be said."""
        if self._plain:
            return self._position
        return next((o for p, o in reversed(self._frames) if p == self._position), None)

    def _next(self) -> Cut:
        self._fill(len(VERSION))
        if not self._buffer.startswith(VERSION):
            return self._broken(b"", "broken_record: no record begins here")
        end = self._head_end()
        if end is None:
            return self._broken(b"", "broken_record: header block without an end")
        head = bytes(self._buffer[:end])
        given = CONTENT_LENGTH.search(head)
        if given is None:
            return self._broken(head, "broken_record: no Content-Length")
        length = int(given[1])
        if self._plain and self._position + end + length > self._file_size:
            return self._broken(
                head, f"truncated: Content-Length {length} is behind the file's end"
            )
        if length > self._limit:
            return self._large(head, length)
        if not self._fill(end + length):
            return self._broken(
                head, f"truncated: Content-Length {length} is behind the file's end"
            )
        if not self._ends_well(end + length):
            return self._broken(
                head, f"broken_record: Content-Length {length} does not lead to the next record"
            )
        body = bytes(memoryview(self._buffer)[end : end + length])
        digest = ContentDigest(head)
        digest.update(body)
        return self._cut(end + length, digest.hexdigest(), head, body, None)

    def _cut(self, size: int, digest: str, head: bytes, body: bytes, error: str | None) -> Cut:
        """Takes bytes out of the buffer as a record."""
        length = size if self._plain else None
        cut = Cut(self._position, self._offset(), length, digest, head, body, error)
        self._drop(size)
        return cut

    def _head_end(self) -> int | None:
        size = HEAD_BYTES >> 6
        while size <= HEAD_BYTES:
            there = self._fill(size)
            if found := HEAD_END.search(self._buffer, 0, size):
                return found.end()
            if not there:
                return None
            size *= 4
        return None

    def _ends_well(self, size: int) -> bool:
        """Says whether a record of a size ends where another, a frame or nothing follows."""
        self._fill(size + LOOK_BYTES)
        behind = bytes(self._buffer[size : size + LOOK_BYTES])
        rest = behind.lstrip(b"\r\n")
        if behind.startswith(b"\r\n\r\n") or VERSION.startswith(rest[: len(VERSION)]):
            return True
        stop = self._position + size
        return any(stop <= p <= stop + len(behind) - len(rest) for p, _ in self._frames)

    def _broken(self, head: bytes, error: str) -> Cut:
        """Passes over everything up to the next record."""
        begin, offset, digest = self._position, self._offset(), ContentDigest()
        skip = 1
        while True:
            found = RECORD_START.search(self._buffer, skip)
            searched = len(self._buffer)
            more = found is None and self._fill(searched + 1)
            size = found.start() if found else searched - (LOOK_BYTES if more else 0)
            if size > 0:
                digest.update(memoryview(self._buffer)[:size])
                self._drop(size)
                skip = 0
            if not more:
                break
        if not self._buffer and self._error is not None:
            error, self._error = self._error, None
        passed = self._position - begin
        length = passed if self._plain else None
        error = f"{error}; {passed} bytes passed over"
        return Cut(begin, offset, length, digest.hexdigest(), head, b"", error)

    def _large(self, head: bytes, length: int) -> Cut:
        """Passes over a record that is too large; a frame that begins with a record ends it."""
        begin, offset, digest = self._position, self._offset(), ContentDigest()
        left = len(head) + length
        while left and self._fill(1):
            borders = [p for p, _ in self._frames if p > self._position]
            if self._position > begin and self._offset() is not None and not self._plain:
                self._fill(len(VERSION))
                if self._buffer.startswith(VERSION):
                    break
            size = min(left, len(self._buffer), *(p - self._position for p in borders[:1]))
            digest.update(memoryview(self._buffer)[:size])
            self._drop(size)
            left -= size
        error = f"too_large: {length} bytes, limit {self._limit}"
        if left:
            error = f"truncated: Content-Length {length}, but {left} bytes of it are missing"
        if left and not self._buffer and self._error is not None:
            error, self._error = self._error, None
        passed = self._position - begin
        length_there = passed if self._plain else None
        return Cut(begin, offset, length_there, digest.hexdigest(), head, b"", error)
