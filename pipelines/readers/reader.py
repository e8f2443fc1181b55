"""What a reader is, and what it tells the engine while it reads.

A reader turns spans of files into record batches. A span is a whole small file or a part of a
large one; which bytes a span holds never depends on workers or memory. A record that cannot be
read is no exception but a row: its `error` column says why, its `text` is null, and the engine
gives it a ledger row of its own. A file that is missing, forbidden or not of its format is one
such row too; any other OSError (a network that fails, a disk) is raised, for the engine to retry.
"""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, ClassVar

import fsspec
import pyarrow as pa

from pipelines.document import ContentDigest

BATCH_BYTES = 8 << 20
"""Text bytes at which a reader closes a batch. Row groups follow it, so it shapes the output."""
SPLIT_BYTES = 64 << 20
"""Size at which a splittable file is cut, and to which small files are packed."""
UNREADABLE = (FileNotFoundError, PermissionError)
"""What makes a file a row of its own, with the error `unreadable`; trying again does not help."""

BROKEN = frozenset(
    {
        "broken_compression",
        "broken_file",
        "broken_record",
        "invalid_json",
        "invalid_utf8",
        "truncated",
        "unreadable",
    }
)
"""Kinds of error that leave no record to speak of: they are counted as "broken"."""


@dataclass(frozen=True)
class SourceFile:
    """A file of a source as the planner saw it."""

    source: str
    path: str  # below the source's root, with forward slashes
    url: str  # what fsspec opens
    size: int  # bytes
    modified: str  # modification mark: mtime, ETag or commit


@dataclass(frozen=True)
class Span:
    """Bytes [start, stop) of a file; readers of unsplittable files get the whole."""

    file: SourceFile
    start: int
    stop: int


@dataclass
class Tally:
    """What a reader counts beside the documents that it yields."""

    records: Counter[str] = field(default_factory=Counter)
    """Every record by type, documents and others: response, request, line, file, ..., broken."""
    digests: dict[str, str] = field(default_factory=dict)
    """Content hash of the bytes read, by "path:start-stop"."""

    def count(self, record_type: str, error: str | None) -> bool:
        """Counts a record under its type, or as "broken" and returns true."""
        broken = error is not None and error.partition(":")[0] in BROKEN
        self.records["broken" if broken else record_type] += 1
        return broken

    def digest(self, span: Span, hexdigest: str) -> None:
        """Notes the hash of a span's bytes."""
        self.digests[f"{span.file.path}:{span.start}-{span.stop}"] = hexdigest


@dataclass(frozen=True)
class Reader:
    """The base of all readers: a frozen dataclass, its fields are part of the recipe's identity."""

    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version is part of the fingerprint."""

    def claims(self, path: str) -> bool:
        """Says by its name alone whether the reader reads a file: the first that claims it does."""
        raise NotImplementedError

    def schema(self, file: SourceFile) -> pa.Schema:
        """Returns the columns that `read` yields for this file: key, origin, error and others.

        A file of which nothing can be read has the columns that no file of the reader lacks.

        Raises:
            ValueError: a column that the reader is told to read is missing or of a wrong type.
        """
        raise NotImplementedError

    def split(self, file: SourceFile) -> list[Span]:
        """Returns the spans of a file, in order. Override it where a format can be split."""
        return [Span(file, 0, file.size)]

    def read(self, spans: Sequence[Span], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Yields batches of about BATCH_BYTES of text, each with the columns of `schema`.

        A batch may hold rows of several small files; where the schema changes, a new one begins.
        """
        raise NotImplementedError


class HashingFile:
    """A binary file that hashes what is read from it, so that reading and proving is one pass."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = ContentDigest()
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Reads and hashes up to `size` bytes."""
        data = self._stream.read(size)
        self._hash.update(data)
        self._position += len(data)
        return data

    def tell(self) -> int:
        """Returns how many bytes were read and hashed."""
        return self._position

    def drain(self) -> str:
        """Reads what is left and returns the hash of the whole stream."""
        while self.read(1 << 20):
            continue
        return self._hash.hexdigest()


def span_hash(span: Span) -> str:
    """Returns the content hash of a span's bytes, for readers that do not read them in order."""
    digest = ContentDigest()
    left = span.stop - span.start
    with open_span(span) as stream:
        while left and (data := stream.read(min(left, 1 << 20))):
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()


def unreadable(error: OSError) -> str:
    """Returns the error of a file that is not there or not ours to read, without its path."""
    return f"unreadable: {error.strerror or type(error).__name__}"


def open_span(span: Span) -> IO[bytes]:
    """Opens the span's file at the span's start.

    Raises:
        OSError: the file cannot be opened; the message names it.
    """
    url = span.file.url
    if "://" in url or "::" in url:
        filesystem, path = fsspec.url_to_fs(url)
        stream = filesystem.open(path, "rb")
    else:
        stream = io.BufferedReader(io.FileIO(url))  # fsspec takes 50 us more, half of a small file
    if span.start:
        stream.seek(span.start)
    return stream
