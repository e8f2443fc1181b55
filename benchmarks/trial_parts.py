"""Folders packed into parts of a few MiB, and joined again where only Python is.

    python -m benchmarks.trial_parts PART ... --to FOLDER

A GPU machine takes 64 MiB a call, so each call brings a part, which is copied out of the checkout;
with the last one the parts are joined, checked by SHA-256 and unpacked into FOLDER. Token ids are
two bytes each: with LZMA's literal position bit they take about 9 to 10 bits. A part is a line of
JSON that names all of them, and then its data.
"""

import argparse
import hashlib
import json
import lzma
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PART_BYTES = 50 << 20
NOTE = "parts.json"
ARCHIVE = "archive.tar.xz"
TOKENS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 2, "lp": 1, "pb": 1, "dict_size": 64 << 20}]
WEIGHTS = [{"id": lzma.FILTER_LZMA2, "preset": 0}]


def pack(
    root: Path,
    names: Iterable[str],
    out: Path,
    part_bytes: int = PART_BYTES,
    filters: list[dict[str, Any]] = TOKENS,
) -> dict[str, Any]:
    """Writes files or folders of a folder as `part1`, `part2` ...; returns the note on them."""
    out.mkdir(parents=True, exist_ok=True)
    whole = out / ARCHIVE
    with (
        lzma.open(whole, "wb", filters=filters) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        for name in names:
            archive.add(root / name, name, filter=_plain)
    with whole.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(0)
        parts = []
        while data := stream.read(part_bytes):
            parts.append({"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        note = {"parts": parts, "sha256": digest}
        stream.seek(0)
        for number in range(1, len(parts) + 1):
            head = json.dumps(note).encode() + b"\n"
            (out / f"part{number}").write_bytes(head + stream.read(part_bytes))
    whole.unlink()
    return note


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leaves out who owned a file and when it was changed, and hidden files."""
    if Path(entry.name).name.startswith("."):
        return None
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def add(part: Path, to: Path) -> bool:
    """Copies a part, and unpacks all of them if it was the last that was missing.

    Returns:
        Whether the folder is complete.

    Raises:
        ValueError: a part is not what its note says.
    """
    head, _, data = part.read_bytes().partition(b"\n")
    note = json.loads(head)
    if (to / NOTE).exists() and json.loads((to / NOTE).read_text()) == note:
        return True
    digest = hashlib.sha256(data).hexdigest()
    found = [number for number, entry in enumerate(note["parts"]) if entry["sha256"] == digest]
    if not found:
        raise ValueError(f"{part} is none of its {len(note['parts'])} parts; pack or send it again")
    place = to / f"parts-{note['sha256'][:12]}"
    place.mkdir(parents=True, exist_ok=True)
    (place / str(found[0])).write_bytes(data)
    paths = [place / str(number) for number in range(len(note["parts"]))]
    if not all(path.exists() for path in paths):
        return False
    whole, total = to / ARCHIVE, hashlib.sha256()
    with whole.open("wb") as joined:
        for path in paths:
            total.update(path.read_bytes())
            joined.write(path.read_bytes())
    if total.hexdigest() != note["sha256"]:
        raise ValueError(f"{to}: the joined parts are not what was packed; remove {place}")
    with lzma.open(whole) as packed, tarfile.open(fileobj=packed, mode="r|") as archive:
        archive.extractall(to, filter="data")
    whole.unlink()
    shutil.rmtree(place)
    (to / NOTE).write_text(json.dumps(note))
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Joins parts that were packed to travel.")
    parser.add_argument("parts", nargs="+", type=Path)
    parser.add_argument("--to", type=Path, required=True, help="folder outside of the checkout")
    options = parser.parse_args()
    complete = [add(part, options.to) for part in options.parts][-1]
    print(f"{options.to}: {'complete' if complete else 'parts are missing'}", flush=True)


if __name__ == "__main__":
    main()
