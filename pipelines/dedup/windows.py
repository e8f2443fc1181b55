"""Equal windows of regions of text.

A region is the windows that a mark is for, with their bytes. Equal windows have equal marks at
equal distances, so regions are lined up at their marks and compared in pairs; that is exact, and of
few regions faster than anything. Where many unlike regions have one mark, a suffix array is built
of them, in which equal windows are neighbours (less those suffixes that begin no window).

Source: the suffix array, Manber and Myers 1990; libdivsufsort by Yuta Mori, through pydivsufsort.
"""

from typing import NamedTuple

import numpy as np
import pydivsufsort

from pipelines.dedup.link_kernels import gather
from pipelines.kernel import kernel
from pipelines.text_buffers import eight_bytes

MOST_PAIRED = 64
"""Regions of one mark that are compared in pairs; of text of packages 2% are in larger groups."""
PLACE_BITS = 31
"""A text has fewer bytes than 2^31; above these bits of a place is the number of the document."""
PLACE_MASK = (1 << PLACE_BITS) - 1


class Regions(NamedTuple):
    """m regions, no two of which have the same bytes, those of one mark together."""

    offsets: np.ndarray
    """(m + 1,) int64."""
    data: np.ndarray
    """uint8."""
    hash: np.ndarray
    """(m,) uint64, of the mark."""
    mark: np.ndarray
    """(m,) int64, where the mark is in the region."""


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
    num_windows = np.diff(regions.offsets) - window + 1
    first_window = np.append(0, np.cumsum(num_windows))
    earliest = np.full(len(num_windows), np.iinfo(np.int64).max)
    np.minimum.at(earliest, found.region, found.place)
    places = np.empty(first_window[-1], np.int64)
    _own_places(first_window, earliest, places)
    fresh = np.append(True, regions.hash[1:] != regions.hash[:-1])[: len(earliest)]
    starts = np.append(np.flatnonzero(fresh), len(earliest))
    many = np.diff(starts) > MOST_PAIRED
    _compare_pairs(regions, eight_bytes(regions.data), starts, many, first_window, window, places)
    large = np.flatnonzero(np.repeat(many, np.diff(starts)))
    if len(large):
        _compare_sorted(regions, large, first_window, window, places)
    bounds = (found.region, found.place, first_window, places, window)
    none = np.zeros(0, np.int64)
    number = _runs(*bounds, none, none, none, none)
    runs = np.empty((4, number), np.int64)
    _runs(*bounds, *runs)
    return runs[0], runs[1], runs[2], runs[3]


def _compare_sorted(
    regions: Regions, large: np.ndarray, first_window: np.ndarray, window: int, places: np.ndarray
) -> None:
    """Gives the windows of some regions the earliest of the places of equal ones."""
    starts = regions.offsets[large]
    sizes = regions.offsets[large + 1] - starts
    ends = np.cumsum(sizes)
    data = np.empty(ends[-1], np.uint8)
    gather(regions.data, starts, sizes, ends - sizes, data)
    number = np.int32 if first_window[-1] < 2**31 else np.int64
    window_of = np.full(len(data), -1, number)
    _number_windows(ends - sizes, first_window[large], first_window[large + 1], window_of)
    suffixes = pydivsufsort.divsufsort(data)
    _first_places(suffixes, window_of, data, eight_bytes(data), window, places)


@kernel
def _own_places(first_window, earliest, places):
    """Says of every window where the first occurrence of its region has it."""
    for region in range(earliest.size):
        for i in range(first_window[region + 1] - first_window[region]):
            places[first_window[region] + i] = earliest[region] + i


@kernel
def _compare_pairs(regions, data8, starts, many, first_window, window, places):
    """Gives the windows of regions that share a mark the earliest of the places of equal ones.

    What is compared is the stretch around the marks in which both are equal: the windows within it.
    """
    offsets, data, _, mark = regions
    own = places.copy()
    for group in range(many.size):
        if many[group]:
            continue
        for one in range(starts[group], starts[group + 1]):
            for other in range(starts[group], one):
                here = offsets[one] + mark[one]
                there = offsets[other] + mark[other]
                before = 0
                most = min(mark[one], mark[other])
                while before < most and data[here - before - 1] == data[there - before - 1]:
                    before += 1
                after = 0
                most = min(offsets[one + 1] - here, offsets[other + 1] - there)
                while after + 8 <= most and data8[here + after] == data8[there + after]:
                    after += 8
                while after < most and data[here + after] == data[there + after]:
                    after += 1
                for distance in range(max(0, window - after), before + 1):
                    a = first_window[one] + mark[one] - distance
                    b = first_window[other] + mark[other] - distance
                    if a < first_window[one + 1] and b < first_window[other + 1]:
                        places[a] = min(places[a], own[b])
                        places[b] = min(places[b], own[a])


@kernel
def _number_windows(starts, first, stop, window_of):
    """Numbers the windows at the bytes where they begin."""
    for region in range(starts.size):
        for i in range(stop[region] - first[region]):
            window_of[starts[region] + i] = first[region] + i


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
