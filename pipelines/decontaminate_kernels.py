"""Compiled search for known n-grams: folded words of Arrow text, a rolling hash, a table.

One pass over the bytes hashes each word (one multiplication a byte), a second over the words rolls
the n-gram hash and asks one bit of a small filter; nearly all of a clean text ends there.
"""

from typing import NamedTuple

import numba
import numpy as np

kernel = numba.njit(cache=True, nogil=True, error_model="numpy")

U = np.uint64
SINGLE = np.uint32(1 << 31)
"""Flag of a code point that is a word of its own; the one of pipelines.dedup.folds."""
DIGIT = np.uint32(1 << 30)
"""Flag of a digit where digits are folded: a whole number is then one symbol."""
NUMBER = np.uint32(ord("0")) | DIGIT

P1, P2, P3 = U(0x9E3779B185EBCA87), U(0xC2B2AE3D27D4EB4F), U(0x165667B19E3779F9)
WORD_START = U(0x51ED270B153A6A01)
ROLL = U(0xD6E8FEB86659FD93)


class Table(NamedTuple):
    """The known n-grams, as kernels read them."""

    folds: np.ndarray
    """uint32, one for each code point: 0 separates, else the folded character."""
    size: int
    """Words in an n-gram."""
    bits: np.ndarray
    """uint64 bit set, a power of two: whether an n-gram may be there."""
    hashes: np.ndarray
    """uint64 (slots,), a power of two, open addressing; 0 is empty."""
    numbers: np.ndarray
    """int32 (slots,): the n-gram's number."""


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
def _hash_words(data, start, stop, folds, words, starts, stops):
    """Writes hash, first byte and end of each word and returns how many there are.

    Folded digits that follow each other are one, also across a point or comma between two.
    """
    count = 0
    h = WORD_START
    inside, digit = False, False
    i = start
    while i < stop:
        at = i
        b = data[i]
        if b < 0x80:
            folded = folds[b]
            i += 1
        else:
            code_point, width = _code_point(data, i, stop)
            folded = folds[code_point]
            i += width
        if folded == 0 or folded & SINGLE:
            point = digit and (b == 0x2E or b == 0x2C) and i < stop
            if point and data[i] >= 0x30 and data[i] <= 0x39:
                continue
            if inside:
                words[count] = _mix(h)
                stops[count] = at
                count += 1
                h = WORD_START
                inside, digit = False, False
            if folded:
                words[count] = _mix((WORD_START ^ U(folded)) * P1)
                starts[count], stops[count] = at, i
                count += 1
            continue
        if not inside:
            starts[count] = at
            inside = True
        if folded & DIGIT and digit:
            continue
        digit = folded & DIGIT != 0
        h = (h ^ U(folded)) * P1
    if inside:
        words[count] = _mix(h)
        stops[count] = stop
        count += 1
    return count


@kernel
def _top_power(size):
    """Returns what the word that leaves the rolling hash has been multiplied with."""
    power = U(1)
    for _ in range(size - 1):
        power *= ROLL
    return power


@kernel
def _log2(size):
    bits = U(0)
    while size > 1:
        size >>= 1
        bits += U(1)
    return bits


@kernel
def gram_hashes(offsets, data, valid, folds, size, hashes, numbers, stops, words):
    """Writes the hashes of the n-grams of each text, in order, one text after the other.

    Args:
        offsets: int32 (n + 1,), as string_buffers gives them.
        data: uint8.
        valid: bool (n,).
        folds: as in Table.
        size: words in an n-gram; a text of fewer words has none.
        hashes: out, uint64, as many as there are bytes and texts together.
        numbers: out, int32, likewise: how many words of each n-gram are folded numbers.
        stops: out, int64 (n,): where each text's n-grams end in hashes.
        words: out, int32 (n,): how many words each text has.
    """
    most = 1
    for n in range(valid.size):
        most = max(most, offsets[n + 1] - offsets[n] + 1)
    found = np.empty(most, np.uint64)
    starts = np.empty(most, np.int32)
    ends = np.empty(most, np.int32)
    power = _top_power(size)
    number = _mix((WORD_START ^ U(NUMBER)) * P1)
    place = 0
    for n in range(valid.size):
        stop = offsets[n + 1] if valid[n] else offsets[n]
        count = _hash_words(data, offsets[n], stop, folds, found, starts, ends)
        words[n] = count
        h = U(0)
        num_numbers = 0
        for j in range(count):
            h = h * ROLL + found[j]
            num_numbers += found[j] == number
            if j >= size - 1:
                hashes[place] = h if h else U(1)
                numbers[place] = num_numbers
                place += 1
                h -= found[j - size + 1] * power
                num_numbers -= found[j - size + 1] == number
        stops[n] = place


@kernel
def fill_table(hashes, bits, slots, numbers):
    """Puts the n-grams, all different, into the bit set and the table, both zero before.

    Args:
        hashes: uint64 (n-grams,).
        bits: out, as in Table.
        slots: out, as hashes in Table.
        numbers: out, as in Table.
    """
    shift = U(64) - _log2(bits.size * 64)
    mask = U(slots.size - 1)
    for i in range(hashes.size):
        mixed = hashes[i] * P1
        bit = mixed >> shift
        bits[bit >> U(6)] |= U(1) << (bit & U(63))
        slot = _mix(hashes[i]) & mask
        while slots[slot]:
            slot = (slot + U(1)) & mask
        slots[slot] = hashes[i]
        numbers[slot] = i


@kernel
def _number(key, table):
    """Returns the number of a known n-gram, or -1."""
    mask = U(table.hashes.size - 1)
    slot = _mix(key) & mask
    while table.hashes[slot] and table.hashes[slot] != key:
        slot = (slot + U(1)) & mask
    return table.numbers[slot] if table.hashes[slot] else np.int32(-1)


@kernel
def find_grams(offsets, data, valid, table, stops):
    """Returns where known n-grams are: int32 (found, 4), number, word, first byte and end.

    Words and bytes count from the beginning of the document.

    Args:
        offsets: int32 (n + 1,), as string_buffers gives them.
        data: uint8.
        valid: bool (n,).
        table: what to look for.
        stops: out, int64 (n,): where each document's n-grams end.
    """
    most = 1
    for n in range(valid.size):
        most = max(most, offsets[n + 1] - offsets[n] + 1)
    words = np.empty(most, np.uint64)
    starts = np.empty(most, np.int32)
    ends = np.empty(most, np.int32)
    size = table.size
    power = _top_power(size)
    shift = U(64) - _log2(table.bits.size * 64)
    found = np.empty((1024, 4), np.int32)
    count = 0
    for n in range(valid.size):
        begin = offsets[n]
        stop = offsets[n + 1] if valid[n] else begin
        num_words = _hash_words(data, begin, stop, table.folds, words, starts, ends)
        h = U(0)
        for j in range(num_words):
            h = h * ROLL + words[j]
            if j < size - 1:
                continue
            first = j - size + 1
            bit = (h * P1) >> shift
            if (table.bits[bit >> U(6)] >> (bit & U(63))) & U(1):
                number = _number(h if h else U(1), table)
                if number >= 0:
                    if count == found.shape[0]:
                        larger = np.empty((2 * count, 4), np.int32)
                        larger[:count] = found
                        found = larger
                    found[count, 0], found[count, 1] = number, first
                    found[count, 2], found[count, 3] = starts[first] - begin, ends[j] - begin
                    count += 1
            h -= words[first] * power
        stops[n] = count
    return found[:count]
