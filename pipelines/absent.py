"""Spares a process imports that libraries make for what nobody here uses."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Absent:
    """Says of a package that it is not installed."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == self._package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextmanager
def absent(package: str) -> Iterator[None]:
    """Makes a package look as if it were not installed, unless it has been imported already."""
    finder = _Absent(package)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
