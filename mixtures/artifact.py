"""What the folders of this package have in common: a request, a manifest and a single writer.

A manifest holds the `request` that made its folder (what was asked, by content), so a second run
with an equal request takes the folder as it is, and another request is refused.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.atomic import PREFIX, written_folder
from pipelines.dataset import Dataset


def fingerprint(value: Any) -> str:
    """Returns the SHA-256 of a value's canonical JSON (sorted keys, no white space)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def documents_fingerprint(dataset: Dataset) -> str:
    """Returns the identity of a dataset's documents: its recipe and the bytes of its data files.

    Two runs of a recipe over the same input agree; the manifest's own identity also covers where
    the input lay.
    """
    entries = [e for e in dataset.manifest["files"] if e["path"].startswith("data/")]
    return fingerprint([dataset.fingerprint, [(e["path"], e["sha256"]) for e in entries]])


def file_entry(root: Path, path: Path) -> dict[str, Any]:
    """Returns a manifest's entry of a file: its path below the root, bytes and SHA-256."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    name = path.relative_to(root).as_posix()
    return {"path": name, "bytes": path.stat().st_size, "sha256": digest}


def read_manifest(path: Path, what: str) -> dict[str, Any]:
    """Reads a manifest.

    Raises:
        ValueError: there is none, so the folder is not a finished one.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        state = (
            f"has no {path.name}, which is written last" if path.parent.is_dir() else "is missing"
        )
        raise ValueError(
            f"{path.parent} {state}: it is no finished {what}. "
            f"Check the path, or run the command that writes it to its end."
        ) from None


def finished(manifest: Path, what: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the manifest where the folder is finished, None where there is no manifest yet.

    Raises:
        ValueError: another request made the folder.
    """
    if not manifest.exists():
        return None
    found = read_manifest(manifest, what)
    check_request(manifest.parent, what, found["request"], request)
    return found


def check_request(out: Path, what: str, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compares the request that made `out` with the wanted one.

    Raises:
        ValueError: they differ; the text names the first difference.
    """
    for name in {**there, **wanted}:
        if there.get(name) != wanted.get(name):
            raise ValueError(
                f"{out} holds a {what} that another request made: {name} is {there.get(name)!r} "
                f"there and {wanted.get(name)!r} here. Choose another folder or delete that one."
            )


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Holds the right to write `out`; the right ends with the process, however that ends.

    Raises:
        ValueError: another process is writing the same folder.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock_of(out)
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out}: another process is writing this folder") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def is_held(out: Path) -> bool:
    """Says whether a process of this machine holds the right to write `out`, without taking it.

    It is what the kernel lists: to try the lock would keep out a process that is just starting.
    """
    try:
        inode = _lock_of(out).stat().st_ino
    except FileNotFoundError:
        return False
    held = [line.split() for line in Path("/proc/locks").read_text("ascii").splitlines()]
    # "1: FLOCK ADVISORY WRITE process major:minor:inode start end"; "->" before those that wait
    return any(
        fields[1] == "FLOCK" and int(fields[5].rpartition(":")[2]) == inode
        for fields in held
        if "->" not in fields
    )


def _lock_of(out: Path) -> Path:
    out = out.resolve()
    return out.with_name(f".{out.name}.lock")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `out` that becomes `out` if the block ends well.

    Raises:
        ValueError: `out` already holds files, or another process is writing it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out} exists but holds nothing that this command wrote to its end; it stays "
            f"untouched. Choose another folder or delete that one."
        )
    with exclusive(out):
        for left_behind in out.parent.glob(f"{PREFIX}*-{out.name}"):
            shutil.rmtree(left_behind)
        with written_folder(out) as folder:
            yield folder
