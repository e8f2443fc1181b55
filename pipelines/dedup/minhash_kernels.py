"""Compiled shingling and MinHash: folded words of Arrow text, their n-grams, minima, bands.

One pass over the bytes hashes each word (one multiplication a byte), a second over the words
hashes each run of `ngram` words, and the permutations run with the shingles in the inner loop, so
that each keeps its minimum in a register and eight of them fill a vector.
"""

import numba
import numpy as np

kernel = numba.njit(cache=True, nogil=True, error_model="numpy")

U = np.uint64
SINGLE = np.uint32(1 << 31)
"""Flag of a code point that is a word of its own: scripts that write without spaces."""

P1, P2, P3 = U(0x9E3779B185EBCA87), U(0xC2B2AE3D27D4EB4F), U(0x165667B19E3779F9)
WORD_START = U(0x51ED270B153A6A01)


@kernel
def _mix(h):
    h ^= h >> U(33)
    h *= P2
    h ^= h >> U(29)
    h *= P3
    return h ^ (h >> U(32))


@kernel
def _code_point(data, i, stop):
    """Returns the code point at byte i, where data[i] >= 0x80, and its width in bytes."""
    b = np.uint32(data[i])
    if b < 0xE0 and i + 1 < stop:
        return ((b & 0x1F) << 6) | (np.uint32(data[i + 1]) & 0x3F), 2
    if b < 0xF0 and i + 2 < stop:
        middle = (np.uint32(data[i + 1]) & 0x3F) << 6
        return ((b & 0x0F) << 12) | middle | (np.uint32(data[i + 2]) & 0x3F), 3
    if i + 3 < stop:
        high = ((np.uint32(data[i + 1]) & 0x3F) << 12) | ((np.uint32(data[i + 2]) & 0x3F) << 6)
        return ((b & 0x07) << 18) | high | (np.uint32(data[i + 3]) & 0x3F), 4
    return np.uint32(0), 1


@kernel
def _hash_words(data, start, stop, folds, words):
    """Writes the hash of each folded word and returns how many there are."""
    count = 0
    h = WORD_START
    i = start
    while i < stop:
        b = data[i]
        if b < 0x80:
            folded = folds[b]
            i += 1
        else:
            code_point, width = _code_point(data, i, stop)
            folded = folds[code_point]
            i += width
        if folded == 0 or folded & SINGLE:
            if h != WORD_START:
                words[count] = _mix(h)
                count += 1
                h = WORD_START
            if folded:
                words[count] = _mix((WORD_START ^ U(folded)) * P1)
                count += 1
        else:
            h = (h ^ U(folded)) * P1
    if h != WORD_START:
        words[count] = _mix(h)
        count += 1
    return count


@kernel
def _shingles(data, start, stop, folds, ngram, words, shingles):
    """Writes the hashes of the runs of `ngram` words; a shorter text is one run of all its words.

    Returns how many there are, repeated ones counted each time; 0 for a text without words.
    """
    count = _hash_words(data, start, stop, folds, words)
    size = min(ngram, count)
    if size == 0:
        return 0
    for j in range(count - size + 1):
        g = words[j]
        for k in range(1, size):
            g = (g ^ (words[j + k] * P2)) * P1
            g = (g << U(27)) | (g >> U(37))
        shingles[j] = _mix(g)
    return count - size + 1


@kernel
def sign(offsets, data, valid, folds, ngram, multipliers, additions, num_rows, bands, sizes):
    """Writes the band hashes and the number of shingles of each document.

    Args:
        offsets: int32 (n + 1,), as string_buffers gives them.
        data: uint8.
        valid: bool (n,).
        folds: uint32, one for each code point: 0 separates, else the folded character.
        ngram: words in a shingle.
        multipliers: odd uint32 (permutations,).
        additions: uint32 (permutations,).
        num_rows: permutations in a band.
        bands: out, uint64 (n, permutations / num_rows); undefined where sizes is 0.
        sizes: out, int32 (n,).
    """
    most = 1
    for n in range(valid.size):
        most = max(most, offsets[n + 1] - offsets[n] + 1)
    words = np.empty(most, np.uint64)
    shingles = np.empty(most, np.uint64)
    low = np.empty(most, np.uint32)
    for n in range(valid.size):
        stop = offsets[n + 1] if valid[n] else offsets[n]
        count = _shingles(data, offsets[n], stop, folds, ngram, words, shingles)
        sizes[n] = count
        for j in range(count):
            low[j] = np.uint32(shingles[j] >> U(32))
        for band in range(bands.shape[1]):
            h = U(band + 1) * P1
            for row in range(num_rows):
                a = multipliers[band * num_rows + row]
                b = additions[band * num_rows + row]
                least = np.uint32(0xFFFFFFFF)
                for j in range(count):
                    least = min(least, np.uint32(a * low[j] + b))
                h = _mix(h ^ U(least))
            bands[n, band] = h


@kernel
def shingle_sets(offsets, data, valid, folds, ngram, stops, values):
    """Writes the set of shingles of each document, ascending, one after the other.

    Args:
        offsets: int32 (n + 1,), as string_buffers gives them.
        data: uint8.
        valid: bool (n,).
        folds: as in `sign`.
        ngram: words in a shingle.
        stops: out, int64 (n,): where each document's set ends in values.
        values: out, uint64, as many as the documents have bytes and documents together.
    """
    most = 1
    for n in range(valid.size):
        most = max(most, offsets[n + 1] - offsets[n] + 1)
    words = np.empty(most, np.uint64)
    shingles = np.empty(most, np.uint64)
    place = 0
    for n in range(valid.size):
        stop = offsets[n + 1] if valid[n] else offsets[n]
        count = _shingles(data, offsets[n], stop, folds, ngram, words, shingles)
        ordered = np.sort(shingles[:count])
        for j in range(count):
            if j == 0 or ordered[j] != ordered[j - 1]:
                values[place] = ordered[j]
                place += 1
        stops[n] = place
