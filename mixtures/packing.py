"""Packing documents into sequences: best fit decreasing within bounded windows.

A pack holds sequence_length + 1 tokens: inputs and, one place on, targets. A longer document is cut
into pieces that overlap by one token, so each of its tokens is a target once. Whole documents go
where they fit best, so few are cut (Ding et al. 2024, "Fewer truncations improve language
modeling", arXiv:2404.10830), and conversations never: one that is too long is left out before it
comes here. Packs that stay short wait for the next window's pieces. On real text over 99% of the
places hold tokens. Memory is two windows; a segment tree over free places finds the best pack in
log2(sequence_length) steps, about 4 million pieces a second and core.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

WINDOW = 4096
"""Pieces that are packed together. They stay in the order of their documents, so the reads of a
pack fall into a few megabytes of a shard."""

START_BITS = 43
"""A location is a uint64: continuation flag (bit 63), shard (20 bits), first token (43 bits)."""
CONTINUATION = np.uint64(1 << 63)
_MAX_SHARDS = 1 << (63 - START_BITS)
_START_BITS = np.uint64(START_BITS)

Emit = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


@njit(cache=True)
def cut(starts, lengths, shard, sequence_length):
    """Cuts documents into pieces of at most sequence_length + 1 tokens.

    Args:
        starts: int64, first token of each document in its shard.
        lengths: int32, tokens of each document, at least 1.
        shard: number of the shard.
        sequence_length: targets of a pack.

    Returns:
        locations (uint64, see START_BITS) and lengths (int32) of the pieces, in order.
    """
    count = 0
    for document in range(len(starts)):
        count += max(1, (lengths[document] - 2) // sequence_length + 1)
    locations = np.empty(count, np.uint64)
    sizes = np.empty(count, np.int32)
    piece = 0
    first = np.uint64(shard) << _START_BITS
    for document in range(len(starts)):
        begin = np.int64(0)
        while True:
            size = min(lengths[document] - begin, sequence_length + 1)
            location = first | np.uint64(starts[document] + begin)
            if begin > 0:
                location |= CONTINUATION
            locations[piece] = location
            sizes[piece] = size
            piece += 1
            begin += sequence_length
            if begin + 1 >= lengths[document]:
                break
    return locations, sizes


class Packer:
    """Packs a part's pieces window by window and hands the packs on.

    Args:
        sequence_length: targets of a pack.
        max_documents: pieces of a pack, at most.
        emit: called with locations and lengths of pieces in the order of their packs, and the
            number of pieces of each pack.
    """

    def __init__(self, sequence_length: int, max_documents: int, emit: Emit) -> None:
        self._capacity = sequence_length + 1
        self._max_documents = max_documents
        self._emit = emit
        self._locations = np.empty(0, np.uint64)
        self._lengths = np.empty(0, np.int32)
        self._fresh = 0  # pieces that no window has seen yet, at the end

    def add(self, locations: np.ndarray, lengths: np.ndarray) -> None:
        """Takes pieces in the order of their documents and packs every full window."""
        done = 0
        while done < len(lengths):
            take = min(WINDOW - self._fresh, len(lengths) - done)
            self._take(locations[done : done + take], lengths[done : done + take])
            done += take
            if self._fresh == WINDOW:
                self._pack(last=False)

    def finish(self) -> None:
        """Packs what is left."""
        if len(self._lengths):
            self._pack(last=True)

    def _take(self, locations: np.ndarray, lengths: np.ndarray) -> None:
        self._locations = np.concatenate([self._locations, locations])
        self._lengths = np.concatenate([self._lengths, lengths])
        self._fresh += len(lengths)

    def _pack(self, last: bool) -> None:
        lengths, capacity = self._lengths, self._capacity
        longest_first = np.argsort(-lengths, kind="stable")
        packs, num_packs = best_fit(lengths, longest_first, capacity, self._max_documents)
        filled = np.bincount(packs, lengths, num_packs).astype(np.int64)
        counts = np.bincount(packs, minlength=num_packs)
        done = self._done(filled, counts) | last
        first = np.empty(num_packs, np.int64)
        first[packs[::-1]] = np.arange(len(packs))[::-1]  # the last one written is the first piece
        (pieces,) = np.nonzero(done[packs])
        pieces = pieces[np.argsort(first[packs[pieces]], kind="stable")]
        if len(pieces):
            in_order = np.argsort(np.where(done, first, len(packs)))[: np.count_nonzero(done)]
            self._emit(self._locations[pieces], lengths[pieces], counts[in_order])
        waiting = ~done[packs]
        self._locations, self._lengths = self._locations[waiting], lengths[waiting]
        self._fresh = 0

    def _done(self, filled: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Says which packs wait no longer for pieces: at most 1/256 is free, or no piece may come.

        Where more than a window of pieces would wait, the fullest packs are done, too.
        """
        done = (self._capacity - filled) * 256 <= self._capacity
        done |= counts >= self._max_documents
        fullest = np.argsort(np.where(done, self._capacity, -filled), kind="stable")
        fullest = fullest[: np.count_nonzero(~done)]
        waiting = counts[fullest].sum() - np.cumsum(counts[fullest]) + counts[fullest]
        done[fullest[waiting > WINDOW]] = True
        return done


@njit(cache=True)
def best_fit(lengths, order, capacity, max_pieces):
    """Assigns each piece, in the given order, to the fullest pack where it fits.

    Args:
        lengths: int32, tokens of each piece.
        order: int64, pieces, longest first.
        capacity: tokens of a pack.
        max_pieces: pieces of a pack, at most.

    Returns:
        the pack of each piece (int32) and the number of packs.
    """
    leaves = 1
    while leaves < capacity + 1:
        leaves *= 2
    # leaf f counts open packs with f free places, an inner node the packs below it; packs of one
    # leaf form a stack through `below`
    tree = np.zeros(2 * leaves, np.int32)
    top = np.full(capacity + 1, -1, np.int32)
    below = np.empty(len(lengths), np.int32)
    sizes = np.zeros(len(lengths), np.int32)
    packs = np.empty(len(lengths), np.int32)
    num_packs = 0
    for piece in order:
        free = _first_at_least(tree, leaves, lengths[piece])
        if free < 0:
            pack, free = num_packs, capacity
            num_packs += 1
        else:
            pack = top[free]
            top[free] = below[pack]
            _count(tree, leaves + free, -1)
        packs[piece] = pack
        sizes[pack] += 1
        free -= lengths[piece]
        if free > 0 and sizes[pack] < max_pieces:
            below[pack] = top[free]
            top[free] = pack
            _count(tree, leaves + free, 1)
    return packs, num_packs


@njit(cache=True)
def _count(tree, node, change):
    while node > 0:
        tree[node] += change
        node >>= 1


@njit(cache=True)
def _first_at_least(tree, leaves, wanted):
    """Returns the smallest number of free places >= wanted that a pack has, -1 if none has."""
    node = leaves + wanted
    while tree[node] == 0:
        while node & 1:  # a right child: go up until there is something to the right
            node >>= 1
            if node <= 1:
                return -1
        node += 1
    while node < leaves:
        node *= 2
        if tree[node] == 0:
            node += 1
    return node - leaves
