"""Equal windows of regions of text, by a suffix array.

A region is the windows that a mark is for, with their bytes. In the suffix array of all regions
equal windows are neighbours, less those suffixes that begin no window.

Source: the suffix array, Manber and Myers 1990; libdivsufsort by Yuta Mori, through pydivsufsort.
"""

from typing import NamedTuple

import numpy as np
import pydivsufsort

from pipelines.kernel import kernel
from pipelines.text_buffers import eight_bytes

PLACE_BITS = 31
"""A text has fewer bytes than 2^31; above these bits of a place is the number of the document."""
PLACE_MASK = (1 << PLACE_BITS) - 1


class Regions(NamedTuple):
    """m regions, no two of which have the same bytes."""

    offsets: np.ndarray
    """(m + 1,) int64."""
    data: np.ndarray
    """uint8."""


class Occurrences(NamedTuple):
    """Where regions are."""

    region: np.ndarray
    """(n,) int64."""
    place: np.ndarray
    """(n,) int64, of the first byte: the document's number in the order, and the byte in it."""


def duplicate_runs(
    regions: Regions, found: Occurrences, window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Finds the windows that occur before.

    Args:
        regions: all those in which an equal window could be.
        found: all their occurrences.
        window: bytes of a window.

    Returns:
        Runs of neighbouring duplicate windows of one occurrence that are first in one document:
        the occurrence (r,), start and end (bytes of the text), and the number of that document.
    """
    num_windows = np.maximum(np.diff(regions.offsets) - window + 1, 0)
    first_window = np.append(0, np.cumsum(num_windows))
    earliest = np.full(len(num_windows), np.iinfo(np.int64).max)
    np.minimum.at(earliest, found.region, found.place)
    window_of = np.full(len(regions.data), -1, np.int32)
    places = np.empty(first_window[-1], np.int64)
    _lay_out(regions.offsets, first_window, earliest, window_of, places)
    if len(regions.data):
        suffixes = pydivsufsort.divsufsort(regions.data)
        _first_places(suffixes, window_of, regions.data, eight_bytes(regions.data), window, places)
        del suffixes
    bounds = (found.region, found.place, first_window, places, window)
    none = np.zeros(0, np.int64)
    number = _runs(*bounds, none, none, none, none)
    runs = np.empty((4, number), np.int64)
    _runs(*bounds, *runs)
    return runs[0], runs[1], runs[2], runs[3]


@kernel
def _lay_out(offsets, first_window, earliest, window_of, places):
    """Numbers the windows at the bytes where they begin; says where the first of each region is."""
    for region in range(earliest.size):
        for i in range(first_window[region + 1] - first_window[region]):
            window_of[offsets[region] + i] = first_window[region] + i
            places[first_window[region] + i] = earliest[region] + i


@kernel
def _first_places(suffixes, window_of, data, data8, window, places):
    """Gives all windows of equal bytes the earliest of their places."""
    start = 0
    before = -1
    first = np.int64(0)
    for i in range(suffixes.size):
        this = suffixes[i]
        number = window_of[this]
        if number < 0:
            continue
        if before >= 0 and _equal(data, data8, before, this, window):
            first = min(first, places[number])
        else:
            _give(suffixes, window_of, start, i, first, places)
            start = i
            first = places[number]
        before = this
    _give(suffixes, window_of, start, suffixes.size, first, places)


@kernel
def _give(suffixes, window_of, start, stop, first, places):
    for i in range(start, stop):
        number = window_of[suffixes[i]]
        if number >= 0:
            places[number] = first


@kernel
def _equal(data, data8, one, other, size):
    i = 0
    while i + 8 <= size:
        if data8[one + i] != data8[other + i]:
            return False
        i += 8
    while i < size:
        if data[one + i] != data[other + i]:
            return False
        i += 1
    return True


@kernel
def _runs(regions, found_at, first_window, places, window, occurrence, start, end, document):
    """Returns the number of runs; writes them if there is room."""
    number = 0
    for n in range(regions.size):
        region = regions[n]
        last = np.int64(-1)
        for i in range(first_window[region + 1] - first_window[region]):
            first = places[first_window[region] + i]
            here = found_at[n] + i
            same = first >> PLACE_BITS == here >> PLACE_BITS
            overlaps = same and (first & PLACE_MASK) + window > (here & PLACE_MASK)
            if first >= here or overlaps:
                last = -1
                continue
            if first >> PLACE_BITS != last:
                last = first >> PLACE_BITS
                if start.size:
                    occurrence[number] = n
                    start[number] = here & PLACE_MASK
                    document[number] = last
                number += 1
            if start.size:
                end[number - 1] = (here & PLACE_MASK) + window
    return number
