"""Compiled walk: documents in the order of the keep policy, each kept or dropped by a kept one."""

import numpy as np

from pipelines.kernel import kernel

SKETCH = 256
"""Values of the union of two sets after which a hopeless comparison ends, see `least_in_sketch`."""
STRIDE = 64
PAGES = 8192
"""Bytes that a comparison may bring into memory beside the two sets."""


@kernel
def least_in_sketch(numerator, denominator):
    """Returns how many of the first SKETCH values two sets share at least if they are similar.

    Sets are in the order of their hashes, so the first values of the union are a random sample of
    it and the shared ones among them follow a binomial distribution: six standard deviations under
    its mean lies one pair of similar sets in a billion.
    Source: Broder 1997, On the resemblance and containment of documents (bottom sketches).
    """
    share = numerator / denominator
    return int(SKETCH * share - 6 * np.sqrt(SKETCH * share * (1 - share)))


@kernel
def _common(values, a, a_stop, b, b_stop, needed, least):
    """Returns how many values two ascending sets share, or -1 as soon as it is under `needed`.

    With `least` above 0 it is also -1 where fewer than so many of the first SKETCH of the union are
    shared.
    """
    common = 0
    a_misses, b_misses = a_stop - a - needed, b_stop - b - needed
    a_start, b_start = a, b
    steps = 0
    while a < a_stop and b < b_stop:
        for _ in range(STRIDE):
            left, right = values[a], values[b]
            common += left == right
            a += left <= right
            b += right <= left
            if a == a_stop or b == b_stop:
                break
        if a - a_start - common > a_misses or b - b_start - common > b_misses:
            return -1
        steps += STRIDE
        if a == a_stop or b == b_stop:
            break  # the last stride was not a whole one
        if steps == SKETCH and common < least:
            return -1
    return common if common >= needed else -1


@kernel
def walk(
    first,
    budget,
    offsets,
    values,
    member_offsets,
    members,
    kept_starts,
    kept,
    num_kept,
    seen,
    shared,
    comparison,
    anchors,
    similarity,
    skipped,
):
    """Walks documents in order; one that is similar to a kept one is dropped.

    A document is compared with kept documents that share a group with it. Each group proposes the
    first `max_anchors` that were kept of it; of these the `max_anchors` that share most groups are
    compared, ties in order, and the first that is similar enough drops the document.

    Args:
        first: the document to go on with.
        budget: bytes of sets that may be read before the walk returns.
        offsets: int64 (n + 1,), where each document's set lies in values.
        values: uint64, ascending within a set.
        member_offsets: int64 (n + 1,), where each document's groups lie in members.
        members: int64, the groups of each document.
        kept_starts: int64 (groups + 1,), room for `max_anchors` of each group or all its members.
        kept: int64, in and out: the documents kept of each group, in order.
        num_kept: int64 (groups,), in and out: how many there are, also where there is no room.
        seen: int64 (n,), -1 at the start.
        shared: int64 (n,), scratch.
        comparison: `pipelines.global_step.Comparison` as a tuple.
        anchors: out, int64 (n,): the kept document that drops it, or -1.
        similarity: out, float64 (n,): the similarity to the anchor, 0 for a kept document.
        skipped: out, int32 (n,): for a kept document the kept ones of its groups that it was not
            compared with though their sizes allow it; those without room count in each group.

    Returns:
        The document to go on with, n at the end.
    """
    containment, numerator, denominator, max_anchors = comparison
    least = 0 if containment else least_in_sketch(numerator, denominator)
    n = offsets.size - 1
    places = np.empty(n, np.int64)
    read = 0
    for d in range(first, n):
        if read > budget:
            return d
        size = offsets[d + 1] - offsets[d]
        count = 0
        left_out = 0
        most = 0
        for m in range(member_offsets[d], member_offsets[d + 1]):
            group = members[m]
            exposed = min(num_kept[group], max_anchors)
            left_out += num_kept[group] - exposed
            for k in range(kept_starts[group], kept_starts[group] + exposed):
                other = kept[k]
                if seen[other] != d:
                    seen[other] = d
                    shared[other] = 0
                    other_size = offsets[other + 1] - offsets[other]
                    if size == 0:
                        possible = False  # a set of nothing is like nothing
                    elif containment:
                        possible = other_size * denominator >= numerator * size
                    else:
                        smaller, larger = min(size, other_size), max(size, other_size)
                        possible = smaller * denominator >= numerator * larger
                    if possible:
                        places[count] = other
                        count += 1
                shared[other] += 1
                most = max(most, shared[other])
        for c in range(count):
            places[c] += (most - shared[places[c]]) * n
        ordered = np.sort(places[:count])
        anchors[d] = -1
        similarity[d] = 0
        skipped[d] = 0
        compared = min(count, max_anchors)
        for c in range(compared):
            other = ordered[c] % n
            other_size = offsets[other + 1] - offsets[other]
            if containment:
                needed = -(-numerator * size // denominator)
            else:
                needed = -(-numerator * (size + other_size) // (numerator + denominator))
            read += 8 * (size + other_size) + PAGES
            start, other_start = offsets[d], offsets[other]
            stop, other_stop = offsets[d + 1], offsets[other + 1]
            common = _common(values, start, stop, other_start, other_stop, needed, least)
            if common >= 0:
                anchors[d] = other
                of = size if containment else size + other_size - common
                similarity[d] = common / of
                break
        if anchors[d] >= 0:
            continue
        skipped[d] = left_out + count - compared
        for m in range(member_offsets[d], member_offsets[d + 1]):
            group = members[m]
            if num_kept[group] < max_anchors:
                kept[kept_starts[group] + num_kept[group]] = d
            num_kept[group] += 1
    return n
