"""Curves as geometry: lines over a common axis, in percent of the plot, for templates to draw.

A line has at most LINE_POINTS points, each the mean of a stretch; a single line has the range
within each stretch as a band, so that a spike is seen however long the run is.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flows.charts import LOG_FROM_RATIO, Axis, Tick

LINE_POINTS = 400
TICK_DISTANCE = 18.0
"""Percent of the plot between two tick labels at the side."""
COLOURS = 6
"""Lines of as many colours; those after them are the same colours, dashed."""

Line = tuple[np.ndarray, np.ndarray]
"""x and y, each (n,) float64; what is not finite in y is left out."""


def line_plot(x: np.ndarray, y: np.ndarray, label: str) -> dict[str, Any] | None:
    """Returns a plot of one line with its band; None if it has no finite value."""
    return curve_plot({label: (x, y)}, label)


def curve_plot(
    lines: Mapping[str, Line], label: str, marks: Sequence[tuple[float, float]] = ()
) -> dict[str, Any] | None:
    """Returns a plot of lines over common axes; None if none has a finite value.

    Args:
        lines: by name, in the order in which they are drawn and listed.
        label: of the plot, with the unit.
        marks: places (x, y) to mark; one whose y is not finite stands at the top.
    """
    shown = {name: _finite(*line) for name, line in lines.items()}
    shown = {name: line for name, line in shown.items() if len(line[0])}
    if not shown:
        return None
    stretches = {name: _stretches(x, y) for name, (x, y) in shown.items()}
    single = len(shown) == 1
    heights = np.concatenate(
        [s[:, 2:].ravel() if single else s[:, 1] for s in stretches.values()]
        + [[y for _, y in marks if math.isfinite(y)]]
    )
    vertical = _vertical(heights)
    ends = np.array([[x[0], x[-1]] for x, _ in shown.values()] + [[x, x] for x, _ in marks])
    first, last = float(ends.min()), float(ends.max())
    horizontal = Axis(first, last if last > first else first + 1)
    return {
        "label": label,
        "lines": [
            _drawn(name, number, stretches[name], shown[name][1], horizontal, vertical, single)
            for number, name in enumerate(lines)
            if name in shown
        ],
        "marks": [
            {"x": x, "y": y}
            for x, y in zip(
                horizontal.place([x for x, _ in marks]).tolist(),
                [100 - vertical.place(y).item() if math.isfinite(y) else 0.0 for _, y in marks],
                strict=True,
            )
        ],
        "x_ticks": horizontal.ticks(),
        "y_ticks": [Tick(100 - tick.place, tick.label) for tick in vertical.ticks(TICK_DISTANCE)],
        "log": vertical.scale == "log",
    }


def points(pairs: Iterable[tuple[float, float]]) -> str:
    """Returns pairs as the points of an SVG polyline."""
    return " ".join(f"{x:.4g},{y:.4g}" for x, y in pairs)


def _finite(x: np.ndarray, y: np.ndarray) -> Line:
    usual = np.isfinite(y)
    return x[usual], y[usual]


def _stretches(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns (stretches, 4): means of x and y, smallest and largest y."""
    groups = np.array_split(np.arange(len(x)), min(len(x), LINE_POINTS))
    return np.array([[x[g].mean(), y[g].mean(), y[g].min(), y[g].max()] for g in groups])


def _vertical(heights: np.ndarray) -> Axis:
    low, high = float(heights.min()), float(heights.max())
    median = float(np.median(heights))
    if low >= 0 and median > 0 and high > LOG_FROM_RATIO * median:
        return Axis(0.0, high, "log", 10.0 ** math.floor(math.log10(median)))
    margin = 0.06 * (high - low) or abs(high) or 1.0
    bottom = low - margin
    if 0 <= low < 0.15 * high or bottom < 0 <= low:
        bottom = 0.0
    return Axis(bottom, high + margin)


def _drawn(
    name: str,
    number: int,
    stretches: np.ndarray,
    y: np.ndarray,
    horizontal: Axis,
    vertical: Axis,
    single: bool,
) -> dict[str, Any]:
    across = horizontal.place(stretches[:, 0])
    centre, lower, upper = (100 - vertical.place(stretches[:, column]) for column in (1, 2, 3))
    band = [*zip(across, upper, strict=True), *zip(across[::-1], lower[::-1], strict=True)]
    return {
        "name": name,
        "colour": number % COLOURS,
        "dashed": number >= COLOURS,
        "line": points(zip(across, centre, strict=True)),
        "band": points(band) if single else "",
        "first": float(y[0]),
        "last": float(y[-1]),
    }
