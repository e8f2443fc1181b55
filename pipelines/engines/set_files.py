"""Set files: the sets of a unit's candidates, and those of a component one after the other."""

import mmap
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.atomic import written_folder
from pipelines.dedup.link_kernels import gather
from pipelines.engines.phase_files import kept_batches
from pipelines.global_step import PairStep

FEW = 1_000
"""Below so many documents a unit's file is mapped, and only what they need is read."""
READ_BYTES = 32 << 20
"""What is read of sets in a file before it is given back."""


def save_sets(target: Path, step: PairStep, phase_folder: Path, rows: np.ndarray) -> None:
    """Writes the sets of some of a unit's documents.

    Args:
        target: a folder.
        step: whose sets.
        phase_folder: of the mapped unit.
        rows: int64, ascending, the documents' places in the unit.
    """
    sizes: list[np.ndarray] = [np.zeros(1, np.int64)]
    with written_folder(target) as temporary:
        with (temporary / "values").open("wb") as stream:
            for batch in kept_batches(phase_folder, len(rows) < FEW) if len(rows) else ():
                mine = batch.column(0).to_numpy()
                chosen = np.flatnonzero(np.isin(mine, rows, assume_unique=True))
                if len(chosen):
                    read = batch.select(list(step.reads)).take(pa.array(chosen))
                    offsets, values = step.sets(read)
                    sizes.append(np.diff(offsets))
                    values.tofile(stream)
        np.save(temporary / "rows.npy", rows)
        np.save(temporary / "offsets.npy", np.cumsum(np.concatenate(sizes)))


class Sets:
    """The sets of documents one after the other, in memory or, if they are large, in a file.

    The file has no name: it is gone with the process.

    Attributes:
        offsets: int64 (n + 1,), where each document's set lies in values.
        values: uint64, ascending within a set.
        budget: bytes that may be read before `give_back` is to be called.
    """

    def __init__(
        self, folders: dict[int, Path], unit: np.ndarray, row: np.ndarray, memory: int
    ) -> None:
        """Reads the sets.

        Args:
            folders: of each unit, as `save_sets` wrote them.
            unit: int32 (n,).
            row: int64 (n,).
            memory: bytes that the sets may take.
        """
        self._folders = folders
        starts, sizes = self._places(unit, row)
        self.offsets = np.append(0, np.cumsum(sizes))
        total = int(self.offsets[-1])
        self._map: np.memmap | None = None
        self.budget = 2**62
        if 8 * total <= memory:
            self.values = np.empty(total, np.uint64)
            self._copy(slice(None), unit, starts, sizes)
            return
        self.budget = READ_BYTES
        with tempfile.TemporaryFile(dir=next(iter(folders.values())).parent) as file:
            self._map = np.memmap(file, np.uint64, "w+", shape=(total,))
        self.values = np.asarray(self._map)
        pieces = np.arange(0, total + READ_BYTES // 8, READ_BYTES // 8)
        for low, high in pairwise(np.searchsorted(self.offsets[:-1], pieces)):
            self._copy(slice(low, high), unit, starts, sizes)
            self.give_back()

    def give_back(self) -> None:
        """Takes the pages of the file out of memory; they stay in the file."""
        if self._map is not None:
            self._map._mmap.madvise(mmap.MADV_DONTNEED)

    def _places(self, unit: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns where each document's set begins in its unit's file, and its size."""
        starts, sizes = np.zeros((2, len(row)), np.int64)
        for number, folder in self._folders.items():
            mine = np.flatnonzero(unit == number)
            place = np.load(folder / "rows.npy").searchsorted(row[mine])
            offsets = np.load(folder / "offsets.npy")
            starts[mine] = offsets[place]
            sizes[mine] = offsets[place + 1] - offsets[place]
        return starts, sizes

    def _copy(self, part: slice, unit: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> None:
        unit, starts, sizes = unit[part], starts[part], sizes[part]
        places = self.offsets[:-1][part]
        for number in np.unique(unit):
            mine = np.flatnonzero(unit == number)
            path = self._folders[int(number)] / "values"
            if path.stat().st_size:
                stored = np.asarray(np.memmap(path, np.uint64, "r"))
                gather(stored, starts[mine], sizes[mine], places[mine], self.values)
