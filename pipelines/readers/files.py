"""Folders of text, Markdown, source code and HTML: one document a file.

A file is read in pieces and given up at the first piece past the limit, so 200 MB of text cost no
memory. What a file is follows from its name alone, as in a checkout or an unpacked package.
"""

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, NamedTuple

import pyarrow as pa

from pipelines.document import CONTENT, CONTENT_TYPE, content_hash
from pipelines.readers.batches import START, BatchBuilder, Origin
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

PROSE_ENDINGS = {
    ".adoc": "asciidoc",
    ".markdown": "markdown",
    ".md": "markdown",
    ".mdx": "markdown",
    ".org": "org",
    ".pod": "pod",
    ".rst": "restructuredtext",
    ".tex": "tex",
    ".text": "text",
    ".textile": "textile",
    ".txt": "text",
}
"""Endings of text for people, and what it is written in."""

CODE_ENDINGS = {
    ".asm": "assembly",
    ".bash": "shell",
    ".c": "c",
    ".cc": "c++",
    ".clj": "clojure",
    ".cmake": "cmake",
    ".cpp": "c++",
    ".cs": "c#",
    ".css": "css",
    ".cu": "cuda",
    ".cuh": "cuda",
    ".cxx": "c++",
    ".dart": "dart",
    ".el": "emacs lisp",
    ".erl": "erlang",
    ".ex": "elixir",
    ".exs": "elixir",
    ".f90": "fortran",
    ".fs": "f#",
    ".go": "go",
    ".groovy": "groovy",
    ".h": "c",
    ".hh": "c++",
    ".hpp": "c++",
    ".hs": "haskell",
    ".java": "java",
    ".jl": "julia",
    ".js": "javascript",
    ".jsx": "javascript",
    ".kt": "kotlin",
    ".lisp": "common lisp",
    ".lua": "lua",
    ".m": "objective-c",
    ".ml": "ocaml",
    ".mli": "ocaml",
    ".nim": "nim",
    ".nix": "nix",
    ".pas": "pascal",
    ".php": "php",
    ".pl": "perl",
    ".pm": "perl",
    ".proto": "protobuf",
    ".ps1": "powershell",
    ".pxd": "cython",
    ".py": "python",
    ".pyi": "python",
    ".pyx": "cython",
    ".r": "r",
    ".rb": "ruby",
    ".rs": "rust",
    ".s": "assembly",
    ".scala": "scala",
    ".scm": "scheme",
    ".scss": "css",
    ".sh": "shell",
    ".sol": "solidity",
    ".sql": "sql",
    ".sv": "verilog",
    ".swift": "swift",
    ".tcl": "tcl",
    ".tf": "terraform",
    ".ts": "typescript",
    ".tsx": "typescript",
    ".v": "verilog",
    ".vhd": "vhdl",
    ".vim": "vim script",
    ".vue": "vue",
    ".zig": "zig",
    ".zsh": "shell",
}
"""Endings of source code, and its language."""

PROSE_NAMES = (
    "AUTHORS",
    "CHANGELOG",
    "CHANGES",
    "CONTRIBUTING",
    "CONTRIBUTORS",
    "COPYING",
    "COPYRIGHT",
    "HISTORY",
    "INSTALL",
    "LICENCE",
    "LICENSE",
    "METADATA",
    "NEWS",
    "NOTICE",
    "PKG-INFO",
    "README",
    "THANKS",
    "TODO",
)
"""Names of text for people that need no ending: LICENSE, LICENSE-MIT, COPYING.LESSER."""

CODE_NAMES = {
    "CMAKELISTS.TXT": "cmake",
    "DOCKERFILE": "dockerfile",
    "GNUMAKEFILE": "makefile",
    "MAKEFILE": "makefile",
}
"""Names of source code, and its language."""

NAME_TAIL = re.compile(r"([-_.][A-Z0-9][A-Z0-9_.+-]*)?")

TEXT_NAMES = (*PROSE_NAMES, *CODE_NAMES)
TEXT_ENDINGS = (*PROSE_ENDINGS, *CODE_ENDINGS)
HTML_ENDINGS = (".html", ".htm", ".xhtml")
PIECE_BYTES = 1 << 16
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class FilesReader(Reader):
    """Reads text files in UTF-8, with or without a byte order mark.

    Yields beside text: kind (string), prose or code; format (string), the markup or programming
    language, "text" where there is none.

    Args:
        endings: what names end in; those of PROSE_ENDINGS and CODE_ENDINGS have a meaning, any
            other is prose in plain text.
        names: names in capitals that are read too, whatever their case, alone or with a tail in
            capitals (LICENSE-MIT).
        max_document_bytes: a larger file becomes a row with an error.
    """

    endings: tuple[str, ...] = TEXT_ENDINGS
    names: tuple[str, ...] = TEXT_NAMES
    max_document_bytes: int = 10_000_000

    def claims(self, path: str) -> bool:
        """Claims the endings and the names."""
        name = posixpath.basename(path)
        return name.lower().endswith(self.endings) or self._is_name(name)

    def _is_name(self, name: str) -> bool:
        return any(
            name.upper().startswith(known) and NAME_TAIL.fullmatch(name, len(known))
            for known in self.names
        )

    def schema(self, file: SourceFile) -> pa.Schema:
        """Returns key, origin, error, and as strings text, kind and format."""
        return pa.schema([*START, *((name, pa.string()) for name in ("text", "kind", "format"))])

    def read(self, spans: Sequence[Span], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Yields a row for each file."""
        rows: BatchBuilder | None = None
        for span in spans:
            rows = BatchBuilder(self.schema(span.file)) if rows is None else rows
            file = read_file(span, tally, self.max_document_bytes)
            text, error = None, file.error
            if file.data is not None:
                try:
                    text = file.data.removeprefix(BOM).decode("utf-8")
                except UnicodeDecodeError as wrong:
                    skipped = len(file.data) - len(wrong.object)
                    byte = wrong.object[wrong.start]
                    error = f"invalid_utf8: byte 0x{byte:02x} at byte {wrong.start + skipped}"
            tally.count("file", error)
            values = (text, *file_kind(span.file.path))
            rows.add("0", file.origin, error, values, len(file.data or b""))
            if rows.full:
                yield rows.take()
        if rows:
            yield rows.take()


@dataclass(frozen=True)
class HtmlFilesReader(Reader):
    """Reads HTML files as content, for HtmlText to make text of.

    Args:
        endings: what names end in.
        max_document_bytes: a larger file becomes a row with an error.
    """

    endings: tuple[str, ...] = HTML_ENDINGS
    max_document_bytes: int = 10_000_000

    def claims(self, path: str) -> bool:
        """Claims the endings."""
        return path.lower().endswith(self.endings)

    def schema(self, file: SourceFile) -> pa.Schema:
        """Returns key, origin, error, content (binary) and content_type (string)."""
        return pa.schema([*START, (CONTENT, pa.binary()), (CONTENT_TYPE, pa.string())])

    def read(self, spans: Sequence[Span], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Yields a row for each file."""
        rows: BatchBuilder | None = None
        for span in spans:
            rows = BatchBuilder(self.schema(span.file)) if rows is None else rows
            file = read_file(span, tally, self.max_document_bytes)
            tally.count("file", file.error)
            media = "text/html" if file.data is not None else None
            rows.add("0", file.origin, file.error, (file.data, media), len(file.data or b""))
            if rows.full:
                yield rows.take()
        if rows:
            yield rows.take()


class FileBytes(NamedTuple):
    """A whole file, or why there is none."""

    origin: Origin
    data: bytes | None
    error: str | None


def read_file(span: Span, tally: Tally, limit: int) -> FileBytes:
    """Reads a file and its hash; of one that is larger than the limit only the hash."""
    path = span.file.path
    try:
        with open_span(span) as stream:
            return _read(stream, span, tally, limit)
    except UNREADABLE as error:
        tally.digest(span, content_hash(b""))
        return FileBytes(Origin(path, None, None, None), None, unreadable(error))


def _read(stream: IO[bytes], span: Span, tally: Tally, limit: int) -> FileBytes:
    file = HashingFile(stream)
    pieces: list[bytes] = []
    while file.tell() <= limit and (piece := file.read(PIECE_BYTES)):
        pieces.append(piece)
    error = None
    if file.tell() > limit:
        pieces.clear()
    digest = file.drain()
    tally.digest(span, digest)
    if file.tell() > limit:
        error = f"too_large: {file.tell()} bytes, limit {limit}"
    origin = Origin(span.file.path, 0, file.tell(), digest)
    return FileBytes(origin, b"".join(pieces) if error is None else None, error)


def file_kind(path: str) -> tuple[str, str]:
    """Returns the kind (prose or code) and the format of a file from its name."""
    name = posixpath.basename(path)
    if name.upper() in CODE_NAMES:
        return "code", CODE_NAMES[name.upper()]
    ending = posixpath.splitext(name)[1].lower()
    if ending in CODE_ENDINGS:
        return "code", CODE_ENDINGS[ending]
    return "prose", PROSE_ENDINGS.get(ending, "text")
