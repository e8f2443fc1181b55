"""Compiled parts of the walk: candidates' components, and who is kept."""

import numba
import numpy as np

kernel = numba.njit(cache=True, nogil=True, error_model="numpy")


@kernel
def _root(parents, i):
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@kernel
def join_groups(order, hashes, parents):
    """Joins the documents of equal hash; the smallest number becomes the root.

    Args:
        order: int64 (n,), the documents in ascending order of hash.
        hashes: uint64 (n,), the hash of each document.
        parents: int64 (n,), in and out.
    """
    for i in range(1, order.size):
        if hashes[order[i]] == hashes[order[i - 1]]:
            a = _root(parents, order[i])
            b = _root(parents, order[i - 1])
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
def _common(values, a, a_stop, b, b_stop):
    """Returns how many values two ascending sets share."""
    common = 0
    while a < a_stop and b < b_stop:
        left, right = values[a], values[b]
        common += left == right
        a += left <= right
        b += right <= left
    return common


@kernel
def walk(offsets, values, member_offsets, members, num_groups, numerator, denominator, anchors):
    """Walks documents in order; one that is similar to a kept one is dropped.

    A document is compared with the kept documents that share a group with it, in their order, and
    dropped by the first whose Jaccard similarity is at least numerator / denominator.

    Args:
        offsets: int64 (n + 1,), where each document's set lies in values.
        values: uint64, ascending within a set.
        member_offsets: int64 (n + 1,), where each document's groups lie in members.
        members: int64, the groups of each document.
        num_groups: groups are numbered from 0 to this.
        numerator: of the least similarity.
        denominator: of the least similarity.
        anchors: out, int64 (n,): the kept document that drops it, or -1.

    Returns:
        float64 (n,): the similarity to the anchor, 0 for a kept document.
    """
    n = offsets.size - 1
    sizes = np.zeros(num_groups + 1, np.int64)
    for m in range(members.size):
        sizes[members[m] + 1] += 1
    starts = np.cumsum(sizes)
    kept = np.empty(members.size, np.int64)  # the kept documents of each group, in order
    num_kept = np.zeros(num_groups, np.int64)
    seen = np.full(n, -1, np.int64)
    candidates = np.empty(n, np.int64)
    similarity = np.zeros(n, np.float64)
    for d in range(n):
        count = 0
        for m in range(member_offsets[d], member_offsets[d + 1]):
            group = members[m]
            for k in range(starts[group], starts[group] + num_kept[group]):
                if seen[kept[k]] != d:
                    seen[kept[k]] = d
                    candidates[count] = kept[k]
                    count += 1
        anchors[d] = -1
        size = offsets[d + 1] - offsets[d]
        for other in np.sort(candidates[:count]):
            other_size = offsets[other + 1] - offsets[other]
            if min(size, other_size) * denominator < numerator * max(size, other_size):
                continue
            common = _common(values, offsets[d], offsets[d + 1], offsets[other], offsets[other + 1])
            union = size + other_size - common
            if common * denominator >= numerator * union:
                anchors[d] = other
                similarity[d] = common / union
                break
        if anchors[d] < 0:
            for m in range(member_offsets[d], member_offsets[d + 1]):
                group = members[m]
                kept[starts[group] + num_kept[group]] = d
                num_kept[group] += 1
    return similarity


@kernel
def pair_similarities(offsets, values, left, right, numerator, denominator):
    """Returns the Jaccard similarity of each pair, or -1 where it is under the least one.

    Args:
        offsets: int64 (n + 1,), where each document's set lies in values.
        values: uint64, ascending within a set.
        left: int64 (pairs,).
        right: int64 (pairs,).
        numerator: of the least similarity.
        denominator: of the least similarity.
    """
    similarity = np.full(left.size, -1.0)
    for p in range(left.size):
        a, b = left[p], right[p]
        size, other_size = offsets[a + 1] - offsets[a], offsets[b + 1] - offsets[b]
        if min(size, other_size) * denominator < numerator * max(size, other_size):
            continue
        common = _common(values, offsets[a], offsets[a + 1], offsets[b], offsets[b + 1])
        union = size + other_size - common
        if common * denominator >= numerator * union:
            similarity[p] = common / union
    return similarity
