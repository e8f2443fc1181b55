"""The compiled part of the scan: bytes in, words, lines, paragraphs and counts out.

The inner loop looks each byte up in a table and writes without a branch: whether a word has ended
is a number added to an index. A branch there is mispredicted at every word border and would cost
more than everything else. Only two rare things branch: a byte that is not ASCII, and an event (a
line end, a full stop, ...), which is noted and looked at later, outside the loop.

Compiled code here never calls compiled code of another file: numba's disk cache watches only the
kernel's own file and would go on using an old callee.
"""

import numba
import numpy as np

from pipelines.unicode_tables import ALPHA, EVENT, LINE_END, NOT_SYMBOL, SPACE

kernel = numba.njit(cache=True, nogil=True, error_model="numpy")

U = np.uint64
M1, M2, M3 = U(0x9E3779B185EBCA87), U(0xC2B2AE3D27D4EB4F), U(0x165667B19E3779F9)
ONE_IN_EACH_BYTE = U(0x0101010101010101)
FF, CR, NEWLINE, HASH_SIGN, DASH, FULL_STOP = 12, 13, 10, 35, 45, 46


@kernel
def hash_span(data, data8, start, stop):
    """Returns the 64-bit hash of data[start:stop]; may be called with any span.

    Eight bytes a step: two multiplications and a rotation, so every bit of the state depends on
    every byte before. Spans of one length up to eight bytes never collide (each step is bijective).
    """
    h = U(stop - start) * M3
    i = start
    while i + 8 <= stop:
        h = (h ^ data8[i]) * M1
        h = ((h << U(29)) | (h >> U(35))) * M2
        i += 8
    if i < stop:
        rest = U(64 - 8 * (stop - i))
        if i + 8 <= data.size:
            block = data8[i] << rest
        else:
            block = U(0)
            for j in range(i, stop):
                block = (block >> U(8)) | (U(data[j]) << U(56))
        h = (h ^ block) * M1
        h = ((h << U(29)) | (h >> U(35))) * M2
    h ^= h >> U(32)
    h *= M3
    return h ^ (h >> U(29))


@kernel
def decode(data, i, stop):
    """Returns the code point at byte i of UTF-8 text and its size; never reads past stop.

    Bytes that are no UTF-8 (a string array should have none) come out as some code point.
    """
    b = np.int64(data[i])
    if b >= 0xF0 and i + 3 < stop:
        tail = (np.int64(data[i + 1]) & 63) << 12 | (np.int64(data[i + 2]) & 63) << 6
        return min((b & 7) << 18 | tail | np.int64(data[i + 3]) & 63, 0x10FFFF), 4
    if b >= 0xE0 and i + 2 < stop:
        return (b & 15) << 12 | (np.int64(data[i + 1]) & 63) << 6 | np.int64(data[i + 2]) & 63, 3
    if b >= 0xC0 and i + 1 < stop:
        return (b & 31) << 6 | np.int64(data[i + 1]) & 63, 2
    return b, 1


@kernel
def split_words(data, start, stop, classes, letters, bounds, flags, events, k, w):
    """Copies the words of data[start:stop] to letters[k:] and notes their bounds from word w on.

    flags[j] is the union of the classes in the document's j-th word. events[e] is (byte, word,
    code point): where an EVENT character stands, the words closed and the code points before it.
    Returns the next k and w, the number of events and the number of code points.
    """
    first = w
    inside = 0
    union = 0
    e = 0
    code_points = 0
    i = start
    while i < stop:
        b = data[i]
        if b < 128:
            size = 1
            kind = np.int64(classes[b])
            letters[k] = b
        else:
            code_point, size = decode(data, i, stop)
            kind = np.int64(classes[code_point])
            for j in range(size):
                letters[k + j] = data[i + j]
        space = kind & SPACE
        bounds[w + 1] = k
        flags[w - first] = union
        w += inside & space
        inside = 1 - space
        union = (union | kind) & -inside
        k += size & -inside
        if kind & EVENT:
            events[e, 0] = i
            events[e, 1] = w
            events[e, 2] = code_points
            e += 1
        code_points += 1
        i += size
    bounds[w + 1] = k
    flags[w - first] = union
    return k, w + inside, e, code_points


@kernel
def hash_words(letters, letters8, bounds, first, last, flags, hashes, lengths, counts):
    """Fills hashes and lengths of words first to last and adds up the word counts."""
    non_symbol = 0
    characters = 0
    alpha = 0
    for w in range(first, last):
        start = np.int64(bounds[w])
        stop = np.int64(bounds[w + 1])
        h = U(stop - start) * M3
        continuation = U(0)
        i = start
        while i < stop:
            block = letters8[i]
            if stop - i < 8:
                block <<= U(64 - 8 * (stop - i))
            # in each byte: bit 7 set and bit 6 not, that is 10xxxxxx
            marks = (block >> U(7)) & ~(block >> U(6)) & ONE_IN_EACH_BYTE
            continuation += (marks * ONE_IN_EACH_BYTE) >> U(56)
            h = (h ^ block) * M1
            h = ((h << U(29)) | (h >> U(35))) * M2
            i += 8
        h ^= h >> U(32)
        h *= M3
        hashes[w] = h ^ (h >> U(29))
        length = stop - start - np.int64(continuation)
        lengths[w] = length
        kind = np.int64(flags[w - first])
        counts_it = (kind // NOT_SYMBOL) & 1
        non_symbol += counts_it
        characters += length & -counts_it
        alpha += (kind // ALPHA) & 1
    counts[1] = non_symbol
    counts[2] = characters
    counts[3] = alpha


@kernel
def count_events(data, start, stop, letters, bounds, first, last, events, num_events, counts):
    """Counts hash signs, ellipses, and the lines of str.splitlines with a bullet or an ellipsis."""
    hashes = 0
    ellipses = 0
    lines = 0
    bullets = 0
    ends = 0
    dots = 0
    previous = -1
    word = first
    line_start = start
    for e in range(num_events + 1):
        at = np.int64(events[e, 0]) if e < num_events else stop
        b = data[at] if at < stop else NEWLINE
        if b == FULL_STOP:
            dots = dots + 1 if previous == at - 1 else 1
            previous = at
            if dots == 3:
                ellipses += 1
                dots = 0
        elif b == HASH_SIGN:
            hashes += 1
        elif b == 0xE2 and data[at + 2] == 0xA6:
            ellipses += 1
        else:
            if b == NEWLINE and at > start and data[at - 1] == CR and at < stop:
                line_start = at + 1
                continue
            if at == stop and line_start == stop:
                continue
            lines += 1
            size = 1 if b < 128 else 2 if b < 0xE0 else 3
            line_start = at + size
            next_word = np.int64(events[e, 1]) if e < num_events else last
            if next_word > word:
                j = np.int64(bounds[word])
                k = np.int64(bounds[next_word])
                bullets += starts_with_bullet(letters, j, k)
                ends += ends_with_ellipsis(letters, np.int64(bounds[next_word - 1]), k)
            word = next_word
    counts[4] = hashes
    counts[5] = ellipses
    counts[6] = lines
    counts[7] = bullets
    counts[8] = ends


@kernel
def starts_with_bullet(letters, start, stop):
    """True for "-" and U+2022 (E2 80 A2)."""
    if letters[start] == DASH:
        return True
    if stop - start < 3 or letters[start] != 0xE2:
        return False
    return letters[start + 1] == 0x80 and letters[start + 2] == 0xA2


@kernel
def ends_with_ellipsis(letters, start, stop):
    """True for "..." and U+2026 (E2 80 A6)."""
    if stop - start < 3:
        return False
    a, b, c = letters[stop - 3], letters[stop - 2], letters[stop - 1]
    return (a == b == c == FULL_STOP) or (a == 0xE2 and b == 0x80 and c == 0xA6)
