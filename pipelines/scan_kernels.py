"""The compiled part of the scan: bytes in, words, lines, paragraphs and counts out.

ASCII is read eight bytes at a time: bit arithmetic finds the first byte that is white space,
control or not ASCII, and tells letters and digits from punctuation, so a usual word costs one or
two steps instead of one for each byte (300 MB/s a core with hashing; a table look-up for each byte
made 170). All other characters are decoded and looked up one by one.

Compiled code here uses no constant and calls no compiled code of another file: numba's disk cache
watches only the kernel's own file and would go on using the old ones.
"""

from typing import NamedTuple

import numpy as np

from pipelines.kernel import kernel

U = np.uint64
M1, M2, M3 = U(0x9E3779B185EBCA87), U(0xC2B2AE3D27D4EB4F), U(0x165667B19E3779F9)
ONES = U(0x0101010101010101)
HIGH = ONES * U(0x80)
NEWLINE, CR, BLANK, DASH, FULL_STOP = 10, 13, 32, 45, 46

# Classes of a code point; pipelines.unicode_tables has the table.
SPACE = 1  # str.isspace: what str.split and str.strip take for white space
LINE_END = 2  # ends a line for str.splitlines; all of these are white space too
ALPHA = 4  # str.isalpha
NOT_SYMBOL = 8  # not in datatrove's PUNCTUATION_SET: counts in Gopher's word statistics

CODE_POINTS, NON_SYMBOL_WORDS, NON_SYMBOL_CHARACTERS, ALPHA_WORDS = range(4)
TEXT_LINES, BULLET_LINES, ELLIPSIS_LINES = range(4, 7)
NUM_COUNTS = 7


class Text(NamedTuple):
    """The input: bytes, the same eight at a time, and the classes of code points."""

    data: np.ndarray
    data8: np.ndarray
    classes: np.ndarray


class Words(NamedTuple):
    """Word w is letters[bounds[w]:bounds[w + 1]]."""

    letters: np.ndarray
    letters8: np.ndarray
    bounds: np.ndarray
    hashes: np.ndarray
    lengths: np.ndarray


class Lines(NamedTuple):
    """Lines; spans are start and stop within the document."""

    hashes: np.ndarray
    lengths: np.ndarray
    spans: np.ndarray


class Paragraphs(NamedTuple):
    """Paragraphs."""

    hashes: np.ndarray
    lengths: np.ndarray


@kernel
def step(h, block):
    """Takes eight bytes into a hash; bijective in each argument."""
    h = (h ^ block) * M1
    return ((h << U(29)) | (h >> U(35))) * M2


@kernel
def finish(h):
    """Returns the hash of a state, bijective."""
    h ^= h >> U(32)
    h *= M3
    return h ^ (h >> U(29))


@kernel
def low_bytes(n):
    """Returns a mask of the n low bytes, n from 0 to 7."""
    return (U(1) << U(8 * n)) - U(1)


@kernel
def hash_span(data, data8, start, stop):
    """Returns the 64-bit hash of data[start:stop].

    Eight bytes a step, the last one filled up with zeros, the length in the first state. Spans of
    one length up to eight bytes never collide.
    """
    h = U(stop - start) * M3
    i = start
    while i + 8 <= stop:
        h = step(h, data8[i])
        i += 8
    if i < stop:
        if i + 8 <= data.size:
            block = data8[i] & low_bytes(stop - i)
        else:
            block = U(0)
            for j in range(stop - 1, i - 1, -1):
                block = (block << U(8)) | U(data[j])
        h = step(h, block)
    return finish(h)


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
def graphic_prefix(block):
    """Splits eight bytes at the first one that is white space, control or not ASCII.

    Returns the number of bytes before it (0 to 8), these bytes, and bits that are not 0 if they
    hold a letter, and a digit.
    """
    # a byte below 0x21 borrows into its own high bit; borrows only spread to later bytes
    marks = ((block - ONES * U(0x21)) | block) & HIGH
    below = ((marks & (~marks + U(1))) >> U(7)) - U(1)
    size = ((below & ONES) * ONES) >> U(56)
    block &= below
    lower = block | ONES * U(0x20)
    alpha = (lower + ONES * U(0x1F)) & ~(lower + ONES * U(0x05)) & HIGH  # a to z
    digit = (block + ONES * U(0x50)) & ~(block + ONES * U(0x46)) & HIGH  # 0 to 9
    return np.int64(size), block, alpha, digit


@kernel
def split_words(text, start, stop, words, w, ends, counts):
    """Notes the words of data[start:stop] from word w on.

    ends[e] is (byte, word, code point) of each LINE_END character: where it stands, how many words
    were closed and how many code points stood before it. Returns the next w and the number of ends.
    """
    data, data8, classes = text
    letters, letters8, bounds, hashes, lengths = words
    k = np.int64(bounds[w])
    e = 0
    extra = 0  # bytes less code points
    non_symbol = 0
    characters = 0
    alpha_words = 0
    i = start
    while i < stop:
        b = data[i]
        if b == BLANK:
            i += 1
            continue
        if b < BLANK or b > 0x7F:
            code_point, size = decode(data, i, stop)
            kind = classes[code_point]
            if kind & SPACE:
                if kind & LINE_END and e < len(ends):
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
        first_block = U(0)
        alpha = U(0)
        digit = U(0)
        while i < stop:
            if data[i] < 0x80 and i + 8 <= data.size:
                block = data8[i]
                if stop - i < 8:
                    block &= low_bytes(stop - i)
                letters8[k] = block
                size, block, has_alpha, has_digit = graphic_prefix(block)
                if k == begin:
                    first_block = block
                alpha |= has_alpha
                digit |= has_digit
                k += size
                i += size
                if size == 8:
                    continue
                if i == stop or data[i] == BLANK:
                    break
            code_point, size = decode(data, i, stop)
            kind = classes[code_point]
            if kind & SPACE:
                break
            alpha |= U(kind & ALPHA)
            digit |= U(kind & NOT_SYMBOL)
            for j in range(size):
                letters[k + j] = data[i + j]
            first_block = U(0)
            extra += size - 1
            k += size
            i += size
        if first_block and k - begin <= 8:
            hashes[w] = finish(step(U(k - begin) * M3, first_block))
        else:
            hashes[w] = hash_span(letters, letters8, begin, k)
        length = k - begin - (extra - extra_before)
        lengths[w] = length
        w += 1
        bounds[w] = k
        alpha_words += alpha != 0
        counted = (alpha | digit) != 0
        non_symbol += counted
        characters += length if counted else 0
    counts[CODE_POINTS] = stop - start - extra
    counts[NON_SYMBOL_WORDS] = non_symbol
    counts[NON_SYMBOL_CHARACTERS] = characters
    counts[ALPHA_WORDS] = alpha_words
    return w, e


@kernel
def count_lines(data, start, stop, words, first, last, line_ends, num_ends, counts):
    """Counts the lines of str.splitlines, those with a bullet and those with an ellipsis."""
    letters, bounds = words.letters, words.bounds
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
    counts[TEXT_LINES] = lines
    counts[BULLET_LINES] = bullets
    counts[ELLIPSIS_LINES] = ellipses


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
def split_lines(text, start, stop, line_ends, num_ends, code_points, lines, k):
    r"""Notes the elements of re.split("\n+", text) from line k on; returns the next k."""
    hashes, lengths, spans = lines
    line = start
    line_code_points = 0
    for e in range(num_ends + 1):
        if e < num_ends:
            at = np.int64(line_ends[e, 0])
            if text.data[at] != NEWLINE:
                continue
            before = np.int64(line_ends[e, 2])
        else:
            at = stop
            before = code_points
        if at > line or at in (start, stop):
            hashes[k] = hash_span(text.data, text.data8, line, at)
            lengths[k] = before - line_code_points
            spans[k, 0] = line - start
            spans[k, 1] = at - start
            k += 1
        line = at + 1
        line_code_points = before + 1
    return k


@kernel
def stripped_span(text, start, stop):
    """Returns the span that text.strip() leaves and the code points cut off at both ends."""
    data, _, classes = text
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
def split_paragraphs(text, start, stop, lines, first, last, paragraphs, p):
    r"""Notes the elements of re.split("\n{2,}", text.strip()) from p on; returns the next p.

    A paragraph is a run of the document's lines (first to last) with one newline between them, so
    its hash is made of theirs.
    """
    data, data8, _ = text
    hashes, lengths = paragraphs
    left, right, before, after = stripped_span(text, start, stop)
    if left == right:
        hashes[p] = finish(U(0))
        lengths[p] = 0
        return p + 1
    h = U(0)
    begin_code_point = before
    previous_stop = start
    code_point = 0
    for line in range(first, last):
        line_start = start + lines.spans[line, 0]
        line_stop = start + lines.spans[line, 1]
        gap = line_start - previous_stop
        code_point += gap
        if line_stop > left and line_start < right:
            if gap > 1 and line_start > left:
                hashes[p] = finish(h)
                lengths[p] = code_point - gap - begin_code_point
                p += 1
                h = U(0)
                begin_code_point = code_point
            if line_start < left or line_stop > right:
                h = step(h, hash_span(data, data8, max(line_start, left), min(line_stop, right)))
            else:
                h = step(h, lines.hashes[line])
        code_point += lines.lengths[line]
        previous_stop = line_stop
    hashes[p] = finish(h)
    lengths[p] = code_point - after - begin_code_point
    return p + 1


@kernel
def scan_documents(text, offsets, valid, ends, words, lines, paragraphs, document_offsets, counts):
    """Scans all documents; document_offsets (n + 1, 3) counts words, lines and paragraphs."""
    w = k = p = 0
    words.bounds[0] = 0
    for d in range(valid.size):
        if valid[d]:
            start, stop = np.int64(offsets[d]), np.int64(offsets[d + 1])
            row = counts[d]
            first = w
            w, num_ends = split_words(text, start, stop, words, w, ends, row)
            code_points = np.int64(row[CODE_POINTS])
            count_lines(text.data, start, stop, words, first, w, ends, num_ends, row)
            first = k
            k = split_lines(text, start, stop, ends, num_ends, code_points, lines, k)
            p = split_paragraphs(text, start, stop, lines, first, k, paragraphs, p)
        document_offsets[d + 1, 0] = w
        document_offsets[d + 1, 1] = k
        document_offsets[d + 1, 2] = p
