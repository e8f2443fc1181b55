"""Compiled kernels for unit vectors: fast products propose, one exact product decides.

A matrix product in float32 has other last bits on every CPU type, with every number of threads and
for every shape, so it decides nothing here. It names those that may be the most similar; of these
the product is worked out again in float64, value by value in one order, which is the same anywhere.
"""

import numpy as np

from pipelines.kernel import kernel


@kernel
def normalise(values, valid, unit):
    """Scales vectors to length 1; one that is not valid or has no length becomes all zeros.

    Args:
        values: float32 or float64 (n, d); NaN, infinity and a vector of zeros have no length.
        valid: bool (n,).
        unit: out, float32 (n, d).

    Returns:
        bool (n,), whether the vector has a length.
    """
    n, d = values.shape
    usable = np.zeros(n, np.bool_)
    for i in range(n):
        total = 0.0
        if valid[i]:
            for k in range(d):
                total += np.float64(values[i, k]) * np.float64(values[i, k])
        usable[i] = total > 0.0 and total < np.inf
        length = np.sqrt(total)
        for k in range(d):
            unit[i, k] = np.float64(values[i, k]) / length if usable[i] else 0.0
    return usable


@kernel
def _cosine(a, i, b, j):
    """Returns the product of two unit vectors: float64, from the first value to the last."""
    total = 0.0
    for k in range(a.shape[1]):
        total += np.float64(a[i, k]) * np.float64(b[j, k])
    return total


@kernel
def _millionths(a, i, b, j):
    """Returns the cosine of two unit vectors, rounded to six decimals, as a whole number."""
    return min(np.int64(np.floor(_cosine(a, i, b, j) * 1e6 + 0.5)), 1_000_000)


@kernel
def nearest(scores, vectors, centroids, error, numbers):
    """Finds the centroid that each vector is most similar to; of equal ones the first.

    Args:
        scores: float32 (n, k), products of vectors and centroids as a fast routine made them.
        vectors: float32 (n, d), of length 1.
        centroids: float32 (k, d), of length 1.
        error: how far a score may be from the truth.
        numbers: out, int32 (n,).
    """
    for i in range(scores.shape[0]):
        highest = scores[i, 0]
        for j in range(1, scores.shape[1]):
            highest = max(highest, scores[i, j])
        best = -2.0
        for j in range(scores.shape[1]):
            if scores[i, j] >= highest - 2 * error:
                exact = _cosine(vectors, i, centroids, j)
                if exact > best:
                    best = exact
                    numbers[i] = j


@kernel
def add_members(vectors, numbers, sums):
    """Adds each vector to the sum of its centroid, in their order; sums is float64 (k, d)."""
    for i in range(vectors.shape[0]):
        for k in range(vectors.shape[1]):
            sums[numbers[i], k] += vectors[i, k]


@kernel
def closest(scores, block, kept, first, error, best, anchors):
    """Compares the documents of a block with some of the kept ones.

    Args:
        scores: float32 (b, m), products as a fast routine made them.
        block: float32 (b, d), of length 1.
        kept: float32 (m, d), of length 1, in the order in which they were kept.
        first: the number of the first of these kept ones.
        error: how far a score may be from the truth.
        best: int64 (b,), in and out: millionths that the next match has to surpass.
        anchors: int64 (b,), in and out: the number of the most similar kept one, or -1.
    """
    for i in range(scores.shape[0]):
        hopeless = (best[i] + 0.5) * 1e-6 - error
        for j in range(scores.shape[1]):
            if scores[i, j] >= hopeless:
                exact = _millionths(block, i, kept, j)
                if exact > best[i]:
                    best[i] = exact
                    anchors[i] = first + j
                    hopeless = (exact + 0.5) * 1e-6 - error


@kernel
def settle(scores, block, first, error, best, anchors, kept, num_kept, vectors):
    """Keeps or drops the documents of a block in their order.

    Args:
        scores: float32 (b, b), products of the block with itself as a fast routine made them.
        block: float32 (b, d), of length 1.
        first: the place of the block's first document.
        error: how far a score may be from the truth.
        best: int64 (b,), in and out: as `closest` left it.
        anchors: int64 (b,), in and out: as `closest` left it, then with kept ones of the block.
        kept: int64 (c,), in and out: the places of the kept documents, in order.
        num_kept: how many there are.
        vectors: float32 (c, d), in and out: the first num_kept are those of the kept documents.

    Returns:
        How many documents are kept now.
    """
    before = num_kept
    for i in range(block.shape[0]):
        hopeless = (best[i] + 0.5) * 1e-6 - error
        for number in range(before, num_kept):
            j = kept[number] - first
            if scores[i, j] >= hopeless:
                exact = _millionths(block, i, block, j)
                if exact > best[i]:
                    best[i] = exact
                    anchors[i] = number
                    hopeless = (exact + 0.5) * 1e-6 - error
        if anchors[i] < 0:
            kept[num_kept] = first + i
            vectors[num_kept] = block[i]
            num_kept += 1
    return num_kept
