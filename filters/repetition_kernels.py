"""The compiled part of the repetition rules: word, line and paragraph hashes in, counts out.

A word n-gram can only be repeated where its first and its last n - 1 words are, so each order looks
only at the places that the order before found more than once: in real text about one table look-up
for each word in place of nine. Duplicated 5- to 10-grams are compared as datatrove does, as words
joined without a space; there ("ab", "c") equals ("a", "bc") and the order before proves nothing, so
growing prefixes of the letters take its place. Both save time only: the counts are exact.

Compiled code here uses no constant and calls no compiled code of another file: numba's disk cache
watches only the kernel's own file and would go on using the old ones.
"""

import numpy as np

from pipelines.kernel import kernel

U = np.uint64
M1, M2, M3 = U(0x9E3779B185EBCA87), U(0xC2B2AE3D27D4EB4F), U(0x165667B19E3779F9)
LOW = U(0xFFFFFFFF)
PREFIXES = (16, 24, 40, 64, 96)
UNLIMITED = 1 << 30


@kernel
def mix(a, b):
    """Returns a 64-bit hash of the ordered pair; bijective in each argument."""
    h = a * M1 + b
    h = (h ^ (h >> U(32))) * M2
    return h ^ (h >> U(29))


@kernel
def clear_table(table, num_keys):
    """Empties as many slots of the table as num_keys need at half load; returns the index mask."""
    size = 16
    while size < 2 * num_keys:
        size *= 2
    table[:size] = 0
    return U(size - 1)


@kernel
def find_or_insert(table, mask, keys, index):
    """Returns the smallest index inserted before whose key is equal to keys[index], or -1.

    A slot holds the key's upper half and the index + 1, so most look-ups read one cache line.
    """
    key = keys[index]
    upper = key & ~LOW
    slot = key & mask
    while True:
        entry = table[slot]
        if entry == 0:
            table[slot] = upper | U(index + 1)
            return -1
        if entry & ~LOW == upper:
            other = np.int64(entry & LOW) - 1
            if keys[other] == key:
                return other
        slot = (slot + U(1)) & mask


@kernel
def count_duplicates(hashes, lengths, table):
    """Returns how many elements occurred before, and their code points."""
    mask = clear_table(table, hashes.size)
    duplicates = 0
    characters = 0
    for i in range(hashes.size):
        if find_or_insert(table, mask, hashes, i) >= 0:
            duplicates += 1
            characters += lengths[i]
    return duplicates, characters


@kernel
def keep_repeated(keys, positions, num, once, twice):
    """Keeps the positions whose key occurs twice, and a few more; returns their number.

    Two bit sets of 16 to 32 bits a key, small enough for the first cache level: without a branch,
    five times as fast as a table look-up. 3 to 6 in a hundred unrepeated keys are kept.
    """
    size = 1
    while size < num // 4:
        size *= 2
    mask = U(size - 1)
    once[:size] = 0
    twice[:size] = 0
    for c in range(num):
        key = keys[positions[c]]
        slot = (key >> U(6)) & mask
        bit = U(1) << (key & U(63))
        seen = once[slot]
        twice[slot] |= seen & bit
        once[slot] = seen | bit
    kept = 0
    for c in range(num):
        j = positions[c]
        key = keys[j]
        positions[kept] = j
        kept += np.int64((twice[(key >> U(6)) & mask] >> (key & U(63))) & U(1))
    return kept


@kernel
def count_top(words, lengths, table, once, twice, grams, active, seen, level, out):
    """Fills out with count times length of the most frequent 2-, 3- and 4-gram, joined by spaces.

    Of several the one that occurs first counts, as in Counter.most_common.
    """
    n = words.size
    num = max(n - 1, 0)
    for j in range(num):
        grams[j] = mix(words[j], words[j + 1])
        active[j] = j
        level[j] = 0
    level[num] = 0
    level[n] = 0
    num = keep_repeated(grams, active, num, once, twice)
    for order in range(2, 5):
        if n < order:
            out[order - 2] = 0
            continue
        mask = clear_table(table, num)
        best = 0
        best_count = 1
        for a in range(num):
            j = np.int64(active[a])
            if order > 2:
                grams[j] = mix(grams[j], words[j + order - 1])
            first = find_or_insert(table, mask, grams, j)
            if first < 0:
                seen[j] = 1
                continue
            count = seen[first] + 1
            seen[first] = count
            level[first] = order
            level[j] = order
            if count > best_count or (count == best_count and first < best):
                best = first
                best_count = count
        characters = order - 1
        for j in range(best, best + order):
            characters += lengths[j]
        out[order - 2] = characters * best_count
        kept = 0
        for a in range(num):
            j = active[a]
            active[kept] = j
            kept += (level[j] == order) & (level[j + 1] == order)
        num = kept


@kernel
def find_candidates(letters8, bounds, n, once, twice, keys, limit, candidates):
    """Fills candidates with the words where a 5- to 10-gram may begin that occurs twice.

    limit[j] is the size in bytes from which on an n-gram at word j cannot: where the text from
    there on occurs only once, compared at growing PREFIXES. Returns the number of candidates.
    """
    stop = np.int64(bounds[n])
    for j in range(n - 4):
        limit[j] = PREFIXES[0]
        candidates[j] = j
    num = n - 4
    size = 0
    for p in range(len(PREFIXES)):
        size = PREFIXES[p]
        while num and bounds[candidates[num - 1]] + size > stop:
            num -= 1
        for c in range(num):
            j = np.int64(candidates[c])
            start = np.int64(bounds[j])
            if p == 0:
                keys[j] = mix(letters8[start], letters8[start + 8] * M3)
            else:
                for i in range(start + PREFIXES[p - 1], start + size, 8):
                    keys[j] = mix(keys[j], letters8[i])
        num = keep_repeated(keys, candidates, num, once, twice)
        larger = PREFIXES[p + 1] if p + 1 < len(PREFIXES) else UNLIMITED
        kept = 0
        for c in range(num):
            j = candidates[c]
            limit[j] = larger
            candidates[kept] = j
            kept += bounds[min(j + 10, n)] - bounds[j] >= larger
        num = kept
    num = 0
    for j in range(n - 4):
        candidates[num] = j
        num += bounds[j + 5] - bounds[j] < limit[j]
    return num


@kernel
def hash_letters(letters8, start, stop):
    """Returns a 64-bit hash of the letters from start to stop."""
    h = U(stop - start) * M3
    i = start
    while i + 8 <= stop:
        h = (h ^ letters8[i]) * M1
        h = (h << U(29)) | (h >> U(35))
        i += 8
    if i < stop:
        h ^= letters8[i] << U(64 - 8 * (stop - i))
    return mix(h, M3)


@kernel
def count_duplicated(letters8, bounds, lengths, table, keys, limit, candidates, num, out):
    """Fills out with the code points of 5- to 10-grams that occurred before.

    After such an n-gram its words are skipped.
    """
    n = lengths.size
    for order in range(5, 11):
        mask = clear_table(table, num)
        characters = 0
        free = 0
        kept = 0
        for c in range(num):
            j = np.int64(candidates[c])
            if j > n - order:
                break
            start, stop = np.int64(bounds[j]), np.int64(bounds[j + order])
            if stop - start >= limit[j]:
                continue
            candidates[kept] = j
            kept += 1
            if j < free:
                continue
            keys[j] = hash_letters(letters8, start, stop)
            if find_or_insert(table, mask, keys, j) >= 0:
                for i in range(j, j + order):
                    characters += lengths[i]
                free = j + order
        out[order - 5] = characters
        num = kept


@kernel
def count_repetitions(
    word_offsets,
    word_hash,
    word_length,
    word_bounds,
    letters8,
    line_offsets,
    line_hash,
    line_length,
    paragraph_offsets,
    paragraph_hash,
    paragraph_length,
    out,
):
    """Fills a row of 13 counts for each document, in the order of GopherRepetition.adds."""
    documents = word_offsets.size - 1
    largest = 0
    longest = 0
    for d in range(documents):
        largest = max(largest, word_offsets[d + 1] - word_offsets[d])
        longest = max(longest, line_offsets[d + 1] - line_offsets[d])
    size = 16
    while size < 2 * max(largest, longest):
        size *= 2
    table = np.empty(size, np.uint64)
    once = np.empty(size // 4, np.uint64)
    twice = np.empty(size // 4, np.uint64)
    keys = np.empty(largest, np.uint64)
    active = np.empty(largest + 1, np.int32)
    seen = np.empty(largest, np.int32)
    level = np.empty(largest + 1, np.uint8)
    for d in range(documents):
        row = out[d]
        a, b = paragraph_offsets[d], paragraph_offsets[d + 1]
        row[0], row[1] = count_duplicates(paragraph_hash[a:b], paragraph_length[a:b], table)
        a, b = line_offsets[d], line_offsets[d + 1]
        row[2], row[3] = count_duplicates(line_hash[a:b], line_length[a:b], table)
        a, b = word_offsets[d], word_offsets[d + 1]
        words = word_hash[a:b]
        lengths = word_length[a:b]
        count_top(words, lengths, table, once, twice, keys, active, seen, level, row[4:7])
        if b - a < 5:
            continue
        bounds = word_bounds[a : b + 1]
        num = find_candidates(letters8, bounds, b - a, once, twice, keys, seen, active)
        count_duplicated(letters8, bounds, lengths, table, keys, seen, active, num, row[7:])
