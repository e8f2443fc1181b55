"""Two texts beside each other: the shingles that they share, and the places where they differ.

Units (words, or characters) and shingles are those of the deduplication step, counted exactly here
and not by hash: the Jaccard index is the one that decided. Differences are found as a patience diff
finds them: shingles that each text has exactly once and both have in the same order are anchors,
and whatever lies between runs of equal shingles differs. It takes n log n time, so a pair of books
is compared in a second or two, where a diff by edit distance needs hours.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from pipelines.dedup.minhash_kernels import SINGLE

Unit = Literal["word", "character"]
Span = tuple[int, int]
CONTEXT = {"word": 12, "character": 70}
"""Units shown on either side of a difference."""
LONG = {"word": 60, "character": 360}
"""Units of a difference that are shown, two thirds of them from its beginning."""
PIECE_CHARACTERS = 600
"""A longer piece is shown by its two ends: some words have a million characters."""
LEFT_OUT = "..."


@dataclass(frozen=True)
class Side:
    """One text of a pair.

    Attributes:
        text: the text.
        starts: int64 (n,), the code point where each unit begins.
        stops: int64 (n,), and where it ends.
        shingles: int64 (s,), a number for each run of units in order; equal runs, and no others,
            have equal numbers, in the other text as well.
        shared: bool (s,), true where the other text has the same shingle.
    """

    text: str
    starts: np.ndarray
    stops: np.ndarray
    shingles: np.ndarray
    shared: np.ndarray

    @property
    def size(self) -> int:
        """Units in a shingle: fewer than asked for where the text has fewer."""
        return len(self.starts) - len(self.shingles) + 1 if len(self.shingles) else 0

    def spans(self) -> list[Span]:
        """Returns runs of shared shingles as [start, stop) code points, in order.

        A shingle is shared if and only if it lies within one of the spans. Two of them overlap
        where the shingles across their border are not shared.
        """
        edges = np.flatnonzero(np.diff(np.concatenate([[0], self.shared.view(np.int8), [0]])))
        first, last = edges[::2], edges[1::2] + self.size - 2
        return list(zip(self.starts[first].tolist(), self.stops[last].tolist(), strict=True))


@dataclass(frozen=True)
class Comparison:
    """What two texts have in common.

    Attributes:
        unit: what a shingle is made of.
        size: units in a shingle.
        left: one text.
        right: the other one.
        num_shared: different shingles that both have.
        num_shingles: different shingles that either has.
        gaps: differing units as (left start, left stop, right start, right stop), in order.
    """

    unit: Unit
    size: int
    left: Side
    right: Side
    num_shared: int
    num_shingles: int
    gaps: tuple[tuple[int, int, int, int], ...]

    @property
    def jaccard(self) -> float:
        """The Jaccard index of the sets of shingles; 0 where there are none."""
        return self.num_shared / self.num_shingles if self.num_shingles else 0.0


@dataclass(frozen=True)
class Piece:
    """A part of a text as it is shown."""

    text: str
    kind: Literal["shared", "own", "left out"]


Row = tuple[list[Piece], list[Piece]]
"""The same place of the left and of the right text."""


def compare(left: str, right: str, unit: Unit, size: int, folds: np.ndarray) -> Comparison:
    """Compares two texts by their shingles.

    Args:
        left: a text.
        right: another one.
        unit: "word": a shingle is a run of words. "character": of folded characters, where whatever
            separates two words is one blank.
        size: units in a shingle; a text of fewer units is one shingle.
        folds: uint32, one for each code point, as pipelines.dedup.folds makes them.
    """
    numbers: dict[str, int] = {}
    (a, a_starts, a_stops), (b, b_starts, b_stops) = (
        _units(text, unit, folds, numbers) for text in (left, right)
    )
    sizes = min(size, len(a)), min(size, len(b))
    if sizes[0] == sizes[1]:
        both = _runs(np.concatenate([a, [len(numbers)], b]), sizes[0])
        a, b = both[: len(a) - sizes[0] + 1], both[len(a) + 1 :]
    else:  # runs of unlike length are unlike
        a, b = _runs(a, sizes[0]), _runs(b, sizes[1])
        b = b + len(a)
    shared = np.intersect1d(a, b)
    sides = (
        Side(left, a_starts, a_stops, a, np.isin(a, shared)),
        Side(right, b_starts, b_stops, b, np.isin(b, shared)),
    )
    num_shingles = len(np.union1d(a, b))
    return Comparison(unit, size, *sides, len(shared), num_shingles, tuple(_gaps(*sides)))


def rows(comparison: Comparison, most: int) -> tuple[list[Row], int]:
    """Returns the places where two texts differ, each with its neighbourhood, side by side.

    Texts of the same units give one row, their beginnings.

    Args:
        comparison: of the two texts.
        most: rows wanted at most.

    Returns:
        The first rows, and how many more there are.
    """
    context, long = CONTEXT[comparison.unit], LONG[comparison.unit]
    longest = long + 2 * context
    places: list[list[int]] = []
    for gap in comparison.gaps or ((0, long, 0, long),):
        near = places and gap[0] - places[-1][1] <= 2 * context
        if near and gap[1] - places[-1][0] <= long and gap[3] - places[-1][2] <= long:
            places[-1][1], places[-1][3] = gap[1], gap[3]
        else:
            places.append(list(gap))
    found = [
        (
            _pieces(comparison.left, a - context, b + context, longest),
            _pieces(comparison.right, c - context, d + context, longest),
        )
        for a, b, c, d in places[:most]
    ]
    return found, max(0, len(places) - most)


def _units(
    text: str, unit: Unit, folds: np.ndarray, numbers: dict[str, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a number for each unit, equal for equal ones, and the units' starts and stops."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    flagged = folds[points]
    folded = (flagged & ~SINGLE).tobytes().decode("utf-32-le")
    inside = flagged != 0
    run = inside & ((flagged & SINGLE) == 0)
    before, after = np.zeros((2, len(points)), bool)
    if unit == "word":
        before[1:], after[:-1] = run[:-1], run[1:]
        starts = np.flatnonzero(inside & ~(run & before))
        stops = np.flatnonzero(inside & ~(run & after)) + 1
    else:
        before[1:], after[:-1] = inside[:-1], inside[1:]
        starts = np.flatnonzero(inside | before)
        stops = np.flatnonzero(inside | after) + 1
        if len(points) and not inside[0]:
            stops = stops[1:]  # what stands before the first word is no unit
        if len(points) and not inside[-1] and inside.any():
            starts = starts[:-1]  # nor what stands after the last
    words = (folded[a:b] if inside[a] else " " for a, b in zip(starts, stops, strict=True))
    values = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int64)
    return values, starts, stops


def _runs(values: np.ndarray, size: int) -> np.ndarray:
    """Numbers the runs of `size` values; equal runs, and no others, have equal numbers.

    A run is the pair of two shorter ones that overlap, so size 24 takes five rounds.
    """
    if not size:
        return np.zeros(0, np.int64)
    length, runs = 1, values
    while length < size:
        step = min(length, size - length)
        pairs = runs[:-step] * (int(runs.max()) + 1) + runs[step:]
        runs = np.unique(pairs, return_inverse=True)[1].astype(np.int64)
        length += step
    return runs


def _anchors(left: np.ndarray, right: np.ndarray) -> list[tuple[int, int]]:
    """Returns places of shingles that both have exactly once, ascending in both texts.

    They are a longest such sequence, found by patience sorting.
    """
    once = []
    for shingles in (left, right):
        values, first, counts = np.unique(shingles, return_index=True, return_counts=True)
        once.append((values[counts == 1], first[counts == 1]))
    _, at_left, at_right = np.intersect1d(once[0][0], once[1][0], return_indices=True)
    pairs = sorted(zip(once[0][1][at_left].tolist(), once[1][1][at_right].tolist(), strict=True))
    tops: list[int] = []
    piles: list[int] = []
    previous = [-1] * len(pairs)
    for number, (_, place) in enumerate(pairs):
        pile = bisect_left(tops, place)
        tops[pile : pile + 1] = [place]
        piles[pile : pile + 1] = [number]
        previous[number] = piles[pile - 1] if pile else -1
    chain = []
    number = piles[-1] if piles else -1
    while number >= 0:
        chain.append(pairs[number])
        number = previous[number]
    return chain[::-1]


def _gaps(left: Side, right: Side) -> list[tuple[int, int, int, int]]:
    """Returns the units between runs of equal shingles, those before the first and after the last.

    Runs begin at an anchor and are as long as shingles stay equal in both directions.
    """
    a, b = left.shingles.tolist(), right.shingles.tolist()
    blocks = [(0, 0, 0, 0)]  # units: left start, left stop, right start, right stop
    i = j = 0  # the shingles that follow the last block
    for p, q in _anchors(left.shingles, right.shingles):
        if p < i:
            continue  # within the last block
        start, other = p, q
        while start > i and other > j and a[start - 1] == b[other - 1]:
            start, other = start - 1, other - 1
        i, j = p + 1, q + 1
        while i < len(a) and j < len(b) and a[i] == b[j]:
            i, j = i + 1, j + 1
        width = left.size - 1
        blocks.append((start, i + width, other, j + width))
    ends = len(left.starts), len(right.starts)
    blocks.append((ends[0], ends[0], ends[1], ends[1]))
    gaps = []
    for one, other in pairwise(blocks):
        overlap = max(0, one[1] - other[0], one[3] - other[2])  # of the last units of a run
        gap = (one[1] - overlap, other[0], one[3] - overlap, other[2])
        if gap[1] > gap[0] or gap[3] > gap[2]:
            gaps.append(gap)
    return gaps


def _pieces(side: Side, first: int, last: int, most: int) -> list[Piece]:
    """Returns the pieces of units first to last; of more than `most` the middle is left out."""
    first, last = max(0, first), min(len(side.starts), last)
    if last - first > most:
        head = most * 2 // 3
        return [
            *_pieces(side, first, first + head, most)[:-1],
            Piece(LEFT_OUT, "left out"),
            *_pieces(side, last - most + head, last, most)[1:],
        ]
    start = int(side.starts[first]) if first else 0
    stop = int(side.stops[last - 1]) if 0 < last < len(side.starts) else len(side.text)
    pieces = [Piece(LEFT_OUT, "left out")] if first else []
    place = start
    for span in [*_united(side.spans()), (stop, stop)]:
        begin, end = (min(max(at, place), stop) for at in span)
        pieces += _shown(side.text[place:begin], "own") + _shown(side.text[begin:end], "shared")
        place = end
    return pieces + ([Piece(LEFT_OUT, "left out")] if last < len(side.starts) else [])


def _united(spans: Sequence[Span]) -> list[Span]:
    """Joins spans that overlap."""
    united: list[Span] = []
    for start, stop in spans:
        if united and start <= united[-1][1]:
            united[-1] = (united[-1][0], max(stop, united[-1][1]))
        else:
            united.append((start, stop))
    return united


def _shown(text: str, kind: Literal["shared", "own"]) -> list[Piece]:
    if len(text) <= PIECE_CHARACTERS:
        return [Piece(text, kind)] if text else []
    head, tail = text[: PIECE_CHARACTERS // 2], text[-PIECE_CHARACTERS // 2 :]
    return [Piece(head, kind), Piece(LEFT_OUT, "left out"), Piece(tail, kind)]
