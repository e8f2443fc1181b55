"""Winnowing: in every window of a text the k-gram of the smallest hash marks the window.

Which k-gram that is depends on the bytes of the window alone, so equal windows are marked by equal
k-grams at equal distances from their starts. Neighbouring windows mostly share theirs: of a text
without much repetition 2 in n + 1 places are chosen, if a window has n k-grams.

Source: Schleimer, Wilkerson and Aiken 2003, Winnowing: local algorithms for document
fingerprinting, SIGMOD; the rolling hash, Karp and Rabin 1987.
"""

import numpy as np

from pipelines.kernel import kernel

U = np.uint64
BASE, MIX, SPREAD = U(0x9E3779B97F4A7C15), U(0xD6E8FEB86659FD93), U(0xFF51AFD7ED558CCD)


def winnow(
    offsets: np.ndarray, data: np.ndarray, valid: np.ndarray, window: int, gram: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Marks the windows of texts.

    Args:
        offsets: int32 (n + 1,), the texts.
        data: uint8.
        valid: bool (n,), texts that are there.
        window: bytes of a window.
        gram: bytes of a k-gram, at most those of a window.

    Returns:
        uint64 (m,), hashes of the chosen k-grams; int32 (m,), the text of each; int32 (m, 3), where
        it begins, and the first and the last window that it marks. Within a text they ascend.
    """
    ring = np.empty(1 << (window - gram).bit_length(), np.uint64)
    room = 1 + int(offsets[-1] - offsets[0]) // max(4, (window - gram) // 4)
    while True:  # twice only where a text repeats itself byte by byte
        hashes, document = np.empty(room, np.uint64), np.empty(room, np.int32)
        place = np.empty((room, 3), np.int32)
        number = _winnow(offsets, data, valid, window, gram, ring, hashes, document, place)
        if number <= room:
            return hashes[:number].copy(), document[:number].copy(), place[:number].copy()
        room = number


@kernel
def _winnow(offsets, data, valid, window, gram, ring, hashes, document, place):
    """Returns the number of marks; writes those for which there is room."""
    number = 0
    mask = ring.size - 1
    last = window - gram  # of the k-grams of a window
    leaving = U(1)
    for _ in range(gram):
        leaving *= BASE
    for n in range(valid.size):
        start = offsets[n]
        size = offsets[n + 1] - start
        if not valid[n] or size < window:
            continue
        rolled = U(0)
        for i in range(gram - 1):
            rolled = rolled * BASE + U(data[start + i])
        chosen = -1
        smallest = U(0)
        for i in range(size - gram + 1):
            rolled = rolled * BASE + U(data[start + i + gram - 1])
            if i > 0:
                rolled -= U(data[start + i - 1]) * leaving
            mixed = (rolled ^ (rolled >> U(32))) * MIX
            mixed ^= mixed >> U(29)
            ring[i & mask] = mixed
            begin = i - last  # of the window that ends with this k-gram
            if begin < 0:
                continue
            before = chosen
            if chosen < begin:
                chosen = begin
                smallest = ring[begin & mask]
                for j in range(begin + 1, i + 1):
                    if ring[j & mask] < smallest:
                        chosen = j
                        smallest = ring[j & mask]
            elif mixed < smallest:
                chosen = i
                smallest = mixed
            if chosen != before:
                if begin > 0 and number <= hashes.size:
                    place[number - 1, 2] = begin - 1
                if number < hashes.size:
                    spread = (smallest ^ (smallest >> U(33))) * SPREAD
                    hashes[number] = spread ^ (spread >> U(33))
                    document[number] = n
                    place[number, 0] = chosen
                    place[number, 1] = begin
                number += 1
        if number <= hashes.size:
            place[number - 1, 2] = size - window
    return number
