"""Region files: the text of windows whose mark occurs again, each region once a run.

    hash, document, place   of the marks, as in the mark files
    region                  int64, which of the run's regions each mark has
    region_hash, digest     of the regions: the hash of their marks, 128 bits of their bytes
    mark                    int64, where in each region its mark is
    offsets, data           int64 (m + 1,) and uint8: their bytes

All are sorted by hash, so a range of hashes is a slice of each.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.dedup.link_kernels import gather
from pipelines.dedup.windows import Regions
from pipelines.engines.key_files import hash_slice
from pipelines.engines.mark_files import document_order
from pipelines.hashing import hash128
from pipelines.span_step import Marks

CHUNK_BYTES = 16 << 20
"""Of regions that are looked at together."""


class RegionWriter:
    """Collects the regions of marks of a run, in order of document and place."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._marks: list[Marks] = []
        self._digests: list[np.ndarray] = []
        self._owners: list[np.ndarray] = []
        """The marks whose regions are held, no two of a chunk alike."""
        self._texts: list[tuple[np.ndarray, np.ndarray]] = []
        self._number = 0

    def add(self, marks: Marks, begins: np.ndarray, data: np.ndarray) -> None:
        """Takes marks of a batch.

        Args:
            marks: their documents are those of the run.
            begins: int64 (n,), where each mark's text begins in data.
            data: uint8.
        """
        step = max(1, CHUNK_BYTES // (2 * self._window))
        for low in range(0, len(begins), step):
            part = Marks(*(column[low : low + step] for column in marks))
            first = part.place[:, 1].astype(np.int64)
            sizes = part.place[:, 2] - first + self._window
            text = gathered(data, begins[low : low + step] + first, sizes)
            offsets = np.append(0, np.cumsum(sizes))
            buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(text)]
            digest = hash128(pa.BinaryArray.from_buffers(pa.binary(), len(sizes), buffers))
            order, fresh = groups([digest[:, 1], digest[:, 0]])
            once = np.sort(order[fresh])
            self._texts.append((sizes[once], gathered(text, offsets[once], sizes[once])))
            self._owners.append(once + self._number)
            self._marks.append(part)
            self._digests.append(digest)
            self._number += len(part.document)

    def save(self, folder: Path) -> tuple[int, int]:
        """Writes the run into a new folder; returns its marks and the bytes of its regions."""
        folder.mkdir()
        if not self._number:
            return 0, 0
        marks = Marks(*(np.concatenate(parts) for parts in zip(*self._marks, strict=True)))
        digest = np.concatenate(self._digests)
        order, fresh = groups([digest[:, 1], digest[:, 0], marks.hash[:, 0]])
        region = np.cumsum(fresh) - 1
        of_mark = np.empty(self._number, np.int64)
        of_mark[order] = region
        owners = np.concatenate(self._owners)[::-1]
        sizes, texts = (np.concatenate(parts) for parts in zip(*self._texts, strict=True))
        held = np.empty(region[-1] + 1, np.int64)
        held[of_mark[owners]] = np.arange(len(owners))[::-1]
        starts = np.cumsum(sizes) - sizes
        data = gathered(texts, starts[held], sizes[held])
        arrays = {name: array[order] for name, array in marks._asdict().items()}
        arrays |= {"region": region, "region_hash": arrays["hash"][fresh, 0]}
        arrays |= {"digest": digest[order[fresh]], "data": data}
        arrays["mark"] = arrays["place"][fresh, 0].astype(np.int64) - arrays["place"][fresh, 1]
        arrays["offsets"] = np.append(0, np.cumsum(sizes[held]))
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        return self._number, len(data)


def gathered(data: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns stretches of an array one after the other."""
    ends = np.cumsum(sizes)
    values = np.empty(ends[-1] if len(ends) else 0, data.dtype)
    gather(data, starts, sizes, ends - sizes, values)
    return values


def groups(keys: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the order of rows by keys, the last one first, and where in it a new one begins."""
    order = np.lexsort(keys)
    fresh = np.ones(len(order), bool)
    fresh[1:] = np.logical_or.reduce([key[order[1:]] != key[order[:-1]] for key in keys])
    return order, fresh


class RegionSlice:
    """What a run has of a range of hashes, of n marks in d documents, less the regions' bytes.

    Attributes:
        unit: of the run.
        region: int64 (n,), which of the slice's regions each mark has.
        start: int64 (n,), where it begins in the text.
        document: int64 (n,), which of the slice's documents it is in.
        order: uint64 (d, r + 2), rank and id of each document.
        row: int64 (d,).
        keys: of each region digest and hash, as `groups` takes them.
        mark: int64 (m,), where in each region its mark is.
        sizes: int64 (m,), its bytes.
    """

    def __init__(self, unit: int, run: Path, marks: Path, part: int, parts: int) -> None:
        """Loads the slice.

        Args:
            unit: the work unit.
            run: as `RegionWriter.save` wrote it.
            marks: the same run of the mark files.
            part: which of equal ranges of the hash.
            parts: how many there are.
        """
        self.unit, self._run = unit, run
        mine = hash_slice(self._stored("hash")[:, 0], part, parts)
        theirs = hash_slice(self._stored("region_hash"), part, parts)
        self.region = np.array(self._stored("region")[mine]) - theirs.start
        self.start = np.array(self._stored("place")[mine, 1]).astype(np.int64)
        named, self.document = np.unique(self._stored("document")[mine], return_inverse=True)
        self.order, self.row = document_order(marks, named)
        digest = np.array(self._stored("digest")[theirs])
        self.keys = [digest[:, 1], digest[:, 0], np.array(self._stored("region_hash")[theirs])]
        self.mark = np.array(self._stored("mark")[theirs])
        self._offsets = np.array(self._stored("offsets")[theirs.start : theirs.stop + 1])
        self.sizes = np.diff(self._offsets)

    def _stored(self, name: str) -> np.ndarray:
        return np.load(self._run / f"{name}.npy", mmap_mode="r")

    def copy(self, regions: np.ndarray, places: np.ndarray, into: np.ndarray) -> None:
        """Copies the bytes of some regions to their places."""
        data = np.array(self._stored("data")[self._offsets[0] : self._offsets[-1]])
        starts = self._offsets[regions] - self._offsets[0]
        gather(data, starts, self.sizes[regions], places, into)


def distinct(slices: list[RegionSlice]) -> tuple[Regions, np.ndarray]:
    """Joins the regions of slices of one range; returns them, and which of them each mark has."""
    keys = [np.concatenate(parts) for parts in zip(*(each.keys for each in slices), strict=True)]
    order, fresh = groups(keys)
    of_region = np.empty(len(order), np.int64)
    of_region[order] = np.cumsum(fresh) - 1
    once = order[fresh]
    sizes = np.concatenate([each.sizes for each in slices])
    offsets = np.append(0, np.cumsum(sizes[once]))
    data = np.empty(offsets[-1], np.uint8)
    first = np.cumsum([0, *(len(each.sizes) for each in slices)])
    for each, (low, high) in zip(slices, pairwise(first), strict=True):
        mine = np.flatnonzero((once >= low) & (once < high))
        each.copy(once[mine] - low, offsets[mine], data)
    marks = [of_region[each.region + low] for each, low in zip(slices, first, strict=False)]
    mark = np.concatenate([each.mark for each in slices])[once]
    return Regions(offsets, data, keys[-1][once], mark), np.concatenate(marks)
