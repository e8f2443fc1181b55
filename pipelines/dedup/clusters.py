"""Spherical k-means: which vectors are compared with each other.

Centroids are trained on a sample, all vectors are assigned to the nearest one. Everything is summed
in one order and near-ties are decided exactly, so the clusters are the same whatever the number of
threads, the sizes of blocks and the library that multiplies matrices.

Source: Dhillon and Modha 2001, Concept decompositions for large sparse text data using clustering,
section 3 (spherical k-means).
"""

from collections.abc import Callable

import numpy as np

from pipelines.dedup.vector_kernels import add_members, nearest, normalise

SCORE_BYTES = 16 << 20
"""Products that are held at once."""
ROWS = 4096
"""Vectors of the sample that are read at once."""


def product_error(dimensions: int) -> float:
    """Returns how far a float32 product of two unit vectors may be from the true one.

    Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1: whatever the
    order of summation, n u / (1 - n u) of the product of the lengths, with u = 2^-24.
    """
    return (dimensions + 8) * 2.0**-24 * 1.01


def train(
    sample: np.ndarray,
    num_clusters: int,
    num_rounds: int,
    pause: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Returns centroids of length 1, float32 (k, d).

    The first k vectors of the sample are the first centroids. A centroid without members, or whose
    members cancel out, stays where it is.

    Args:
        sample: float32 (s, d), of length 1, in random order, at least k.
        num_clusters: k.
        num_rounds: how often all of the sample are assigned and the centroids moved.
        pause: called when some MB of the sample have been read.
    """
    centroids = sample[:num_clusters].copy()
    for _ in range(num_rounds):
        sums = np.zeros(centroids.shape, np.float64)
        for start in range(0, len(sample), ROWS):
            part = sample[start : start + ROWS]
            add_members(part, assign(part, centroids), sums)
            pause()
        moved = np.empty_like(centroids)
        lasting = normalise(sums, np.ones(num_clusters, bool), moved)
        centroids[lasting] = moved[lasting]
    return centroids


def assign(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Returns the number of the nearest centroid, int32 (n,); of equally near ones the first."""
    numbers = np.empty(len(vectors), np.int32)
    error = product_error(vectors.shape[1])
    rows = max(1, SCORE_BYTES // max(1, 4 * len(centroids)))
    for start in range(0, len(vectors), rows):
        block = vectors[start : start + rows]
        scores = block @ centroids.T
        nearest(scores, block, centroids, error, numbers[start : start + rows])
    return numbers


def sampling_order(ids: np.ndarray, seed: int) -> np.ndarray:
    """Returns uint64 (n,) by which a sample is drawn, smallest first: a keyed hash of the ids.

    Source: Steele et al. 2014, Fast splittable pseudorandom number generators (SplitMix64).
    """
    return _mixed(ids[:, 0] ^ _mixed(ids[:, 1] ^ _mixed(np.full(1, seed, np.uint64))))


def _mixed(values: np.ndarray) -> np.ndarray:
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
