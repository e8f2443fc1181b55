"""From keys to components: who has to be walked together.

Documents that share a key belong to one component, directly or through others. Components only say
what has to be seen together; nothing is dropped because of them. Keys are looked at one band and
one range of hashes at a time; what is held for all documents is 48 bytes for each.
"""

from collections.abc import Iterable

import numpy as np

from pipelines.dedup.link_kernels import find_roots, join_groups

BAND_BYTES = 48
"""Peak of `shared_documents` for each document in it."""
JOIN_BYTES = 48
"""Peak of `components` for each document."""
CHUNK = 1 << 20


def shared_documents(hashes: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Returns the documents whose hash another one has as well, group by group.

    Args:
        hashes: uint64 (n,).
        documents: int64 (n,), ascending.

    Returns:
        int64 (m,): twice the document, plus one where a group starts.
    """
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    starts = np.ones(len(order), bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    shared = ~starts
    shared[:-1] |= ~starts[1:]
    return 2 * documents[order[shared]] + starts[shared]


def unpacked(entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns documents int64 (m,) and bool (m,), true where a group starts."""
    return entries >> 1, (entries & 1).astype(bool)


def components(groups: Iterable[np.ndarray], touched: np.ndarray) -> np.ndarray:
    """Joins the documents of each group.

    Args:
        groups: what `shared_documents` returned, in pieces that hold whole groups.
        touched: bool (n,), of which documents the components are wanted.

    Returns:
        int64 (n,), the smallest document of each document's component; -1 where it shares nothing
        or nobody in the component is touched.
    """
    n = len(touched)
    parents = np.arange(n, dtype=np.int32 if n < 2**31 else np.int64)
    for entries in groups:
        join_groups(*unpacked(entries), parents)
    find_roots(parents)
    alone = np.bincount(parents, minlength=n) == 1  # a shared key makes components of two or more
    wanted = np.zeros(n, bool)
    wanted[parents[touched]] = True
    roots = parents.astype(np.int64)
    roots[alone[parents] | ~wanted[parents]] = -1
    return roots


def packages(roots: np.ndarray, sizes: np.ndarray, most: int) -> np.ndarray:
    """Packs components.

    Args:
        roots: as `components` returns them.
        sizes: int32 (n,), how many values each document's set has at most.
        most: values in a package, unless one component alone has more.

    Returns:
        int64 (p + 1,): package i has the components from the i-th root on to the next.
    """
    n = len(roots)
    weights = np.bincount(np.maximum(roots, 0), weights=np.where(roots < 0, 0, sizes), minlength=n)
    package = (np.cumsum(weights) - weights) // most
    return np.append(np.flatnonzero(np.diff(package, prepend=-1)), n).astype(np.int64)
