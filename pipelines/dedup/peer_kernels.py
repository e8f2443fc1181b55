"""Compiled parts of the peers' signatures: murmur hashes of characters, minima, hashes of bands."""

import numpy as np

from pipelines.kernel import kernel

U = np.uint64
U32 = np.uint32
LOW = U(0xFFFFFFFF)
MERSENNE_BITS = U(61)
MERSENNE = U((1 << 61) - 1)
P1, P2, P3 = U(0x9E3779B185EBCA87), U(0xC2B2AE3D27D4EB4F), U(0x165667B19E3779F9)


@kernel
def _rotate(x, left):
    return ((x << U(left)) | (x >> U(32 - left))) & LOW


@kernel
def _scrambled(word):
    return _rotate(word * U(0xCC9E2D51) & LOW, 15) * U(0x1B873593) & LOW


@kernel
def murmur32(data, start, stop, seed):
    """Returns MurmurHash3_x86_32 of data[start:stop] as uint64, below 2^32.

    Source: Appleby, github.com/aappleby/smhasher, MurmurHash3.cpp (public domain).
    """
    h = U(seed)
    for i in range(start, stop, 4):
        word = U(0)
        for k in range(min(4, stop - i)):
            word |= U(data[i + k]) << U(8 * k)
        h ^= _scrambled(word)
        if i + 4 <= stop:
            h = (_rotate(h, 13) * U(5) + U(0xE6546B64)) & LOW
    h ^= U(stop - start) & LOW
    h = (h ^ (h >> U(16))) * U(0x85EBCA6B) & LOW
    h = (h ^ (h >> U(13))) * U(0xC2B2AE35) & LOW
    return h ^ (h >> U(16))


@kernel
def hash_characters(offsets, data, valid, width, seed, stops, hashes):
    """Writes the murmur hash of every run of `width` characters; a shorter text is one run.

    A hash of 0 becomes 1.

    Args:
        offsets: int32 (n + 1,), as string_buffers gives them.
        data: uint8, UTF-8.
        valid: bool (n,).
        width: characters.
        seed: of the hash.
        stops: out, int64 (n,): where each text's hashes end.
        hashes: out, uint32, as many as the texts have bytes together.
    """
    place = 0
    for n in range(valid.size):
        low = offsets[n]
        high = offsets[n + 1] if valid[n] else low
        stop = low
        for _ in range(width):
            stop = _behind(data, stop, high)
        start = low
        while start < high:
            hashes[place] = U32(max(murmur32(data, start, stop, seed), U(1)))
            place += 1
            if stop == high:
                break
            start, stop = _behind(data, start, high), _behind(data, stop, high)
        stops[n] = place


@kernel
def _behind(data, i, stop):
    """Returns where the character behind the one at byte i begins, at most `stop`."""
    i += 1
    while i < stop and data[i] & 0xC0 == 0x80:
        i += 1
    return min(i, stop)


@kernel
def permuted_minima(stops, hashes, multipliers, additions, bits, minima):
    """Writes the least value of each permutation over each document's hashes.

    A hash h becomes (a h + b) modulo 2^64, of that the rest modulo 2^61 - 1, of that the lowest
    `bits`: the sum overflows before the prime is applied, as it does in numpy.

    Args:
        stops: int64 (n,), where each document's hashes end.
        hashes: uint64.
        multipliers: uint64 (p,), a.
        additions: uint64 (p,), b.
        bits: 32 or 64.
        minima: out, uint64 (n, p); all bits set for a document without hashes.
    """
    mask = LOW if bits == 32 else ~U(0)
    start = 0
    for n in range(stops.size):
        for p in range(multipliers.size):
            a, b = multipliers[p], additions[p]
            least = ~U(0)
            for j in range(start, stops[n]):
                x = a * hashes[j] + b
                x = (x & MERSENNE) + (x >> MERSENNE_BITS)  # at most the prime and 7
                x = x - MERSENNE if x >= MERSENNE else x
                least = min(least, x & mask)
            minima[n, p] = least
        start = stops[n]


@kernel
def permuted_minima32(stops, hashes, multipliers, additions, minima):
    """Writes the least a h + b modulo 2^32 of each permutation over each document's hashes.

    Args:
        stops: int64 (n,), where each document's hashes end.
        hashes: uint32.
        multipliers: uint32 (p,), a.
        additions: uint32 (p,), b.
        minima: out, uint64 (n, p); zeros for a document without hashes.
    """
    start = 0
    for n in range(stops.size):
        for p in range(multipliers.size):
            a, b = multipliers[p], additions[p]
            least = U32(LOW)
            for j in range(start, stops[n]):
                least = min(least, U32(a * hashes[j] + b))
            minima[n, p] = least if start < stops[n] else 0
        start = stops[n]


@kernel
def hash_bands(minima, num_rows, bands):
    """Writes the 64-bit hash of each run of `num_rows` minima into bands, uint64 (n, k)."""
    for n in range(bands.shape[0]):
        for band in range(bands.shape[1]):
            h = U(band + 1) * P1
            for row in range(num_rows):
                h ^= minima[n, band * num_rows + row]
                h ^= h >> U(33)
                h *= P2
                h ^= h >> U(29)
                h *= P3
                h ^= h >> U(32)
            bands[n, band] = h
