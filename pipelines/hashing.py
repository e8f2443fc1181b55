"""128-bit hashes of whole texts, for exact dedup: MurmurHash3_x64_128 over Arrow buffers.

Source: Austin Appleby, smhasher, MurmurHash3.cpp. It is fast and spreads well; it is not meant to
withstand somebody who constructs collisions.
"""

import numpy as np
import pyarrow as pa

from pipelines.kernel import kernel
from pipelines.text_buffers import eight_bytes, string_buffers

U = np.uint64
C1, C2 = U(0x87C37B91114253D5), U(0x4CF5AD432745937F)
F1, F2 = U(0xFF51AFD7ED558CCD), U(0xC4CEB9FE1A85EC53)
A1, A2, FIVE = U(0x52DCE729), U(0x38495AB5), U(5)


def hash128(values: pa.StringArray | pa.BinaryArray) -> np.ndarray:
    """Returns the hash (seed 0) of each value as (n, 2) uint64; a null is hashed as empty."""
    offsets, data, valid = string_buffers(values)
    hashes = np.empty((len(values), 2), np.uint64)
    _hash_each(offsets, data, eight_bytes(data), valid, hashes)
    return hashes


def normalised_hash128(values: pa.StringArray) -> np.ndarray:
    """Returns the hashes of " ".join(value.split()) as (n, 2) uint64; a null is hashed as empty."""
    return normalised_hashes(values)[0]


def normalised_hashes(values: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """Returns as `normalised_hash128`, and int32 (n,), the bytes that were hashed of each value."""
    offsets, data, valid = string_buffers(values)
    hashes = np.empty((len(values), 2), np.uint64)
    sizes = np.empty(len(values), np.int32)
    longest = int(np.diff(offsets).max(initial=0))
    folded = np.empty(longest + 8, np.uint8)
    _hash_each_folded(offsets, data, valid, folded, eight_bytes(folded), hashes, sizes)
    return hashes, sizes


@kernel
def _hash_each(offsets, data, data8, valid, hashes):
    for n in range(valid.size):
        stop = offsets[n + 1] if valid[n] else offsets[n]
        hashes[n, 0], hashes[n, 1] = _hash_span(data, data8, offsets[n], stop)


@kernel
def _hash_each_folded(offsets, data, valid, folded, folded8, hashes, sizes):
    for n in range(valid.size):
        stop = offsets[n + 1] if valid[n] else offsets[n]
        size = _fold(data, offsets[n], stop, folded)
        sizes[n] = size
        hashes[n, 0], hashes[n, 1] = _hash_span(folded, folded8, 0, size)


@kernel
def _fold(data, start, stop, folded):
    """Copies a text with white-space runs as one space and trimmed ends; returns its new size."""
    size = 0
    i = start
    while i < stop:
        b = data[i]
        if b > 0x20 and b != 0xC2 and (b < 0xE1 or b > 0xE3):
            folded[size] = b
            size += 1
            i += 1
            continue
        width = _space_width(data, i, stop)
        if width == 0:
            folded[size] = b
            size += 1
            i += 1
        else:
            if size > 0 and folded[size - 1] != 0x20:
                folded[size] = 0x20
                size += 1
            i += width
    if size > 0 and folded[size - 1] == 0x20:
        size -= 1
    return size


@kernel
def _space_width(data, i, stop):
    """Returns the bytes of the white-space character at byte i as str.split sees it, or 0."""
    b = data[i]
    if b == 0x20 or (b >= 0x09 and b <= 0x0D) or (b >= 0x1C and b <= 0x1F):
        return 1
    if b == 0xC2 and i + 1 < stop and (data[i + 1] == 0x85 or data[i + 1] == 0xA0):
        return 2
    if i + 2 >= stop:
        return 0
    second, third = data[i + 1], data[i + 2]
    if b == 0xE1:  # U+1680
        return 3 if second == 0x9A and third == 0x80 else 0
    if b == 0xE2:
        if second == 0x80:  # U+2000 to 200A, 2028, 2029, 202F
            line = third == 0xA8 or third == 0xA9 or third == 0xAF
            return 3 if (third >= 0x80 and third <= 0x8A) or line else 0
        return 3 if second == 0x81 and third == 0x9F else 0  # U+205F
    return 3 if b == 0xE3 and second == 0x80 and third == 0x80 else 0  # U+3000


@kernel
def _rotate(x, bits):
    return (x << U(bits)) | (x >> U(64 - bits))


@kernel
def _final(k):
    k ^= k >> U(33)
    k *= F1
    k ^= k >> U(33)
    k *= F2
    return k ^ (k >> U(33))


@kernel
def _hash_span(data, data8, start, stop):
    h1 = U(0)
    h2 = U(0)
    i = start
    while i + 16 <= stop:
        h1 ^= _rotate(data8[i] * C1, 31) * C2
        h1 = (_rotate(h1, 27) + h2) * FIVE + A1
        h2 ^= _rotate(data8[i + 8] * C2, 33) * C1
        h2 = (_rotate(h2, 31) + h1) * FIVE + A2
        i += 16
    k1 = U(0)
    k2 = U(0)
    for j in range(stop - 1, i - 1, -1):
        if j - i >= 8:
            k2 = (k2 << U(8)) | U(data[j])
        else:
            k1 = (k1 << U(8)) | U(data[j])
    h2 ^= _rotate(k2 * C2, 33) * C1
    h1 ^= _rotate(k1 * C1, 31) * C2
    size = U(stop - start)
    h1 ^= size
    h2 ^= size
    h1 += h2
    h2 += h1
    h1 = _final(h1)
    h2 = _final(h2)
    h1 += h2
    h2 += h1
    return h1, h2
