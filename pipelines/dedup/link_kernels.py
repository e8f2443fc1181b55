"""Compiled union-find over the documents that share a key."""

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
def gather(stored, starts, sizes, places, values):
    """Copies stretches of one array to their places in another.

    Args:
        stored: uint64.
        starts: int64 (c,), where each stretch begins in stored.
        sizes: int64 (c,).
        places: int64 (c,), where it goes.
        values: out, uint64.
    """
    for i in range(starts.size):
        for j in range(sizes[i]):
            values[places[i] + j] = stored[starts[i] + j]
