"""The plan: which bytes make which work unit. It depends on the input alone.

A large file that can be split gives spans of about 64 MB. Small files are packed in path order; a
pack ends after a file whose path hash falls below size / 32 MB, so packs hold 32 MB on average (few
over 100) and a file that is added or removed changes one pack, not all that follow.
"""

import hashlib
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipelines.readers.reader import SPLIT_BYTES, Reader, SourceFile, Span
from pipelines.recipe import Source

PACK_BYTES = 32 << 20
MAX_PACK_FILES = 20_000
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Unit:
    """What one task does and one output file holds."""

    source: str
    reader: int  # index into the recipe's readers
    spans: tuple[Span, ...]
    without: str = ""
    """Identity of the takedown lists that it was read or rewritten under, if there are any."""

    @property
    def size(self) -> int:
        """Bytes that the unit reads."""
        return sum(span.stop - span.start for span in self.spans)

    def identity(self) -> str:
        """Returns a hash of the unit's input as the planner saw it, and of what was taken out.

        Of the input that is paths, ranges, sizes and modification marks.
        """
        digest = hashlib.blake2b(f"{self.source}\0{self.reader}\0".encode(), digest_size=16)
        for span in self.spans:
            file = span.file
            mark = f"{file.path}\0{span.start}\0{span.stop}\0{file.size}\0{file.modified}\0"
            digest.update(mark.encode("utf-8", "surrogateescape"))
        digest.update(self.without.encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Plan:
    """The units of a run, in order, and the files that no reader claims."""

    units: tuple[Unit, ...]
    unclaimed: tuple[tuple[str, str], ...]  # (source, path)

    def under(self, takedown: str) -> "Plan":
        """Returns the plan of units that are read under takedown lists of this identity."""
        return Plan(tuple(replace(unit, without=takedown) for unit in self.units), self.unclaimed)

    @property
    def size(self) -> int:
        """Bytes that all units read."""
        return sum(unit.size for unit in self.units)

    def identity(self) -> str:
        """Returns a hash of all units in order."""
        return hashlib.blake2b(
            "".join(unit.identity() for unit in self.units).encode(), digest_size=16
        ).hexdigest()


def parse_source(text: str) -> Source:
    """Reads `root` or `name=root`; the name defaults to the last part of the root."""
    name, equals, root = text.partition("=")
    if not equals or not re.fullmatch(r"[\w.-]+", name):
        root = text
        stem = posixpath.basename(root.rstrip("/")) or posixpath.basename(str(Path(root).resolve()))
        name = stem.split(".")[0] or stem
    return Source(name, root)


def list_files(source: Source) -> list[SourceFile]:
    """Lists the files of a source in path order.

    Raises:
        ValueError: nothing is there; the message names the source and the path as given.
    """
    root = source.root
    if "://" not in root and not Path(root).exists() and HUB_NAME.fullmatch(root):
        root = f"hf://datasets/{root}"
    filesystem, path = fsspec.url_to_fs(root)
    if any(char in path for char in "*?["):
        base = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
        found = filesystem.glob(path, detail=True)
        entries = {key: info for key, info in found.items() if info["type"] == "file"}
    elif not filesystem.exists(path):
        raise ValueError(
            f"source {source.name}: nothing exists at {source.root!r}. "
            f"Give a file, a folder, a glob, an fsspec URL or a Hugging Face dataset name."
        )
    elif filesystem.isfile(path):
        base = path.rpartition("/")[0]
        entries = {path: filesystem.info(path)}
    else:
        base = path.rstrip("/")
        entries = filesystem.find(path, detail=True)
    files = []
    for key in sorted(entries):
        info = entries[key]
        mark = info.get("mtime") or info.get("ETag") or info.get("blob_id") or info.get("created")
        url = key if isinstance(filesystem, LocalFileSystem) else filesystem.unstrip_protocol(key)
        relative = key[len(base) :].lstrip("/")
        if not re.fullmatch(source.files, relative, re.DOTALL):
            continue
        files.append(SourceFile(source.name, relative, url, int(info["size"] or 0), str(mark)))
    if not files:
        raise ValueError(f"source {source.name}: {source.root!r} matches no file")
    return files


def make_plan(
    readers: Sequence[Reader],
    sources: Sequence[Source],
    left_out: Callable[[SourceFile], bool] = lambda file: False,
) -> Plan:
    """Lists and splits the sources.

    Args:
        readers: of the recipe.
        sources: where to read.
        left_out: says of a file that it is not to be read.

    Raises:
        ValueError: two sources share a name, or a source has no file that a reader claims.
    """
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two sources are called {name!r}; name them: --source NAME=PATH")
    units: list[Unit] = []
    unclaimed: list[tuple[str, str]] = []
    for source in sources:
        files = list_files(source)
        claimed: list[tuple[int, SourceFile]] = []
        for file in files:
            reader = next((i for i, r in enumerate(readers) if r.claims(file.path)), None)
            if reader is None:
                unclaimed.append((source.name, file.path))
            else:
                claimed.append((reader, file))
        if not claimed:
            raise ValueError(
                f"source {source.name}: none of the {len(files)} files under {source.root!r} is "
                f"of a kind that the recipe reads ({', '.join(type(r).__name__ for r in readers)})."
                f" The first is {files[0].path!r}."
            )
        for index, reader in enumerate(readers):
            mine = [file for i, file in claimed if i == index and not left_out(file)]
            units.extend(Unit(source.name, index, spans) for spans in _pack(reader, mine))
    return Plan(tuple(units), tuple(unclaimed))


def _pack(reader: Reader, files: Sequence[SourceFile]) -> Iterator[tuple[Span, ...]]:
    pack: list[Span] = []
    for file in files:
        spans = reader.split(file)
        if len(spans) > 1 or file.size >= SPLIT_BYTES:
            if pack:
                yield tuple(pack)
                pack = []
            yield from ((span,) for span in spans)
            continue
        pack.extend(spans)
        if _ends_pack(file) or len(pack) >= MAX_PACK_FILES:
            yield tuple(pack)
            pack = []
    if pack:
        yield tuple(pack)


def _ends_pack(file: SourceFile) -> bool:
    digest = hashlib.blake2b(file.path.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64 < file.size / PACK_BYTES
