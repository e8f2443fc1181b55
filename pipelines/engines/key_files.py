"""Key files: the fixed-width keys of a unit, sorted by group, as memory-mapped arrays.

Sorted, a bucket of groups is one slice of each unit's file, so grouping reads every key once and
holds one bucket at a time. The words of the groups are stored one after the other, so that the
band of a PairStep, too, is one slice.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.global_step import Keys

ARRAYS = ("group", "rank", "id", "row")
KEY_BYTES = 56  # a key with two ranks; more ranks add 8 bytes each


def merge_keys(parts: Sequence[Keys]) -> Keys:
    """Returns the keys of all parts, one after the other."""
    if not parts:
        empty = np.zeros((0, 2), np.uint64)
        return Keys(empty, empty, empty, np.zeros(0, np.int64))
    return Keys(*(np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS))


def save_keys(folder: Path, keys: Keys) -> None:
    """Writes the keys, sorted by group, as four .npy files."""
    order = np.lexsort((keys.row, *reversed(keys.group.T)))
    for name in ARRAYS:
        array = getattr(keys, name)[order]
        np.save(folder / f"{name}.npy", np.asfortranarray(array) if name == "group" else array)


def load_keys(folder: Path) -> Keys:
    """Maps the keys of a unit into memory."""
    return Keys(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS))


def bucket_slice(keys: Keys, bucket: int, buckets: int) -> Keys:
    """Returns the keys whose group falls into the bucket-th of equal ranges of the hash."""
    groups = keys.group[:, 0]
    start = groups.searchsorted(np.uint64(bucket * 2**64 // buckets))
    edge = (bucket + 1) * 2**64 // buckets
    stop = len(groups) if edge == 2**64 else groups.searchsorted(np.uint64(edge))
    return Keys(*(np.array(getattr(keys, name)[start:stop]) for name in ARRAYS))
