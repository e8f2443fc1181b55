"""Charts as geometry, in percent of a plot, and numbers as people read them; templates draw them.

The plot is an SVG that stretches with the page while its labels are HTML text beside it, so that
text stays sharp and readable on a phone, follows the page's light and dark colours, and the same
numbers give the same bytes. A histogram is about 10 kB of markup, a tenth of matplotlib's. x runs
from 0 (left) to 100, y from 0 (top) to 100.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.step import COMPARISONS

TINY = 1e-290
"""Drawn as zero: below it steps lose digits, and below 1e-308 they vanish."""
SMALLEST_UNIT = 1e-15
"""Of a logarithmic axis, as a share of its end."""
BINS = 50
LOG_FROM_RATIO = 30.0
"""A signal whose largest values are this many medians gets a logarithmic axis."""
TICK_DISTANCE = 11.0
"""Percent of the plot between two tick labels."""
CUT_FROM_RATIO = 3.0
"""A bar this many times as high as the next one is cut, so that the others can be seen."""
BORDER_MARGIN = 0.1
"""How far beyond a threshold at the edge of the data the axis goes, as a share of it."""
TAIL_RATIO = 4.0
"""A linear axis reaches the largest value if that is not this much above the 99.9th percentile."""
GAP = 0.06
"""Share of a bin that stays free on either side of its bar."""
SMALLEST_BAR = 1.5
"""Percent of the plot: one document is still to be seen."""
DISTINCT = 1_000
"""Values of a categorical signal that are counted one by one."""
CATEGORIES = 14
OTHER = "other values"
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
"""Control characters as their Unicode pictures: HTML may not hold them, and a reader sees them."""


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    place: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A range of values; a log axis is log(1 + value / unit), so it holds 0 too."""

    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    unit: float = 1.0
    smallest_step: float = 0.0
    """Between ticks of a linear axis: 1 for counts."""

    def place(self, values: Any) -> np.ndarray:
        """Returns values as percent of the axis, clipped to it."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        clipped = np.clip(np.asarray(values, float), self.low, self.high)
        return np.round((self._scaled(clipped) - low) / (high - low) * 100, 2)

    def _scaled(self, values: Any) -> Any:
        return np.log1p(np.divide(values, self.unit)) if self.scale == "log" else values

    def ticks(self, distance: float = TICK_DISTANCE) -> list[Tick]:
        """Returns round values with labels, at least `distance` percent apart."""
        if self.scale == "linear":
            step = max(self.smallest_step, round_step((self.high - self.low) / 5))
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            values = [number * step for number in range(first, last + 1)]
        else:
            first = math.floor(math.log10(self.unit))
            decades = range(first, math.ceil(math.log10(max(self.high, self.unit))) + 1)
            factors = (1,) if len(decades) > 4 else (1, 2, 5)
            values = [0.0, *(factor * 10.0**k for k in decades for factor in factors)]
            values = [value for value in values if self.low <= value <= self.high]
        ticks: list[Tick] = []
        for value, place in zip(values, self.place(values).tolist(), strict=True):
            if not ticks or place - ticks[-1].place >= distance:
                ticks.append(Tick(place, short(value)))
        return ticks


@dataclass(frozen=True)
class Question:
    """A rule as a chart sees it: the document is dropped where `value comparison threshold`."""

    rule: str
    comparison: str
    threshold: Any
    broken: int

    def span(self, half: float) -> tuple[float, float] | None:
        """Returns the broken values as (low, high), None for a rule that asks for equality.

        Args:
            half: 0.5 for integers, whose border lies between two of them, else 0.
        """
        if self.comparison in ("<", "<="):
            return -math.inf, self.threshold + (half if self.comparison == "<=" else -half)
        if self.comparison in (">", ">="):
            return self.threshold + (half if self.comparison == ">" else -half), math.inf
        return None

    def breaks(self, value: Any) -> bool:
        """Says whether a value breaks the rule."""
        if self.comparison == "not in":
            return value not in self.threshold
        return bool(COMPARISONS[self.comparison](value, self.threshold))


class Histogram:
    """Counts kept and dropped documents by a numeric signal. Memory: the bins.

    Args:
        sample: some of the values; it settles the axis. Values beyond it go to the outer bins.
            Of lists the length counts.
        questions: the rules on the signal; their thresholds are always on the axis.
        integer: the signal counts something.
    """

    def __init__(
        self, sample: pa.ChunkedArray, questions: Sequence[Question], integer: bool
    ) -> None:
        self.questions = questions
        self._half = 0.5 if integer else 0.0
        borders = [b for q in questions for b in q.span(self._half) or () if math.isfinite(b)]
        self.edges, self.axis = bins(numbers(sample), borders, integer)
        self.counts = np.zeros((2, len(self.edges) - 1), np.int64)
        self.missing = 0
        self.smallest, self.largest = math.inf, -math.inf

    def add(self, column: pa.Array, dropped: np.ndarray) -> None:
        """Counts a batch's values; `dropped` is (n,) bool."""
        values = numbers(column)
        valid = np.isfinite(values)
        self.missing += int((~valid).sum())
        values, dropped = values[valid], dropped[valid]
        if len(values):
            self.smallest = min(self.smallest, float(values.min()))
            self.largest = max(self.largest, float(values.max()))
        place = np.searchsorted(self.edges, values, side="right") - 1
        place = np.clip(place, 0, self.counts.shape[1] - 1)
        for row, chosen in enumerate((~dropped, dropped)):
            self.counts[row] += np.bincount(place[chosen], minlength=self.counts.shape[1])

    def drawing(self) -> dict[str, Any]:
        """Returns bars, broken regions and ticks. A bar's area is its number of documents."""
        places = self.axis.place(self.edges)
        widths = np.diff(places)
        height = self.counts.sum(axis=0) / widths
        order = np.sort(height)[::-1]
        top, cut = order[0] or 1.0, -1
        if len(order) > 1 and order[1] and top > CUT_FROM_RATIO * order[1]:
            top, cut = 1.25 * order[1], int(np.argmax(height))
        bars = []
        for i in np.flatnonzero(height).tolist():
            kept, dropped = self.counts[:, i].tolist()
            full = min(100.0, max(SMALLEST_BAR, height[i] / top * 100))
            gap = GAP * widths[i]
            bars.append(
                {
                    "x": places[i],
                    "width": widths[i],
                    "left": round(places[i] + gap, 2),
                    "right": round(places[i + 1] - gap, 2),
                    "height": full,
                    "kept_height": full * kept / (kept + dropped),
                    "kept": kept,
                    "dropped": dropped,
                    "label": self._label(i),
                    "cut": i == cut,
                    "beyond": bool(
                        (i == 0 and self.smallest < self.edges[0])
                        or (i == len(widths) - 1 and self.largest > self.edges[-1])
                    ),
                }
            )
        return {"bars": bars, "regions": self._regions(), "ticks": self.axis.ticks()}

    def _label(self, i: int) -> str:
        low, high = self.edges[i] + self._half, self.edges[i + 1] - self._half
        low = self.smallest if i == 0 else low
        high = self.largest if i == len(self.edges) - 2 else high
        return precise(low) if self._half and low == high else f"{precise(low)} to {precise(high)}"

    def _regions(self) -> list[dict[str, Any]]:
        regions = []
        for question in self.questions:
            span = question.span(self._half)
            if span is not None:
                start, end = self.axis.place(np.array(span)).tolist()
                border = end if math.isinf(span[0]) else start
                region = {"x": start, "width": end - start, "border": border}
                regions.append(region | {"label": precise(question.threshold)})
        return regions


class Categories:
    """Counts kept and dropped documents by a text or boolean signal."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = questions
        self.counts: dict[Any, list[int]] = {}
        self.missing = 0

    def add(self, values: pa.Array, dropped: np.ndarray) -> None:
        """Counts values; beyond the first DISTINCT different ones they are summed up."""
        for column, chosen in enumerate((~dropped, dropped)):
            for pair in pc.value_counts(values.filter(pa.array(chosen))).to_pylist():
                value, number = pair["values"], pair["counts"]
                if value is None:
                    self.missing += number
                    continue
                known = value in self.counts or len(self.counts) < DISTINCT
                self.counts.setdefault(value if known else OTHER, [0, 0])[column] += number

    def drawing(self) -> dict[str, Any]:
        """Returns the most frequent values as rows, the rest as one row."""
        order = sorted(self.counts, key=lambda v: (v == OTHER, -sum(self.counts[v]), str(v)))
        shown = order[:CATEGORIES] if len(order) > CATEGORIES + 1 else order
        most = max((sum(pair) for pair in self.counts.values()), default=1)
        rows = [self._row(str(v), any(q.breaks(v) for q in self.questions), [v]) for v in shown]
        if rest := order[len(shown) :]:
            broken = bool(self.questions) and all(q.breaks(v) for v in rest for q in self.questions)
            rows.append(self._row(f"{len(rest)} others", broken, rest))
            most = max(most, rows[-1]["kept"] + rows[-1]["dropped"])
        return {"rows": rows, "most": most}

    def _row(self, label: str, broken: bool, values: Sequence[Any]) -> dict[str, Any]:
        kept, dropped = (sum(self.counts[v][column] for v in values) for column in (0, 1))
        return {"label": label, "broken": broken, "kept": kept, "dropped": dropped}


def bins(sample: np.ndarray, borders: Sequence[float], integer: bool) -> tuple[np.ndarray, Axis]:
    """Returns edges and the axis for values like the sample; round edges where it is linear."""
    usual = np.abs(sample) < 1e300  # false for NaN; larger ones leave no room for arithmetic
    values = sample[usual] if usual.any() else np.zeros(1)
    values = np.where(np.abs(values) < TINY, 0.0, values)
    borders = [border if abs(border) >= TINY else 0.0 for border in borders]
    low, median, high = np.quantile(values, (0.001, 0.5, 0.999)).tolist()
    if max([low, *borders]) >= high:  # the broken side of a border is always seen
        high = (1 + BORDER_MARGIN) * max(borders, default=high)
    if borders and min(borders) <= low:
        low = min(borders) - BORDER_MARGIN * abs(min(borders))
    largest = float(values.max())
    unit = 1.0
    if not integer and (values > 0).any():
        unit = 10.0 ** math.floor(math.log10(np.quantile(values[values > 0], 0.1)))
    if low >= 0 and high > LOG_FROM_RATIO * max(median, unit) and (integer or high > 1):
        top = max(high, largest)
        return _log_bins(low, top, max(unit, top * SMALLEST_UNIT), integer)
    high = largest if high < largest <= TAIL_RATIO * high else high
    if 0 <= low < 0.4 * high:
        low = 0.0
    span = high - low
    if span <= 1e-9 * abs(high):
        span = abs(high) or 1.0
    step = round_step(span / BINS)
    step = max(1.0, step) if integer else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    edges = np.arange(first, max(last, first + 1) + 1 + integer) * step - (0.5 if integer else 0.0)
    return edges, Axis(float(edges[0]), float(edges[-1]), smallest_step=float(integer))


def _log_bins(low: float, high: float, unit: float, integer: bool) -> tuple[np.ndarray, Axis]:
    start = 0.0 if low < 10 * unit else 10.0 ** math.floor(math.log10(low))
    first, last = math.log1p(start / unit), math.log1p(high / unit)
    edges = np.expm1(np.linspace(first, last, BINS + 1)) * unit
    if integer:
        edges = np.unique(np.round(edges)) - 0.5
        edges[-1] += 1.0
    return edges, Axis(float(edges[0]), float(edges[-1]), "log", unit)


def numbers(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Returns numbers, or the lengths of lists, as float64 with NaN for null."""
    if pa.types.is_list(values.type):
        values = pc.list_value_length(values)
    return np.asarray(pc.cast(values, pa.float64(), safe=False), np.float64)


def funnel(
    rules: Sequence[dict[str, Any]], documents: int, size: int, outcome: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Returns what is left after each rule; of one source if its outcome is given."""
    start = {"documents": documents, "bytes": size}
    rows = []
    for rule in rules:
        dropped, dropped_bytes = rule["dropped"], rule["dropped_bytes"]
        if outcome is not None:
            dropped, dropped_bytes = outcome.get(rule["name"], (0, 0))
        row = {"name": rule["name"], "anchor": rule["anchor"], "arrived": documents}
        documents, size = documents - dropped, size - dropped_bytes
        row |= {"dropped": dropped, "dropped_bytes": dropped_bytes, "start": start}
        rows.append(row | {"documents": documents, "bytes": size})
    return rows


def round_step(width: float) -> float:
    """Returns the smallest of 1, 2, 5 times a power of ten that is not below width."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= width * (1 - 1e-9))


def short(value: float) -> str:
    """Returns a number for a tick: 1500 is 1.5k."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"


def precise(value: Any) -> str:
    """Returns a number as people write it: 12,345 or 0.0123; other values as they are."""
    if isinstance(value, (list, tuple)):
        return ", ".join(precise(item) for item in value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def share(part: float, whole: float) -> str:
    """Returns a percentage that is 0% or 100% only where it is exactly that."""
    if not whole:
        return "-"
    percent = 100 * part / whole
    if 0 < percent < 0.05:
        return "<0.1%"
    if 99.95 <= percent < 100:
        return ">99.9%"
    return f"{percent:.1f}%" if percent % 100 else f"{percent:.0f}%"


def duration(seconds: float) -> str:
    """Returns seconds in the two units that matter: 12 min 05 s."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def parameters(parameters: dict[str, Any]) -> str:
    """Returns a step's parameters as they stand in its call."""
    shown = {
        name: f"({precise(value)})" if isinstance(value, list) else precise(value)
        for name, value in parameters.items()
    }
    return ", ".join(f"{name}={value}" for name, value in shown.items())


def excerpt(text: str, characters: int) -> str:
    """Returns the start of a text with its control characters made visible."""
    return text[:characters].translate(CONTROLS)
