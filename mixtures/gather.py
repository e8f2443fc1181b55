"""The kernel of the stream: from sample indices to token rows, copied straight out of mapped files.

A row is a few memory copies from page cache to batch, so the speed is the memory's. Shards are
reached by address: one compiled loop for any number of them, no Python object for a document.
"""

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_U0 = np.uint64(0)
_U1 = np.uint64(1)
_TOP = np.uint64(1 << 63)


@intrinsic
def _copy(typing_context, destination, source, size):
    """Copies `size` bytes from address to address (all integers)."""

    def generate(context, builder, signature, arguments):
        to, origin = (builder.inttoptr(a, cgutils.voidptr_t) for a in arguments[:2])
        cgutils.raw_memcpy(builder, to, origin, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.intp), generate


@njit(cache=True, nogil=True)
def gather(numbers, packs, locations, lengths, start_bits, addresses, tokens, mask, boundaries):
    """Fills a batch.

    Args:
        numbers: int64, (batch), packs to read.
        packs: int64, first piece of each pack, and the end.
        locations: uint64, of pieces: continuation flag (bit 63), shard, first token.
        lengths: int32, tokens of pieces.
        start_bits: uint64, width of a location's first token.
        addresses: uint64, where the tokens of each shard lie in memory.
        tokens: (batch, sequence_length + 1), written; zero behind the last piece.
        mask: bool, (batch, sequence_length), written if a target does not count: it is padding, or
            the first token of a piece that continues a document which does not stand before it.
        boundaries: int32, (batch, max_documents), written: where each piece starts, padded with
            sequence_length + 1.

    Returns:
        whether mask was written.
    """
    width = tokens.shape[1]
    itemsize = tokens.itemsize
    start_mask = (_U1 << start_bits) - _U1
    masked = False
    for row in range(len(numbers)):
        first = packs[numbers[row]]
        pieces = packs[numbers[row] + 1] - first
        target = np.uint64(tokens.ctypes.data) + np.uint64(row * width * itemsize)
        filled = np.int64(0)
        for piece in range(pieces):
            location = locations[first + piece]
            length = np.int64(lengths[first + piece])
            shard = np.int64((location & ~_TOP) >> start_bits)
            source = addresses[shard] + (location & start_mask) * np.uint64(itemsize)
            size = length * itemsize
            _copy(target + np.uint64(filled * itemsize), source, size)  # pyright: ignore
            boundaries[row, piece] = filled
            if piece and location & _TOP != _U0:
                if not masked:
                    mask[:] = True
                    masked = True
                mask[row, filled - 1] = False
            filled += length
        boundaries[row, pieces:] = width
        if filled < width:
            if not masked:
                mask[:] = True
                masked = True
            tokens[row, filled:] = 0
            mask[row, filled - 1 :] = False
    return masked
