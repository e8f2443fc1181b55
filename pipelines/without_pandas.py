"""Keeps pyarrow from importing pandas, which takes 0.4 s of every process.

Given a list, pyarrow tries once to import pandas and does without where that fails. Imported for
that effect; what needs pandas itself still gets it.
"""

import sys
from typing import Any

import pyarrow as pa


class _Absent:
    """Says of pandas that it is not installed."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if "pandas" not in sys.modules:
    absent = _Absent()
    sys.meta_path.insert(0, absent)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(absent)
