"""Progress that is visible within a second, on a terminal as a bar and elsewhere as lines.

A log file or a CI page cannot show a bar, so there a line is written every ten seconds. Everything
goes to stderr; stdout belongs to results.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_INTERVAL_S = 10.0

console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """Writes one line for the user to stderr."""
    console.print(message, markup=False, soft_wrap=True)


def human(value: float, unit: str) -> str:
    """Returns a count with a decimal prefix, such as 12.3 MB for 12_300_000 and "B"."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {prefix}{unit}"
    return f"{value:.0f} {unit}"


class Bar:
    """One running stage. `advance` may be called any number of times a second."""

    def __init__(self, name: str, total: float, unit: str) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._done, self._note = 0.0, ""
        self._start = self._last_line = time.monotonic()
        self._live: Progress | None = None
        self._task: Task | None = None

    def advance(self, amount: float, note: str = "") -> None:
        """Adds to what is done; `note` is shown behind the bar."""
        self._done += amount
        self._note = note or self._note
        if self._live is not None and self._task is not None:
            self._live.update(self._task.id, advance=amount, note=self._note)
        elif time.monotonic() - self._last_line >= LINE_INTERVAL_S:
            self._last_line = time.monotonic()
            say(self._line())

    def _line(self) -> str:
        elapsed = time.monotonic() - self._start
        rate = self._done / elapsed if elapsed else 0.0
        share = f"{100 * self._done / self._total:3.0f}%  " if self._total else ""
        line = f"{self._name}: {share}{human(self._done, self._unit)}, "
        return line + f"{human(rate, self._unit)}/s, {elapsed:.0f} s  {self._note}".rstrip()


class _Rate(ProgressColumn):
    """Shows done, total and speed with their unit."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        total = f"/{human(task.total, unit)}" if task.total else ""
        return Text(f"{human(task.completed, unit)}{total}  {human(task.speed or 0, unit)}/s")


@contextmanager
def progress(name: str, total: float, unit: str) -> Iterator[Bar]:
    """Shows a stage while the block runs and one closing line after it.

    Args:
        name: what is being done, a few words.
        total: how much there is to do, in `unit`; 0 where unknown.
        unit: what is counted: "B", "step", "document", "token".
    """
    bar = Bar(name, total, unit)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            _Rate(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console, transient=True) as live:
            bar._live = live
            task_id = live.add_task(name, total=total or None, unit=unit, note="")
            bar._task = next(t for t in live.tasks if t.id == task_id)
            yield bar
    else:
        say(f"{name}: started" + (f", {human(total, unit)}" if total else ""))
        sys.stderr.flush()
        yield bar
    say(bar._line())
