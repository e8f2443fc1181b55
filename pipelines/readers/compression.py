"""Decompression that says where frames begin, and what is wrong, instead of raising.

A gzip file is a chain of members, a zstd file one of frames; a WARC file has one for each record,
so a reader that knows where they begin can say where a record lies and go on after a broken one.
The input goes in slices so small that a hostile one cannot fill the memory: deflate makes at most
1,032 bytes of one and zstd 32 KB, so 4 MB and 8 MB of a slice, still at 300 and 430 MB/s.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, cast

import zstandard
from fastwarc.stream_io import Lz4Reader

from pipelines.readers.reader import HashingFile

READ_BYTES = 1 << 18
"""What is read from a file at once."""
PIECE_BYTES = 1 << 16
"""What the output of slices is joined to."""
LZ4_BYTES = 1 << 14
"""What is decompressed of an lz4 file at once; an error takes so much of what came before it."""


class Piece(NamedTuple):
    """Some decompressed bytes, or the error after which there are none."""

    data: bytes
    frame: int | None
    """Offset in the file where a frame begins, if one begins with these bytes."""
    error: str | None


@dataclass(frozen=True)
class Format:
    """A compression whose decoder takes slices and knows the end of a frame."""

    name: str
    endings: tuple[str, ...]
    magic: bytes
    slice_bytes: int
    decoder: Callable[[], Any]


GZIP = Format("gzip", (".gz",), b"\x1f\x8b\x08", 1 << 12, lambda: zlib.decompressobj(31))
ZSTD = Format(
    "zstd",
    (".zst", ".zstd"),
    b"\x28\xb5\x2f\xfd",
    1 << 8,
    lambda: zstandard.ZstdDecompressor().decompressobj(),
)
COMPRESSED_ENDINGS = (*GZIP.endings, *ZSTD.endings, ".lz4")


def decompress(stream: HashingFile, path: str, resume_at: bytes) -> Iterator[Piece]:
    """Yields the bytes of a file whose compression its name tells.

    The last piece of a compressed file has no data and the file's size as frame, unless the last
    frame is cut off: then it is an error that begins with "truncated". After any other error the
    search for the next frame begins when the next piece is asked for.

    Args:
        stream: the file, from its first byte.
        path: its name.
        resume_at: what the first bytes of a frame must be for reading to go on after an error.
    """
    name = path.lower()
    for compression in (GZIP, ZSTD):
        if name.endswith(compression.endings):
            return _frames(stream, compression, resume_at)
    return _lz4(stream) if name.endswith(".lz4") else _plain(stream)


def _plain(stream: HashingFile) -> Iterator[Piece]:
    while data := stream.read(READ_BYTES):
        yield Piece(data, None, None)


def _lz4(stream: HashingFile) -> Iterator[Piece]:
    reader = Lz4Reader(cast(BinaryIO, stream))  # it calls read and tell only
    while True:
        try:
            data = reader.read(LZ4_BYTES)
        except OSError as error:
            yield Piece(b"", None, f"broken_compression: lz4: {error}")
            return
        if not data:
            return
        yield Piece(data, None, None)


def _frames(stream: HashingFile, compression: Format, resume_at: bytes) -> Iterator[Piece]:
    source = _Slices(stream, compression.slice_bytes)
    while source.skip_zeros():
        begin = source.offset
        try:
            yield from _frame(source, compression)
        except (zlib.error, zstandard.ZstdError) as error:
            yield Piece(b"", None, f"broken_compression: frame at byte {begin}: {error}")
            source.step_back(begin)
            _find_frame(source, compression, resume_at)
        except EOFError:
            missing = f"the last {compression.name} frame, at byte {begin}, has no end"
            yield Piece(b"", None, f"truncated: {missing}")
            return
    yield Piece(b"", source.offset, None)


def _frame(source: "_Slices", compression: Format) -> Iterator[Piece]:
    """Yields the bytes of one frame; what came before an error is yielded before it is raised."""
    begin: int | None = source.offset
    decoder = compression.decoder()
    parts: list[bytes] = []
    size = 0
    failure: Exception | None = None
    while not decoder.eof and failure is None:
        data = source.take()
        try:
            parts.append(decoder.decompress(data))
            size += len(parts[-1])
        except (zlib.error, zstandard.ZstdError) as error:
            failure = error
        if not data:
            failure = EOFError()
        if size >= PIECE_BYTES or decoder.eof or failure:
            yield Piece(b"".join(parts), begin, None)
            parts, size, begin = [], 0, None
    if failure is not None:
        raise failure
    source.give_back(decoder.unused_data)


def _find_frame(source: "_Slices", compression: Format, resume_at: bytes) -> None:
    """Moves to the next frame that begins as it should, or to the end of the file.

    The search begins in the slice in which the error showed: damage is noticed within a few bytes.
    """
    window = b""
    while data := source.take():
        window += data
        at = window.find(compression.magic)
        while at >= 0:
            if at + compression.slice_bytes > len(window) and (more := source.take()):
                window += more
                continue
            head = window[at : at + compression.slice_bytes]
            if _starts_with(head, compression, resume_at):
                source.give_back(window[at:])
                return
            at = window.find(compression.magic, at + 1)
        window = window[1 - len(compression.magic) :]


def _starts_with(head: bytes, compression: Format, wanted: bytes) -> bool:
    try:
        return compression.decoder().decompress(head).startswith(wanted)
    except (zlib.error, zstandard.ZstdError):
        return False


class _Slices:
    """Reads a file in slices, takes back what was not used and knows the offset."""

    def __init__(self, stream: HashingFile, size: int) -> None:
        self._stream = stream
        self._size = size
        self._buffer = b""
        self._start = 0  # of what is left of the buffer
        self._last = b""
        self.offset = 0
        """Of the next byte in the file."""

    def take(self) -> bytes:
        """Returns the next slice, empty at the end of the file."""
        if self._start == len(self._buffer):
            self._buffer, self._start = self._stream.read(READ_BYTES), 0
        data = self._buffer[self._start : self._start + self._size]
        self._start += len(data)
        self.offset += len(data)
        self._last = data
        return data

    def give_back(self, data: bytes) -> None:
        """Takes back the last bytes that were taken."""
        self.offset -= len(data)
        if len(data) <= self._start:
            self._start -= len(data)
        else:
            self._buffer, self._start = data + self._buffer[self._start :], 0

    def step_back(self, begin: int) -> None:
        """Takes back the last slice, but for the first byte of the frame that it is part of."""
        self.give_back(self._last[1:] if self.offset - len(self._last) == begin else self._last)

    def skip_zeros(self) -> bool:
        """Passes the zeros that tapes and block devices pad with; false at the end of the file."""
        while data := self.take():
            rest = data.lstrip(b"\0")
            if rest:
                self.give_back(rest)
                return True
        return False
