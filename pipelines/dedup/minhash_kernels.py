"""Compiled signatures: folded words or characters of Arrow text, their n-grams, minima, bands.

A first pass over the bytes writes the folded text (a table look-up a byte), a second one finds the
edges of words, a third hashes words eight bytes at a time, a fourth rolls a polynomial over `ngram`
words. The permutations run with the n-grams in the inner loop, so that each keeps its minimum in a
register and eight of them fill a vector. Sets are sorted by their leading bits into buckets of one
or two values.
"""

import numpy as np

from pipelines.kernel import kernel

U = np.uint64
SINGLE = np.uint32(1 << 31)
"""Flag of a code point that is a word of its own: scripts that write without spaces."""
PADDING = 8
"""Zero bytes behind a folded text, whose words are read eight bytes at a time."""

P1, P2, P3 = U(0x9E3779B185EBCA87), U(0xC2B2AE3D27D4EB4F), U(0x165667B19E3779F9)
BASE = U(0xD6E8FEB86659FD93)
WORD_START = U(0x51ED270B153A6A01)
HIGHS = U(0x8080808080808080)
LONG_BUCKET = 32
LANES = 32
"""Hashes that one turn of a permutation's compiled loop takes: four vectors of eight."""


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
    if b < 0xE0 and i + U(1) < stop:
        return ((b & 0x1F) << 6) | (np.uint32(data[i + U(1)]) & 0x3F), 2
    if b < 0xF0 and i + U(2) < stop:
        middle = (np.uint32(data[i + U(1)]) & 0x3F) << 6
        return ((b & 0x0F) << 12) | middle | (np.uint32(data[i + U(2)]) & 0x3F), 3
    if i + U(3) < stop:
        high = ((np.uint32(data[i + U(1)]) & 0x3F) << 12) | (
            (np.uint32(data[i + U(2)]) & 0x3F) << 6
        )
        return ((b & 0x07) << 18) | high | (np.uint32(data[i + U(3)]) & 0x3F), 4
    return np.uint32(0), 1


@kernel
def _put(folded, place, point):
    """Writes a code point as UTF-8, which has no zero byte, and returns the place behind it."""
    if point < 0x80:
        folded[place] = point
        return place + U(1)
    if point < 0x800:
        folded[place] = 0xC0 | (point >> 6)
        folded[place + U(1)] = 0x80 | (point & 0x3F)
        return place + U(2)
    if point < 0x10000:
        folded[place] = 0xE0 | (point >> 12)
        folded[place + U(1)] = 0x80 | ((point >> 6) & 0x3F)
        folded[place + U(2)] = 0x80 | (point & 0x3F)
        return place + U(3)
    folded[place] = 0xF0 | (point >> 18)
    folded[place + U(1)] = 0x80 | ((point >> 12) & 0x3F)
    folded[place + U(2)] = 0x80 | ((point >> 6) & 0x3F)
    folded[place + U(3)] = 0x80 | (point & 0x3F)
    return place + U(4)


@kernel
def _fold(data, eights, start, stop, folds, alone, folded):
    """Writes the folded text, zero bytes between words and behind it, and returns its length.

    With `alone` characters that are words by themselves are put between zero bytes.
    """
    place, i, end = U(0), U(start), U(stop)
    while i < end:
        if i + U(8) <= end and eights[i] & HIGHS == U(0):
            for k in range(8):
                folded[place + U(k)] = folds[data[i + U(k)]]
            place += U(8)
            i += U(8)
            continue
        b = data[i]
        if b < 0x80:
            folded[place] = folds[b]
            place += U(1)
            i += U(1)
            continue
        code_point, width = _code_point(data, i, end)
        i += U(width)
        point = folds[code_point]
        if point == 0:
            folded[place] = 0
            place += U(1)
        elif alone and point & SINGLE:
            folded[place] = 0
            place = _put(folded, place + U(1), point & ~SINGLE)
            folded[place] = 0
            place += U(1)
        else:
            place = _put(folded, place, point & ~SINGLE)
    for k in range(PADDING):
        folded[place + U(k)] = 0
    return place


@kernel
def _word_edges(folded, length, edges):
    """Writes where each word starts and where it stops, and returns how many edges there are.

    Every place is written, and the next one over it where there was no edge: no branch is missed.
    """
    count = U(0)
    before = U(0)
    for i in range(U(length)):
        within = U(folded[i] != 0)
        edges[count] = i
        count += within ^ before
        before = within
    edges[count] = length
    return np.int64(count + before)


@kernel
def _hash_words(folded, eights, length, words, edges):
    """Writes the hash of each folded word and returns how many there are."""
    count = _word_edges(folded, length, edges) // 2
    for word in range(count):
        i = edges[2 * word]
        left = edges[2 * word + 1] - i
        h = WORD_START
        while left >= U(8):
            h = (h ^ eights[i]) * P1
            h ^= h >> U(32)
            i += U(8)
            left -= U(8)
        h = (h ^ (eights[i] & ((U(1) << (left * U(8))) - U(1)))) * P1
        words[word] = _mix(h)
    return count


@kernel
def _characters(folded, length, points):
    """Writes the folded characters, one space between words, and returns how many there are."""
    count = 0
    space = False
    i = U(0)
    while i < length:
        b = folded[i]
        if b == 0:
            space = count > 0
            i += U(1)
            continue
        if space:
            points[count] = U(0x20)
            count += 1
            space = False
        if b < 0x80:
            points[count] = U(b)
            i += U(1)
        else:
            code_point, width = _code_point(folded, i, length)
            points[count] = U(code_point)
            i += U(width)
        count += 1
    return count


@kernel
def _shingles(data, eights, start, stop, folds, characters, ngram, scratch):
    """Writes the hashes of the runs of `ngram` units to scratch.shingles and returns their number.

    A shorter text is one run of all its units. Repeated runs count each time; 0 for a text without
    words.
    """
    folded, folded_eights, units, shingles = scratch
    length = _fold(data, eights, start, stop, folds, not characters, folded)
    if characters:
        count = _characters(folded, length, units)
    else:
        count = _hash_words(folded, folded_eights, length, units, shingles)
    size = min(ngram, count)
    if size == 0:
        return 0
    power = U(1)
    g = U(0)
    for k in range(size):
        g = g * BASE + units[k]
        power *= BASE
    shingles[0] = _mix(g)
    for j in range(count - size):
        g = g * BASE + units[j + size] - power * units[j]
        shingles[j + 1] = _mix(g)
    return count - size + 1


@kernel
def sign(
    offsets,
    data,
    eights,
    valid,
    folds,
    characters,
    ngram,
    multipliers,
    additions,
    hash_bits,
    num_rows,
    scratch,
    bands,
    sizes,
):
    """Writes the band hashes and the number of shingles of each document.

    Args:
        offsets: int32 (n + 1,), as string_buffers gives them.
        data: uint8.
        eights: data as overlapping uint64.
        valid: bool (n,).
        folds: uint32, one for each code point: 0 separates, else the folded character.
        characters: whether shingles are of characters, not of words.
        ngram: words or characters in a shingle.
        multipliers: odd uint64 (permutations,).
        additions: uint64 (permutations,).
        hash_bits: 32 or 64, the width of a permuted hash.
        num_rows: permutations in a band.
        scratch: folded uint8, the same as overlapping uint64, units uint64, shingles uint64; room
            for twice the bytes of the longest document and PADDING.
        bands: out, uint64 (n, permutations / num_rows); undefined where sizes is 0.
        sizes: out, int32 (n,).
    """
    shingles = scratch[3]
    most = 1
    for n in range(valid.size):
        most = max(most, offsets[n + 1] - offsets[n] + 1)
    low = np.empty(most + LANES, np.uint32)
    # read from 32-bit arrays, or they are multiplied with 64 bits, at a quarter of the speed
    low_multipliers = multipliers.astype(np.uint32)
    low_additions = additions.astype(np.uint32)
    for n in range(valid.size):
        stop = offsets[n + 1] if valid[n] else offsets[n]
        count = _shingles(data, eights, offsets[n], stop, folds, characters, ngram, scratch)
        sizes[n] = count
        for j in range(count):
            low[j] = np.uint32(shingles[j] >> U(32))
        whole = (count + LANES - 1) // LANES * LANES
        for j in range(count, whole):  # repeated, they change no minimum
            low[j] = low[0]
        for band in range(bands.shape[1]):
            h = U(band + 1) * P1
            for row in range(num_rows):
                number = band * num_rows + row
                if hash_bits == 64:
                    wide = ~U(0)
                    for j in range(count):
                        wide = min(wide, multipliers[number] * shingles[j] + additions[number])
                    h = _mix(h ^ wide)
                else:
                    a = low_multipliers[number]
                    b = low_additions[number]
                    least = np.uint32(0xFFFFFFFF)
                    for j in range(whole):
                        least = min(least, np.uint32(a * low[j] + b))
                    h = _mix(h ^ U(least))
            bands[n, band] = h


@kernel
def _sorted_set(shingles, count, counts, ordered, values, place):
    """Writes the different shingles in ascending order from `place` on and returns its end."""
    bits = 0
    while (2 << bits) <= count:
        bits += 1
    shift = U(64 - bits) if bits else U(63)
    buckets = (1 << bits) if bits else 2
    counts[: buckets + 1] = 0
    for j in range(count):
        counts[(shingles[j] >> shift) + U(1)] += 1
    longest = 0
    for bucket in range(buckets):
        longest = max(longest, counts[bucket + 1])
        counts[bucket + 1] += counts[bucket]
    for j in range(count):
        bucket = shingles[j] >> shift
        ordered[counts[bucket]] = shingles[j]
        counts[bucket] += 1
    if longest > LONG_BUCKET:
        start = 0
        for bucket in range(buckets):  # counts now holds where each bucket stops
            stop = counts[bucket]
            if stop - start > LONG_BUCKET:
                ordered[start:stop] = np.sort(ordered[start:stop])
            start = stop
    for j in range(1, count):  # nearly sorted: nothing moves further than its bucket
        value = ordered[j]
        k = j
        while k > 0 and ordered[k - 1] > value:
            ordered[k] = ordered[k - 1]
            k -= 1
        ordered[k] = value
    for j in range(count):
        values[place] = ordered[j]  # and the next one over it, if that is the same
        if j + 1 == count or ordered[j + 1] != ordered[j]:
            place += 1
    return place


@kernel
def shingle_sets(offsets, data, eights, valid, folds, characters, ngram, scratch, stops, values):
    """Writes the set of shingles of each document, ascending, one after the other.

    Args:
        offsets: int32 (n + 1,), as string_buffers gives them.
        data: uint8.
        eights: data as overlapping uint64.
        valid: bool (n,).
        folds: as in `sign`.
        characters: as in `sign`.
        ngram: as in `sign`.
        scratch: as in `sign`.
        stops: out, int64 (n,): where each document's set ends in values.
        values: out, uint64, as many as the documents have bytes and documents together.
    """
    shingles = scratch[3]
    most = 2
    for n in range(valid.size):
        most = max(most, offsets[n + 1] - offsets[n] + 1)
    ordered = np.empty(most, np.uint64)
    counts = np.empty(most + 2, np.int32)
    place = 0
    for n in range(valid.size):
        stop = offsets[n + 1] if valid[n] else offsets[n]
        count = _shingles(data, eights, offsets[n], stop, folds, characters, ngram, scratch)
        place = _sorted_set(shingles, count, counts, ordered, values, place)
        stops[n] = place
