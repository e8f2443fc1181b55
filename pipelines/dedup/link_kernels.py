"""Compiled union-find over the documents that share a key."""

import numpy as np

from pipelines.kernel import kernel


@kernel
def _root(parents, i):
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@kernel
def join_groups(documents, starts, parents):
    """Joins the documents of each group; the smallest number becomes the root.

    Args:
        documents: int64 (m,), the members of groups, group by group.
        starts: bool (m,), true where a group starts.
        parents: int32 or int64 (n,), in and out.
    """
    for i in range(1, documents.size):
        if not starts[i]:
            a = _root(parents, documents[i])
            b = _root(parents, documents[i - 1])
            if a < b:
                parents[b] = a
            elif b < a:
                parents[a] = b


@kernel
def find_roots(parents):
    """Makes every document's parent its root."""
    for i in range(parents.size):
        parents[i] = _root(parents, i)


@kernel
def leave_out(roots, shares, touched):
    """Makes -1 the root of documents that share nothing, or in whose component nobody is touched.

    Args:
        roots: int32 or int64 (n,), in and out.
        shares: bool (n,), whether a document shares a key.
        touched: bool (n,).
    """
    wanted = np.zeros(roots.size, np.bool_)
    for i in range(roots.size):
        if touched[i]:
            wanted[roots[i]] = True
    for i in range(roots.size):
        if not shares[i] or not wanted[roots[i]]:
            roots[i] = -1


@kernel
def weigh(roots, sizes, sums):
    """Adds each document's size to the sum at its root.

    Args:
        roots: int32 or int64 (m,).
        sizes: int32 (m,).
        sums: int64 (n,), in and out.
    """
    for i in range(roots.size):
        if roots[i] >= 0:
            sums[roots[i]] += sizes[i]


@kernel
def bound(sums, most, bounds):
    """Writes where packages of sums begin, and n, and returns how many numbers these are.

    A package begins with the first sum before which the sums come to a multiple of `most`.
    """
    total, package, count = 0, -1, 0
    for i in range(sums.size):
        if total // most != package:
            package = total // most
            bounds[count] = i
            count += 1
        total += sums[i]
    bounds[count] = sums.size
    return count + 1


@kernel
def gather(stored, starts, sizes, places, values):
    """Copies stretches of one array to their places in another.

    Args:
        stored: of any type.
        starts: int64 (c,), where each stretch begins in stored.
        sizes: int64 (c,).
        places: int64 (c,), where it goes.
        values: out, of the same type.
    """
    for i in range(starts.size):
        for j in range(sizes[i]):
            values[places[i] + j] = stored[starts[i] + j]
