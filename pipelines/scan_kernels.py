"""The compiled part of the scan: bytes in, words, lines, paragraphs and counts out.

ASCII is read eight bytes at a time: bit arithmetic finds the first byte that is white space,
control or not ASCII, and tells letters and digits from punctuation, so a usual word costs one or
two steps instead of one for each byte (2.5 times the speed of a table look-up for each byte). All
other characters are decoded and looked up one by one.

Compiled code here never calls compiled code of another file: numba's disk cache watches only the
kernel's own file and would go on using an old callee.
"""

import numba
import numpy as np

from pipelines.unicode_tables import ALPHA, LINE_END, NOT_SYMBOL, SPACE

kernel = numba.njit(cache=True, nogil=True, error_model="numpy")

U = np.uint64
M1, M2, M3 = U(0x9E3779B185EBCA87), U(0xC2B2AE3D27D4EB4F), U(0x165667B19E3779F9)
ONES = U(0x0101010101010101)
HIGH = ONES * U(0x80)
CR, NEWLINE, BLANK, HASH_SIGN, DASH, FULL_STOP = 13, 10, 32, 35, 45, 46


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
def count_separators(text):
    """Returns how many words and lines there can be at most in UTF-8 text, less one a document.

    A word that is not a document's first follows a separator: ASCII white space or the lead byte
    of a character that may be white space.
    """
    words = 0
    lines = 0
    separated = False
    for i in range(text.size):
        b = text[i]
        blank = (b == BLANK) | ((b >= 9) & (b <= 13)) | ((b >= 28) & (b <= 31))
        separator = blank | (b == 0xC2) | ((b >= 0xE1) & (b <= 0xE3))
        words += separated & (not separator)
        separated = separator
        lines += b == NEWLINE
    return words, lines


@kernel
def graphic_prefix(block):
    """Splits eight bytes at the first one that is white space, control or not ASCII.

    Returns the number of bytes before it (0 to 8) and whether they hold a letter, and a digit.
    """
    # a byte below 0x21 borrows into its own high bit; borrows only spread to later bytes
    marks = ((block - ONES * U(0x21)) | block) & HIGH
    below = ((marks & (~marks + U(1))) >> U(7)) - U(1)
    size = ((below & ONES) * ONES) >> U(56)
    block &= below
    lower = block | ONES * U(0x20)
    alpha = (lower + ONES * U(0x1F)) & ~(lower + ONES * U(0x05)) & HIGH  # a to z
    digit = (block + ONES * U(0x50)) & ~(block + ONES * U(0x46)) & HIGH  # 0 to 9
    return np.int64(size), alpha, digit


@kernel
def split_words(
    data, data8, start, stop, classes, letters, letters8, bounds, hashes, lengths, w, ends, counts
):
    """Appends the words of data[start:stop] to letters, bounds, hashes and lengths.

    ends[e] is (byte, word, code point) of each LINE_END character: where it stands, how many words
    were closed and how many code points stood before it. Returns the next w and the number of ends.
    """
    first_word = w
    k = np.int64(bounds[w])
    e = 0
    extra = 0  # bytes less code points
    non_symbol = 0
    characters = 0
    alpha_words = 0
    i = start
    while i < stop:
        if data[i] == BLANK:
            i += 1
            continue
        code_point, size = decode(data, i, stop)
        kind = classes[code_point]
        if kind & SPACE:
            if kind & LINE_END:
                ends[e, 0] = i
                ends[e, 1] = w
                ends[e, 2] = i - start - extra
                e += 1
            extra += size - 1
            i += size
            continue
        if w + 1 == bounds.size:
            raise ValueError("scan: the text column holds bytes that are not UTF-8")
        begin = k
        extra_before = extra
        alpha = U(0)
        digit = U(0)
        while i < stop:
            if i + 8 <= data.size:
                block = data8[i]
                if stop - i < 8:
                    block &= (U(1) << U(8 * (stop - i))) - U(1)
                letters8[k] = block
                size, has_alpha, has_digit = graphic_prefix(block)
                alpha |= has_alpha
                digit |= has_digit
                k += size
                i += size
                if size == 8:
                    continue
                if i == stop:
                    break
            code_point, size = decode(data, i, stop)
            kind = classes[code_point]
            if kind & SPACE:
                break
            alpha |= U(kind & ALPHA)
            digit |= U(kind & NOT_SYMBOL)
            for j in range(size):
                letters[k + j] = data[i + j]
            extra += size - 1
            k += size
            i += size
        hashes[w] = hash_span(letters, letters8, begin, k)
        length = k - begin - (extra - extra_before)
        lengths[w] = length
        w += 1
        bounds[w] = k
        alpha_words += alpha != 0
        counted = (alpha | digit) != 0
        non_symbol += counted
        characters += length if counted else 0
    counts[0] = stop - start - extra
    counts[1] = non_symbol
    counts[2] = characters
    counts[3] = alpha_words
    return w, e


@kernel
def count_characters(text, ascii_only, counts):
    """Counts hash signs and ellipses: text.count("...") and U+2026 (E2 80 A6)."""
    hashes = 0
    for i in range(text.size):
        hashes += text[i] == HASH_SIGN
    counts[4] = hashes
    triples = 0
    for i in range(text.size - 2):
        triples += (text[i] == FULL_STOP) & (text[i + 1] == FULL_STOP) & (text[i + 2] == FULL_STOP)
    ellipses = triples
    if triples:  # they overlap in a longer run
        ellipses = 0
        dots = 0
        for i in range(text.size):
            dots = dots + 1 if text[i] == FULL_STOP else 0
            if dots == 3:
                ellipses += 1
                dots = 0
    if not ascii_only:
        for i in range(text.size - 2):
            ellipses += (text[i] == 0xE2) & (text[i + 1] == 0x80) & (text[i + 2] == 0xA6)
    counts[5] = ellipses


@kernel
def count_lines(data, start, stop, letters, bounds, first, last, line_ends, num_ends, counts):
    """Counts the lines of str.splitlines, those with a bullet and those with an ellipsis."""
    lines = 0
    bullets = 0
    ellipses = 0
    word = first
    line_start = start
    for e in range(num_ends + 1):
        if e < num_ends:
            at = np.int64(line_ends[e, 0])
            next_word = np.int64(line_ends[e, 1])
            b = data[at]
            size = 1 if b < 128 else 2 if b < 0xE0 else 3
            if b == NEWLINE and at > start and data[at - 1] == CR:
                line_start = at + 1
                continue
        else:
            if line_start == stop:
                break
            at, next_word, size = stop, last, 0
        line_start = at + size
        lines += 1
        if next_word > word:
            begin = np.int64(bounds[word])
            end = np.int64(bounds[next_word])
            bullets += starts_with_bullet(letters, begin, end)
            ellipses += ends_with_ellipsis(letters, np.int64(bounds[next_word - 1]), end)
        word = next_word
    counts[6] = lines
    counts[7] = bullets
    counts[8] = ellipses


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


@kernel
def split_lines(
    data, data8, start, stop, line_ends, num_ends, code_points, hashes, lengths, spans, k
):
    """Notes the elements of re.split("\\n+", text) from line k on; returns the next k."""
    line = start
    line_code_points = 0
    for e in range(num_ends + 1):
        if e < num_ends:
            at = np.int64(line_ends[e, 0])
            if data[at] != NEWLINE:
                continue
            before = np.int64(line_ends[e, 2])
        else:
            at = stop
            before = code_points
        if at > line or at == start or at == stop:
            hashes[k] = hash_span(data, data8, line, at)
            lengths[k] = before - line_code_points
            spans[k, 0] = line - start
            spans[k, 1] = at - start
            k += 1
        line = at + 1
        line_code_points = before + 1
    return k


@kernel
def stripped_span(data, start, stop, classes):
    """Returns the bytes (first, last) that text.strip() leaves and the code points cut off there."""
    before = 0
    while start < stop:
        code_point, size = decode(data, start, stop)
        if not classes[code_point] & SPACE:
            break
        start += size
        before += 1
    after = 0
    while stop > start:
        i = stop - 1
        while i > start and data[i] & 0xC0 == 0x80:
            i -= 1
        code_point, _ = decode(data, i, stop)
        if not classes[code_point] & SPACE:
            break
        stop = i
        after += 1
    return start, stop, before, after


@kernel
def split_paragraphs(
    data, data8, start, stop, classes, lengths, spans, first, last, hashes, sizes, p
):
    """Notes the elements of re.split("\\n{2,}", text.strip()) from p on; returns the next p.

    A paragraph is a run of the document's lines (first to last) with one newline between them.
    """
    left, right, before, after = stripped_span(data, start, stop, classes)
    if left == right:
        hashes[p] = hash_span(data, data8, left, left)
        sizes[p] = 0
        return p + 1
    begin, begin_code_point = left, before
    end, end_code_point = left, before
    previous_stop = start
    code_point = 0
    for line in range(first, last):
        line_start = start + spans[line, 0]
        line_stop = start + spans[line, 1]
        gap = line_start - previous_stop
        code_point += gap
        if line_stop > left and line_start < right:
            if gap > 1 and line_start > left:
                hashes[p] = hash_span(data, data8, begin, end)
                sizes[p] = end_code_point - begin_code_point
                p += 1
                begin, begin_code_point = line_start, code_point
            end = line_stop
            end_code_point = code_point + lengths[line]
        code_point += lengths[line]
        previous_stop = line_stop
    # the code points behind the stripped end are all in lines that were left out, but for the last
    hashes[p] = hash_span(data, data8, begin, right)
    sizes[p] = code_point - after - begin_code_point
    return p + 1


@kernel
def scan_documents(
    data,
    data8,
    classes,
    offsets,
    valid,
    letters,
    letters8,
    bounds,
    word_hash,
    word_length,
    line_hash,
    line_length,
    line_spans,
    paragraph_hash,
    paragraph_length,
    document_offsets,
    counts,
):
    """Scans all documents; document_offsets (n + 1, 3) counts words, lines and paragraphs."""
    n = offsets.size - 1
    largest = 0
    for d in range(n):
        largest = max(largest, np.int64(offsets[d + 1] - offsets[d]))
    ends = np.empty((largest, 3), np.int32)
    w = line = p = 0
    bounds[0] = 0
    for d in range(n):
        if valid[d]:
            start = np.int64(offsets[d])
            stop = np.int64(offsets[d + 1])
            row = counts[d]
            first = w
            w, num_ends = split_words(
                data, data8, start, stop, classes, letters, letters8, bounds, word_hash, word_length,
                w, ends, row,
            )
            code_points = np.int64(row[0])
            count_characters(data[start:stop], code_points == stop - start, row)
            count_lines(data, start, stop, letters, bounds, first, w, ends, num_ends, row)
            first = line
            line = split_lines(
                data, data8, start, stop, ends, num_ends, code_points, line_hash, line_length,
                line_spans, line,
            )
            p = split_paragraphs(
                data, data8, start, stop, classes, line_length, line_spans, first, line,
                paragraph_hash, paragraph_length, p,
            )
        document_offsets[d + 1, 0] = w
        document_offsets[d + 1, 1] = line
        document_offsets[d + 1, 2] = p
