"""From keys to components: who has to be walked together.

Documents that share a key belong to one component, directly or through others. Components only say
what has to be seen together; nothing is dropped because of them. Keys are looked at one band and
one range of hashes at a time; what is held for all documents is 12 bytes for each (16 from 2^31
documents on).
"""

from collections.abc import Iterable

import numpy as np

from pipelines.dedup.link_kernels import bound, find_roots, join_groups, leave_out, weigh

BAND_BYTES = 48
"""Peak of `shared_documents`, and of sorting what it returns, for each document in it."""
JOIN_BYTES = 16
"""Peak of `components` and of `weights` with what they return, for each document."""


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
        groups: what `shared_documents` returned, in pieces; one that begins within a group begins
            with a document that another piece has.
        touched: bool (n,), of which documents the components are wanted.

    Returns:
        int32 or int64 (n,), the smallest document of each document's component; -1 where it shares
        nothing or nobody in the component is touched.
    """
    n = len(touched)
    roots = np.arange(n, dtype=np.int32 if n < 2**31 else np.int64)
    shares = np.zeros(n, bool)
    for entries in groups:
        documents, starts = unpacked(entries)
        shares[documents] = True
        join_groups(documents, starts, roots)
    find_roots(roots)
    leave_out(roots, shares, touched)
    return roots


def weights(roots: np.ndarray, sizes: Iterable[tuple[int, np.ndarray]]) -> np.ndarray:
    """Adds up the sizes of each component's documents.

    Args:
        roots: (n,), as `components` returns them.
        sizes: in pieces, the number of its first document and int32: how many values each
            document's set has at most.

    Returns:
        int64 (n,): at the root of a component its sum, elsewhere 0.
    """
    sums = np.zeros(len(roots), np.int64)
    for first, piece in sizes:
        weigh(roots[first : first + len(piece)], piece, sums)
    return sums


def packages(sums: np.ndarray, most: int) -> np.ndarray:
    """Packs components.

    Args:
        sums: int64 (n,), as `weights` returns them.
        most: values in a package, unless one component alone has more.

    Returns:
        int64 (p + 1,): package i has the components from the i-th root on to the next.
    """
    bounds = np.empty(int(sums.sum()) // most + 2, np.int64)
    return bounds[: bound(sums, most, bounds)]


def in_packages(
    entries: np.ndarray, roots: np.ndarray, bounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Puts what `shared_documents` returned into the order of packages; groups stay whole.

    Args:
        entries: int64 (m,).
        roots: (n,), as `components` returns them.
        bounds: int64 (p + 1,), as `packages` returns them.

    Returns:
        int64: the entries of documents in packages; and (p + 1,): where each package begins.
    """
    root = roots[entries >> 1]
    entries, root = entries[root >= 0], root[root >= 0]
    package = np.searchsorted(bounds, root, "right") - 1
    order = np.argsort(package, kind="stable")
    return entries[order], np.searchsorted(package[order], np.arange(len(bounds)))
