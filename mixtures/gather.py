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


@njit(cache=True, nogil=True)
def blank(numbers, packs, locations, lengths, gone, gone_lengths, end, masked, tokens, mask):
    """Overwrites the pieces of masked documents with end-of-document tokens that do not count.

    Boundaries stay, and so does every other piece, byte for byte: also the target after a blanked
    piece, whose input was an end-of-document token before.

    Args:
        numbers: as in `gather`, like the next three.
        packs: first piece of each pack.
        locations: of pieces.
        lengths: of pieces.
        gone: uint64, ascending, locations of masked documents.
        gone_lengths: int64, their tokens.
        end: id of the end-of-document token.
        masked: whether `mask` is written.
        tokens: as `gather` left them; written.
        mask: as `gather` and `join_masks` left it; written.

    Returns:
        whether mask is written now.
    """
    for row in range(len(numbers)):
        filled = np.int64(0)
        for piece in range(packs[numbers[row]], packs[numbers[row] + 1]):
            location = locations[piece] & ~_TOP
            length = np.int64(lengths[piece])
            place = np.searchsorted(gone, location, "right") - 1
            if place >= 0 and location - gone[place] < np.uint64(gone_lengths[place]):
                if not masked:
                    mask[:] = True
                    masked = True
                tokens[row, filled : filled + length] = end
                mask[row, max(filled - 1, 0) : filled - 1 + length] = False
            filled += length
    return masked


@njit(cache=True, nogil=True)
def join_masks(numbers, packs, locations, lengths, start_bits, addresses, masked, mask):
    """Puts the stored masks of conversations into the mask of a batch that `gather` has filled.

    The bytes of a mask say of each token whether it counts as a target; the target of position t is
    token t + 1, so they are copied one place to the left. Conversations are never cut: what
    `gather` wrote about continuations lies in other pieces.

    Args:
        numbers: as in `gather`, like the next four.
        packs: first piece of each pack.
        locations: of pieces.
        lengths: of pieces.
        start_bits: width of a location's first token.
        addresses: uint64, where the mask of each shard lies in memory; 0 if all its tokens count.
        masked: whether `gather` wrote the mask.
        mask: bool, (batch, sequence_length), as `gather` left it; written.
    """
    for row in range(len(numbers)):
        if not masked:
            mask[row] = True
        first = packs[numbers[row]]
        target = np.uint64(mask.ctypes.data) + np.uint64(row * mask.shape[1])
        filled = np.int64(0)
        for piece in range(first, packs[numbers[row] + 1]):
            location = locations[piece]
            length = np.int64(lengths[piece])
            source = addresses[np.int64((location & ~_TOP) >> start_bits)]
            if source != _U0:
                source += location & ((_U1 << start_bits) - _U1)
                skipped = np.int64(filled == 0)  # the first token of a row is nobody's target
                _copy(  # pyright: ignore
                    target + np.uint64(filled + skipped - 1),
                    source + np.uint64(skipped),
                    length - skipped,
                )
            filled += length
