"""The training losses of trials as an SVG, from the JSON that fp8_loss or hybrid_transformer wrote.

python -m benchmarks.trial_chart fp8_loss.json --out fp8_loss.svg [--x tokens|seconds]
"""

import argparse
import html
import json
from pathlib import Path
from typing import Any

from flows.charts import Axis

COLOURS = ("#1668b8", "#c2410c", "#15803d", "#7e22ce")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 720, 400, 56, 16, 44
SKIPPED_SHARE = 0.1
"""Of the blocks, at the beginning: losses there would flatten all that follows."""


def kind_of(trial: dict[str, Any]) -> str:
    return f"{trial['name']} {trial['linear_recipe']}"


def draw(trials: dict[str, dict[str, Any]], x: str) -> str:
    """Returns the SVG: a colour for each kind of trial, a line for each seed."""
    curves = {
        name: trial["curve"][round(SKIPPED_SHARE * len(trial["curve"])) :]
        for name, trial in trials.items()
    }
    points = [point for curve in curves.values() for point in curve]
    losses = [point["loss"] for point in points]
    across = Axis(0.0, max(point[x] for point in points))
    down = Axis(min(losses), max(losses))
    kinds = list(dict.fromkeys(map(kind_of, trials.values())))
    inner, tall = WIDTH - LEFT - 16, HEIGHT - TOP - BOTTOM
    lines = []

    def place(value: float, loss: float) -> tuple[float, float]:
        right = LEFT + float(across.place(value)) / 100 * inner
        return round(right, 1), round(TOP + (1 - float(down.place(loss)) / 100) * tall, 1)

    for tick in across.ticks():
        right = LEFT + tick.place / 100 * inner
        lines.append(_text(right, HEIGHT - BOTTOM + 18, tick.label, "middle"))
    for tick in down.ticks():
        up = TOP + (1 - tick.place / 100) * tall
        lines.append(f'<path d="M{LEFT} {up:.1f}H{WIDTH - 16}" stroke="#8884"/>')
        lines.append(_text(LEFT - 6, up + 4, tick.label, "end"))
    for name, curve in curves.items():
        path = " ".join("{},{}".format(*place(point[x], point["loss"])) for point in curve)
        colour = COLOURS[kinds.index(kind_of(trials[name])) % len(COLOURS)]
        title = f"<title>{html.escape(name)}</title>"
        lines.append(f'<polyline points="{path}" stroke="{colour}" fill="none">{title}</polyline>')
    for number, kind in enumerate(kinds):
        colour, up = COLOURS[number % len(COLOURS)], TOP + 14 + 18 * number
        lines.append(_text(WIDTH - 20, up, kind, "end", colour))
    lines.append(_text(LEFT + inner / 2, HEIGHT - 8, f"training {x}", "middle"))
    lines.append(_text(LEFT, TOP - 4, "nats a token", "start"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return "\n".join([f'{head} font-family="sans-serif" font-size="12">', *lines, "</svg>\n"])


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#666") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"'
    return f"<text {place}>{html.escape(text)}</text>"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--x", choices=("tokens", "seconds"), default="tokens")
    options = parser.parse_args()
    trials = json.loads(options.result.read_text())["trials"]
    options.out.write_text(draw(trials, options.x), "utf-8")


if __name__ == "__main__":
    main()
