"""Key files: the fixed-width keys of a unit as memory-mapped arrays.

Those of a GroupStep are sorted by group: a bucket of groups is one slice of each unit's file, so
grouping reads every key once and holds one bucket at a time. Those of a PairStep stay in order of
row. The words of the groups are stored one after the other, so that a band is one slice.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.document import id_words
from pipelines.global_step import DropStep, GroupStep, Keys

ARRAYS = ("group", "rank", "id", "row", "size")
KEY_BYTES = 56  # a key with two ranks; more ranks add 8 bytes each


def merge_keys(parts: Sequence[Keys]) -> Keys:
    """Returns the keys of all parts, one after the other."""
    if not parts:
        empty = np.zeros((0, 2), np.uint64)
        return Keys(empty, empty, empty, np.zeros(0, np.int64))
    return Keys(*(np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS))


def save_keys(folder: Path, keys: Keys, by_group: bool) -> None:
    """Writes the keys, sorted by group or in order of row, as .npy files."""
    order = np.lexsort((keys.row, *reversed(keys.group.T))) if by_group else slice(None)
    for name in ARRAYS:
        array = getattr(keys, name)
        array = array[order] if len(array) else array
        np.save(folder / f"{name}.npy", np.asfortranarray(array) if name == "group" else array)


class KeyWriter:
    """Collects the keys of a unit's batches and writes them into its folder."""

    def __init__(self, folder: Path, step: DropStep) -> None:
        self._folder, self._step = folder, step
        self._parts: list[Keys] = []
        self.count = 0
        """Of all keys so far."""

    def add(self, kept: pa.RecordBatch) -> None:
        """Takes the documents of a batch, `row` first."""
        group, rank, *size = self._step.keys(kept)
        row = kept.column(0).to_numpy()
        self._parts.append(Keys(group, rank, id_words(kept.column("id")), row, *size))
        self.count += len(row)

    def close(self) -> None:
        """Writes the keys."""
        save_keys(self._folder, merge_keys(self._parts), isinstance(self._step, GroupStep))


def load_array(folder: Path, name: str) -> np.ndarray:
    """Maps one of the arrays of a unit's keys into memory."""
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def load_keys(folder: Path) -> Keys:
    """Maps the keys of a unit into memory."""
    return Keys(*(load_array(folder, name) for name in ARRAYS))


def bucket_slice(keys: Keys, bucket: int, buckets: int) -> Keys:
    """Returns the keys whose group falls into the bucket-th of equal ranges of the hash."""
    mine = hash_slice(keys.group[:, 0], bucket, buckets)
    return Keys(*(np.array(getattr(keys, name)[mine]) for name in ARRAYS))


def hash_slice(hashes: np.ndarray, part: int, parts: int) -> slice:
    """Returns where in ascending hashes those of the part-th of equal ranges are."""
    start = hashes.searchsorted(np.uint64(part * 2**64 // parts))
    edge = (part + 1) * 2**64 // parts
    stop = len(hashes) if edge == 2**64 else hashes.searchsorted(np.uint64(edge))
    return slice(int(start), int(stop))
