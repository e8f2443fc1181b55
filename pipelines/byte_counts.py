"""Counts of bytes that need no decoding, 3 to 8 GB/s.

Loops of this plain form are compiled to 32 bytes at a time; a branch inside would undo that.
"""

import numpy as np

from pipelines.kernel import kernel

NEWLINE, BLANK, HASH_SIGN, FULL_STOP = 10, 32, 35, 46


@kernel
def count_separators(data, offsets):
    """Returns the most words, lines and line ends that UTF-8 texts can have.

    The first two are of all texts together, the third is of the text that has most of them. A word
    that is not a text's first follows ASCII white space or the lead byte of a character that may
    be white space.
    """
    n = offsets.size - 1
    words = n
    lines = n
    most_ends = 0
    for d in range(n):
        text = data[offsets[d] : offsets[d + 1]]
        separated = False
        ends = 0
        for i in range(text.size):
            b = text[i]
            lead = (b == 0xC2) | ((b >= 0xE1) & (b <= 0xE3))
            end = ((b >= 10) & (b <= 13)) | ((b >= 28) & (b <= 30)) | lead
            separator = end | (b == BLANK) | (b == 9) | (b == 31)
            words += separated & (not separator)
            separated = separator
            lines += b == NEWLINE
            ends += end
        most_ends = max(most_ends, ends)
    return words, lines, most_ends


@kernel
def count_symbols(data, offsets, valid):
    """Returns int32 (n, 2): text.count("#"), and text.count("...") + text.count(U+2026)."""
    counts = np.zeros((valid.size, 2), np.int32)
    for d in range(valid.size):
        if valid[d]:
            text = data[offsets[d] : offsets[d + 1]]
            hashes = 0
            for i in range(text.size):
                hashes += text[i] == HASH_SIGN
            counts[d, 0] = hashes
            counts[d, 1] = count_three_dots(text) + count_ellipsis_characters(text)
    return counts


@kernel
def count_three_dots(text):
    """Returns text.count("..."), in which matches do not overlap."""
    triples = 0
    for i in range(text.size - 2):
        triples += (text[i] == FULL_STOP) & (text[i + 1] == FULL_STOP) & (text[i + 2] == FULL_STOP)
    if triples < 2:
        return triples
    count = 0
    dots = 0
    for i in range(text.size):
        dots = dots + 1 if text[i] == FULL_STOP else 0
        if dots == 3:
            count += 1
            dots = 0
    return count


@kernel
def count_ellipsis_characters(text):
    """Returns the count of U+2026, in UTF-8 E2 80 A6."""
    count = 0
    for i in range(text.size - 2):
        count += (text[i] == 0xE2) & (text[i + 1] == 0x80) & (text[i + 2] == 0xA6)
    return count
