"""What has to go: documents named by id, by URL or by their text, as a takedown list says it.

A list is a text file with an id (32 hexadecimal digits) or a URL on each line, or the folder of an
earlier takedown, which names the copies that it found as well. Lists add up: what an index has been
told once holds for every later snapshot.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.document import id_strings
from pipelines.hashing import normalised_hash128

TAKEDOWN = "takedown.json"
ID = re.compile(r"[0-9a-f]{32}")
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:\S+")


@dataclass(frozen=True)
class Takedown:
    """Three ways to name documents, each sorted and without repetition."""

    ids: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    """Hashes, as `text_hashes` returns them, of texts that no document may have."""

    def __bool__(self) -> bool:
        return bool(self.ids or self.urls or self.texts)

    def __or__(self, other: "Takedown") -> "Takedown":
        names = ("ids", "urls", "texts")
        joined = ({*getattr(self, name), *getattr(other, name)} for name in names)
        return Takedown(*(tuple(sorted(values)) for values in joined))

    def identity(self) -> str:
        """Returns a hash of the list; an empty one has the empty string."""
        if not self:
            return ""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @cached_property
    def id_array(self) -> pa.Array:
        """The ids, to look up in."""
        return pa.array(self.ids, pa.string())

    @cached_property
    def url_array(self) -> pa.Array:
        """The URLs, to look up in."""
        return pa.array(self.urls, pa.string())

    @cached_property
    def text_array(self) -> pa.Array:
        """The hashes of texts, to look up in."""
        return pa.array(self.texts, pa.string())

    def __getstate__(self) -> dict[str, Any]:
        return asdict(self)


NOTHING = Takedown()


def text_hashes(texts: pa.Array) -> pa.StringArray:
    """Returns the hash of each text with white space folded: 32 hexadecimal digits."""
    return id_strings(np.ascontiguousarray(normalised_hash128(texts)))


def is_takedown(path: str | Path) -> bool:
    """Says whether a list is what a takedown wrote, which names copies and dropped documents."""
    return Path(path).is_dir() or Path(path).name == TAKEDOWN


def read_takedown(path: str | Path) -> Takedown:
    """Reads a list, or what an earlier takedown wrote.

    Raises:
        ValueError: there is none, it is empty, or a line is neither an id nor a URL.
    """
    path = Path(path)
    if path.is_dir():
        path /= TAKEDOWN
    if not path.is_file():
        raise ValueError(
            f"takedown list {path}: there is no such file; wanted a text file with a document id "
            f"or a URL on each line, or the folder of a finished takedown"
        )
    if is_takedown(path):
        found = json.loads(path.read_text("utf-8"))
        return _sorted((row["id"] for row in found["documents"]), found["urls"], found["texts"])
    ids, urls = [], []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        name = line.strip()
        if ID.fullmatch(name):
            ids.append(name)
        elif URL.fullmatch(name):
            urls.append(name)
        elif name:
            raise ValueError(
                f"takedown list {path}, line {number}: {name[:80]!r} is neither a document id (32 "
                f"hexadecimal digits, as the ledger has them) nor a URL. Nothing was taken down."
            )
    if not ids and not urls:
        raise ValueError(f"takedown list {path} names nothing; give an id or a URL on each line")
    return _sorted(ids, urls, ())


def _sorted(ids: Iterable[str], urls: Iterable[str], texts: Iterable[str]) -> Takedown:
    return Takedown() | Takedown(tuple(ids), tuple(urls), tuple(texts))
