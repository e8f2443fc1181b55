"""Mark files: the marks of a unit in runs, each sorted by hash, as memory-mapped arrays.

A run holds the marks of some batches of a unit that follow each other, and of their documents the
rank, the id and the row; so what is in memory does not grow with the unit. A range of hashes is one
slice of each run.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.document import id_words
from pipelines.engines.key_files import hash_slice
from pipelines.span_step import Marks, SpanStep

RUN_MARKS = 1 << 19
"""A run ends with the batch in which it comes to so many: some 20 MB."""
MARK_BYTES = 40
"""Of a mark with two hashes, and its number."""


class MarkWriter:
    """Collects the marks of batches and writes them in runs below a folder."""

    def __init__(self, folder: Path, step: SpanStep) -> None:
        self._folder, self._step = folder, step
        self._marks: list[Marks] = []
        self._documents: list[tuple[np.ndarray, ...]] = []
        self._number = 0
        self.count = 0
        """Of all marks so far."""

    def add(self, kept: pa.RecordBatch) -> None:
        """Takes the documents of a batch, `row` first."""
        before = sum(len(row) for *_, row in self._documents)
        marks = self._step.marks(kept)
        self._marks.append(marks._replace(document=marks.document + np.int32(before)))
        ids, row = id_words(kept.column("id")), kept.column(0).to_numpy()
        self._documents.append((self._step.rank(kept), ids, row))
        self.count += len(marks.document)
        if sum(len(marks.document) for marks in self._marks) >= RUN_MARKS:
            self.close()

    def close(self) -> None:
        """Writes what has been collected since the last run."""
        if not self._documents:
            return
        run = self._folder / f"run-{self._number:05d}"
        run.mkdir()
        marks = Marks(*(np.concatenate(parts) for parts in zip(*self._marks, strict=True)))
        order = np.argsort(marks.hash[:, 0], kind="stable")
        for name, array in marks._asdict().items():
            np.save(run / f"{name}.npy", array[order])
        documents = (np.concatenate(parts) for parts in zip(*self._documents, strict=True))
        for name, array in zip(("rank", "id", "row"), documents, strict=True):
            np.save(run / f"{name}.npy", array)
        self._marks, self._documents, self._number = [], [], self._number + 1


def runs(folder: Path) -> list[Path]:
    """Returns the runs of a mapped unit, in order."""
    return sorted(folder.glob("run-*"))


def marks_between(run: Path, part: int, parts: int) -> Marks:
    """Returns the marks of a run whose hash falls into the part-th of equal ranges."""
    arrays = [np.load(run / f"{name}.npy", mmap_mode="r") for name in Marks._fields]
    chosen = hash_slice(arrays[0][:, 0], part, parts)
    return Marks(*(np.array(array[chosen]) for array in arrays))


def document_order(run: Path, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (n, r + 2) uint64, the rank and id of documents of a run, and int64 (n,), their rows.

    Args:
        run: its folder.
        document: int32 (n,), the places of the documents in the run.
    """
    rank, ids, row = (np.load(run / f"{name}.npy", mmap_mode="r") for name in ("rank", "id", "row"))
    return np.concatenate([rank[document], ids[document]], axis=1), row[document]


def numbered_runs(folders: list[Path]) -> Iterator[tuple[int, Path]]:
    """Yields (unit, run) of all units."""
    for unit, folder in enumerate(folders):
        for run in runs(folder):
            yield unit, run
