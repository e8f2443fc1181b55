"""The walk of a cluster of vectors: each kept, or dropped by the kept one most similar to it.

Documents come in blocks; a block is compared with all kept ones by matrix products and then with
itself, document by document. What comes out is the same as of a walk that takes them one by one.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipelines.dedup.clusters import product_error
from pipelines.dedup.vector_kernels import closest, settle

BLOCK = 512
"""Documents that are compared at once, with TILE kept ones: 8 MB of products."""
TILE = 4096


class VectorWalked(NamedTuple):
    """What became of the c documents of a cluster.

    Attributes:
        anchors: int64 (c,), the place of the kept document that drops it, or -1.
        millionths: int64 (c,), the cosine with it in millionths; 0 for a kept one.
    """

    anchors: np.ndarray
    millionths: np.ndarray


def walk_vectors(
    vectors: np.ndarray, least: int, pause: Callable[[], None] = lambda: None
) -> VectorWalked:
    """Walks the documents of a cluster.

    Args:
        vectors: float32 (c, d), of length 1, in the order of the keep policy; overwritten by those
            of the kept ones.
        least: the cosine, in millionths, from which on a document is dropped.
        pause: called when some MB of vectors have been read.
    """
    n, dimensions = vectors.shape
    error = product_error(dimensions)
    result = VectorWalked(np.full(n, -1, np.int64), np.zeros(n, np.int64))
    kept, num_kept = np.empty(n, np.int64), 0
    for start in range(0, n, BLOCK):
        block = vectors[start : start + BLOCK].copy()
        best = np.full(len(block), least - 1, np.int64)
        anchors = np.full(len(block), -1, np.int64)
        for low in range(0, num_kept, TILE):
            tile = vectors[low : min(low + TILE, num_kept)]
            closest(block @ tile.T, block, tile, low, error, best, anchors)
            pause()
        scores = block @ block.T
        num_kept = settle(scores, block, start, error, best, anchors, kept, num_kept, vectors)
        dropped = np.flatnonzero(anchors >= 0)
        result.anchors[start + dropped] = kept[anchors[dropped]]
        result.millionths[start + dropped] = best[dropped]
    return result
