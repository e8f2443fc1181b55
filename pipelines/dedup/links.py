"""From the keys of all documents to candidates: who is to be compared with whom.

Everything is in memory: about 60 bytes a document and 40 for each one that shares a key. Components
of the graph only say what has to be walked together; nothing is dropped because of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.dedup.walk_kernels import find_roots, join_groups

BYTES_PER_DOCUMENT = 120
"""Peak of `candidates` for each document, less its rank."""


@dataclass(frozen=True)
class Candidates:
    """The c documents that share a key with another one.

    Components come one after the other, each in the order of the keep policy.

    Attributes:
        unit: int32 (c,), the work unit.
        row: int64 (c,), the place in the unit.
        id: uint64 (c, 2).
        component: int64 (c,), ascending.
        member_offsets: int64 (c + 1,), where each document's groups lie in members.
        members: int64, numbers of groups, ascending from component to component.
    """

    unit: np.ndarray
    row: np.ndarray
    id: np.ndarray
    component: np.ndarray
    member_offsets: np.ndarray
    members: np.ndarray

    def save(self, folder: Path) -> None:
        """Writes each array as an .npy file."""
        for name, array in vars(self).items():
            np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path) -> "Candidates":
        """Maps what `save` wrote."""
        names = cls.__dataclass_fields__
        return cls(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names})


def candidates(
    order: np.ndarray,
    unit: np.ndarray,
    row: np.ndarray,
    ids: np.ndarray,
    bands: Iterable[np.ndarray],
) -> Candidates:
    """Returns the candidates among n documents.

    Args:
        order: int64 (n,), the documents in the order of the keep policy.
        unit: int32 (n,).
        row: int64 (n,).
        ids: uint64 (n, 2).
        bands: for each band the uint64 (n,) hashes of the documents.
    """
    n = len(order)
    position = np.empty(n, np.int64)
    position[order] = np.arange(n)
    parents = np.arange(n)  # by position, so that a root is the first of its component
    found: list[tuple[np.ndarray, np.ndarray]] = []
    groups = 0
    for band in bands:
        hashes = band[order]
        sorted_by_hash = np.argsort(hashes, kind="stable")
        join_groups(sorted_by_hash, hashes, parents)
        ordered = hashes[sorted_by_hash]
        fresh = np.ones(n, bool)
        fresh[1:] = ordered[1:] != ordered[:-1]
        shared = ~fresh
        shared[:-1] |= ~fresh[1:]
        number = np.cumsum(fresh)[shared]
        if len(number):
            _, number = np.unique(number, return_inverse=True)
            found.append((sorted_by_hash[shared], number + groups))
            groups += int(number[-1]) + 1
    find_roots(parents)
    if not found:
        found.append((np.zeros(0, np.int64), np.zeros(0, np.int64)))
    document = np.concatenate([part for part, _ in found])
    group = np.concatenate([part for _, part in found])
    member_order = np.lexsort((group, document, parents[document]))
    document, group = document[member_order], group[member_order]
    first = np.ones(len(document), bool)
    first[1:] = document[1:] != document[:-1]
    chosen = document[first]
    _, component = np.unique(parents[chosen], return_inverse=True)
    # groups are numbered anew as they come, so those of a component are one range
    _, appears, number = np.unique(group, return_index=True, return_inverse=True)
    rank = np.empty(len(appears), np.int64)
    rank[np.argsort(appears, kind="stable")] = np.arange(len(appears))
    place = order[chosen]
    return Candidates(
        unit=unit[place].astype(np.int32),
        row=row[place],
        id=ids[place],
        component=component.astype(np.int64),
        member_offsets=np.append(np.flatnonzero(first), len(document)).astype(np.int64),
        members=rank[number],
    )
