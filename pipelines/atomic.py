"""Files and folders that are either whole or not there.

Everything is written under a temporary name in the same folder, flushed to disk and renamed. A
process that dies leaves only names that start with ".tmp-", which the next run sweeps away.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".tmp-"


def _temporary(path: Path) -> Path:
    return path.with_name(f"{PREFIX}{os.getpid()}-{path.name}")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; the block's end makes it `path`.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder to fill; the block's end makes it `path`, replacing an old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            flush(file)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Removes a folder so that a process killed meanwhile leaves none of this name."""
    aside = _temporary(path)
    path.replace(aside)
    shutil.rmtree(aside)


def begin_flush(descriptor: int, start: int, stop: int) -> None:
    """Has the kernel write bytes of a file to disk from now on, so that the last flush is short."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)


def sweep(folder: Path) -> None:
    """Removes what killed processes left under temporary names, at any depth."""
    for path in folder.rglob(f"{PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until a file or a folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
