"""From duplicate windows to spans: their union, trimmed inwards to where text may be cut."""

import numpy as np

from pipelines.kernel import kernel

BOUNDS = ("character", "line", "sentence")


def cut_spans(
    offsets: np.ndarray,
    data: np.ndarray,
    first: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    source: np.ndarray,
    bounds: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns what is to be cut of texts: text (m,), start, end (bytes of it) and source.

    Args:
        offsets: int32 (n + 1,), the texts.
        data: uint8.
        first: int64 (n + 1,), where each text's runs of windows begin.
        start: int64, of each run the first byte of its first window; ascending in a text.
        end: int64, after the last byte of its last window; ascending in a text.
        source: int64, where the first occurrences are; a span ends where this changes.
        bounds: one of BOUNDS. A line ends after its line feed; a sentence also after a full stop,
            question or exclamation mark, closing quotes and brackets, and white space, or after an
            ideographic mark.
    """
    text, source = np.empty(len(start), np.int64), source.astype(np.int64)
    spans = np.empty((len(start), 2), np.int64)
    of = np.empty(len(start), np.int64)
    kind = BOUNDS.index(bounds)
    number = _cut_spans(offsets, data, first, start, end, source, kind, text, spans, of)
    return text[:number], spans[:number, 0], spans[:number, 1], of[:number]


@kernel
def _cut_spans(offsets, data, first, start, end, source, kind, text, spans, of):
    number = 0
    for n in range(offsets.size - 1):
        low = np.int64(offsets[n])
        high = np.int64(offsets[n + 1])
        run = first[n]
        while run < first[n + 1]:
            after = run + 1
            whole = end[run]
            while after < first[n + 1] and start[after] <= whole:
                whole = max(whole, end[after])
                after += 1
            left = low + start[run]
            while left < low + whole and not _is_bound(data, low, high, left, kind):
                left += 1
            right = low + whole
            while right > left and not _is_bound(data, low, high, right, kind):
                right -= 1
            at = left
            for part in range(run, after):
                stop = min(low + end[part], right)
                while stop > at and not _is_bound(data, low, high, stop, 0):
                    stop -= 1
                if stop <= at:
                    continue
                if at > left and of[number - 1] == source[part]:
                    spans[number - 1, 1] = stop - low
                else:
                    text[number] = n
                    spans[number, 0] = at - low
                    spans[number, 1] = stop - low
                    of[number] = source[part]
                    number += 1
                at = stop
            run = after
    return number


@kernel
def _is_bound(data, low, high, at, kind):
    """True if a text from low to high may be cut at a byte."""
    if at in (low, high):
        return True
    if data[at] & 0xC0 == 0x80:
        return False
    if kind == 0 or data[at - 1] == 0x0A:
        return True
    if kind == 1:
        return False
    if at - low >= 3 and _ideographic(data[at - 3], data[at - 2], data[at - 1]):
        return True
    if data[at] == 0x20 or data[at] == 0x09 or (data[at - 1] != 0x20 and data[at - 1] != 0x09):
        return False
    i = at - 1
    while i > low and (data[i] == 0x20 or data[i] == 0x09):
        i -= 1
    while i > low and (data[i] == 0x22 or data[i] == 0x27 or data[i] == 0x29 or data[i] == 0x5D):
        i -= 1
    return data[i] == 0x2E or data[i] == 0x21 or data[i] == 0x3F


@kernel
def _ideographic(a, b, c):
    """True for the full stop U+3002 and the wide marks U+FF01 and U+FF1F."""
    if a == 0xE3:
        return b == 0x80 and c == 0x82
    return a == 0xEF and b == 0xBC and (c == 0x81 or c == 0x9F)
