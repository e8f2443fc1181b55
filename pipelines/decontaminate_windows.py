"""Compiled judgement of matches: how much of a benchmark item stands in one window of a document.

The matches of an item are followed with a window that slides over them; each n-gram in it covers
its words of the item, and the words covered are counted. A match costs as many additions as an
n-gram has words, so a text of nothing but matches takes no longer than its length asks for.
"""

from typing import NamedTuple

import numba
import numpy as np

kernel = numba.njit(cache=True, nogil=True, error_model="numpy")


class Items(NamedTuple):
    """The items of all benchmarks, as kernels read them."""

    size: int
    """Words in an n-gram."""
    offsets: np.ndarray
    """int64 (n-grams + 1,): where each n-gram's items begin."""
    items: np.ndarray
    places: np.ndarray
    """int32: the items that hold an n-gram, and at which word of each it begins."""
    words: np.ndarray
    """int32 (items,): how many words each has."""
    whole: np.ndarray
    """int32 (items,): how many covered words make a share of 1."""
    spread: int
    """How many times the item's own length its matches may spread over."""


@kernel
def _by_item(found, items, item_stops):
    """Returns the items that were met, where their matches end, and their matches.

    Args:
        found: int32 (n-grams, 4), of one document, as `find_grams` returns them.
        items: what there is.
        item_stops: int64 (items,), zero before and after.

    Returns:
        met, int32, ascending; stops, int64 (met,); and by item, in order of the document,
        matches, int64 (matches, 2): the row in `found`, and the word of the item.
    """
    total = 0
    for j in range(found.shape[0]):
        total += items.offsets[found[j, 0] + 1] - items.offsets[found[j, 0]]
    met = np.empty(min(total, items.words.size), np.int32)
    num_met = 0
    for j in range(found.shape[0]):
        for k in range(items.offsets[found[j, 0]], items.offsets[found[j, 0] + 1]):
            item = items.items[k]
            if item_stops[item] == 0:
                met[num_met] = item
                num_met += 1
            item_stops[item] += 1
    met = np.sort(met[:num_met])
    place = 0
    for m in range(num_met):
        here = item_stops[met[m]]
        item_stops[met[m]] = place
        place += here
    matches = np.empty((total, 2), np.int64)
    for j in range(found.shape[0]):
        for k in range(items.offsets[found[j, 0]], items.offsets[found[j, 0] + 1]):
            at = item_stops[items.items[k]]
            matches[at, 0], matches[at, 1] = j, items.places[k]
            item_stops[items.items[k]] = at + 1
    stops = np.empty(num_met, np.int64)
    for m in range(num_met):
        stops[m] = item_stops[met[m]]
        item_stops[met[m]] = 0
    return met, stops, matches


@kernel
def _cover(covered, place, size):
    """Adds an n-gram; returns how many words of the item it is the first to cover."""
    new = 0
    for k in range(place, place + size):
        if covered[k] == 0:
            new += 1
        covered[k] += 1
    return new


@kernel
def _uncover(covered, place, size):
    """Takes an n-gram away; returns how many words of the item are no longer covered."""
    lost = 0
    for k in range(place, place + size):
        covered[k] -= 1
        if covered[k] == 0:
            lost += 1
    return lost


@kernel
def _spare(covered, place, size):
    """True if the window covers as many words without an n-gram."""
    spare = True
    for k in range(place, place + size):
        spare &= covered[k] > 1
    return spare


@kernel
def _best_window(found, matches, first, stop, reach, need, size, covered):
    """Returns the most words covered in a window, and the first and last match of that window.

    A window that covers no less without its first match goes without it. The search ends where
    `need` was covered and a match is too far away to be in the same window.

    Args:
        found: of the document.
        matches: as `_by_item` returns them.
        first: where the item's begin.
        stop: where they end.
        reach: words of the document; the first words of two n-grams of a window are less apart.
        need: words of the item.
        size: words in an n-gram.
        covered: int32 (longest item,): n-grams that cover each word; zero before and after.
    """
    best, best_first, best_last = 0, first, first
    now = 0
    left, right = first, first
    while right < stop:
        here = found[matches[right, 0], 1]
        if best >= need and here - found[matches[best_first, 0], 1] >= reach:
            break
        now += _cover(covered, matches[right, 1], size)
        while here - found[matches[left, 0], 1] >= reach:
            now -= _uncover(covered, matches[left, 1], size)
            left += 1
        while _spare(covered, matches[left, 1], size):
            _uncover(covered, matches[left, 1], size)
            left += 1
        if now > best:
            best, best_first, best_last = now, left, right
        right += 1
    for j in range(left, right):
        _uncover(covered, matches[j, 1], size)
    return best, best_first, best_last


@kernel
def best_items(found, stops, items, best, covered):
    """Writes the item of which each document holds the largest share, and its words there.

    Args:
        found: as `find_grams` returns it.
        stops: as `find_grams` writes it.
        items: what there is.
        best: out, int32 (n,): -1 where nothing was found; of equal shares the first item.
        covered: out, int32 (n,): how many words of the item are covered in one window.
    """
    item_stops = np.zeros(items.words.size, np.int64)
    room = np.zeros(max(1, items.words.max()), np.int32)
    begin = 0
    for n in range(stops.size):
        best[n], covered[n] = -1, 0
        if stops[n] == begin:
            continue
        here = found[begin : stops[n]]
        begin = stops[n]
        met, ends, matches = _by_item(here, items, item_stops)
        first = 0
        for m in range(met.size):
            item = met[m]
            reach = items.spread * np.int64(items.words[item])
            need = items.whole[item] + 1
            now, _, _ = _best_window(here, matches, first, ends[m], reach, need, items.size, room)
            first = ends[m]
            more = best[n] < 0
            if not more:
                left = np.int64(now) * items.whole[best[n]]
                more = left > np.int64(covered[n]) * items.whole[item]
            if more:
                best[n], covered[n] = item, now


@kernel
def hit_windows(found, stops, items, needs, hit_stops):
    """Returns where items stand: int64 (hits, 4), first byte, end, item, words covered.

    They are in order of document, item and place; bytes count from the document's first.

    Args:
        found: as `find_grams` returns it.
        stops: as `find_grams` writes it.
        items: what there is.
        needs: int32 (items,): how many words make a hit.
        hit_stops: out, int64 (n,): where each document's hits end.
    """
    item_stops = np.zeros(items.words.size, np.int64)
    room = np.zeros(max(1, items.words.max()), np.int32)
    hits = np.empty((16, 4), np.int64)
    count = begin = 0
    for n in range(stops.size):
        hit_stops[n] = count
        if stops[n] == begin:
            continue
        here = found[begin : stops[n]]
        begin = stops[n]
        met, ends, matches = _by_item(here, items, item_stops)
        first = 0
        for m in range(met.size):
            reach = items.spread * np.int64(items.words[met[m]])
            need = needs[met[m]]
            while first < ends[m]:
                now, left, right = _best_window(
                    here, matches, first, ends[m], reach, need, items.size, room
                )
                if now < need:
                    break
                if count == hits.shape[0]:
                    larger = np.empty((2 * count, 4), np.int64)
                    larger[:count] = hits
                    hits = larger
                hits[count, 0] = here[matches[left, 0], 2]
                hits[count, 1] = here[matches[right, 0], 3]
                hits[count, 2], hits[count, 3] = met[m], now
                count += 1
                first = right + 1
            first = ends[m]
        hit_stops[n] = count
    return hits[:count]
