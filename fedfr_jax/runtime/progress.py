"""Progress of long phases: a live bar on a terminal, a plain line now and then elsewhere.

``with track("pretraining", total=steps, unit="step") as bar: bar.update(1, images=128, loss=x)``
"""
from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

_LINE_SECONDS = 5.0  # between plain lines
_DRAW_SECONDS = 0.1  # between changes of a live bar
_WINDOW_SECONDS = 30.0  # rates are over about so long


def duration(seconds: float) -> str:
    """A duration for people: ``0.8 s``, ``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def quantity(value: Any) -> str:
    """A number for people: four significant digits, whole numbers with separators."""
    if isinstance(value, str):
        return value
    number = np.asarray(value).item()
    if isinstance(number, int) and not isinstance(number, bool):
        return f"{number:,}"
    if math.isfinite(number) and abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.4g}"


class Bar:
    """Counts what is done. Made by :func:`track`; all its work is on the host.

    Rates and the time left count from the first update on, so that compilation
    before it is left out, and look back about half a minute.
    """

    def __init__(self, label: str, total: int | None, unit: str, keep: bool,
                 clock: Callable[[], float]):
        self.label, self.total, self.unit, self.keep = label, total, unit, keep
        self.done = 0
        self.images = 0
        self.values: dict[str, Any] = {}
        self.clock = clock
        self.start = clock()
        self._seen: deque[tuple[float, int, int]] = deque()
        self._drawn = self.start
        self._draw: Callable[[Bar], None] | None = None
        self._interval = _LINE_SECONDS

    def update(self, n: int = 1, images: int = 0, **values: Any) -> None:
        """Adds ``n`` units that are done.

        Args:
          n: units finished since the last update.
          images: images processed for them; shown per second.
          **values: numbers or text to show (loss=...). They may be JAX arrays:
            they are fetched only when a line is drawn, a few times per second
            at most, so that dispatch is not held up.
        """
        self.done += n
        self.images += images
        self.values.update(values)
        now = self.clock()
        self._seen.append((now, self.done, self.images))
        while len(self._seen) > 2 and self._seen[1][0] < now - _WINDOW_SECONDS:
            self._seen.popleft()
        if self._draw is not None and now - self._drawn >= self._interval:
            self._drawn = now
            self._draw(self)

    def rates(self) -> tuple[float, float] | None:
        """(units, images) per second over the window, or None before the second update."""
        if len(self._seen) < 2:
            return None
        (t0, done0, images0), (t1, done1, images1) = self._seen[0], self._seen[-1]
        if t1 <= t0:
            return None
        return (done1 - done0) / (t1 - t0), (images1 - images0) / (t1 - t0)

    def seconds_left(self) -> float | None:
        """Time left at the present rate, or None where that is unknown."""
        rates = self.rates()
        if self.total is None or rates is None or rates[0] <= 0:
            return None
        return max(self.total - self.done, 0) / rates[0]

    def details(self, finished: bool = False) -> str:
        """What stands behind the count: time, images per second, values."""
        rates, left = self.rates(), self.seconds_left()
        parts = []
        if finished:
            parts.append(f"in {duration(self.clock() - self.start)}")
        elif left is not None:
            parts.append(f"{duration(left)} left")
        if rates is not None and rates[1] > 0:
            parts.append(f"{quantity(float(rates[1]))} images/s")
        return ", ".join(parts + [f"{key} {quantity(value)}" for key, value in self.values.items()])

    def line(self, finished: bool = False) -> str:
        """The plain line: ``pretraining: 120/400 step, 12 s left, 310 images/s, loss 3.21``."""
        count = f"{self.done:,}" + (f"/{self.total:,}" if self.total is not None else "")
        details = self.details(finished)
        return f"{self.label}: {count} {self.unit}" + (f", {details}" if details else "")


class _LiveDisplay:
    """One rich display on a terminal, shared by nested bars."""

    def __init__(self, console: Console):
        self.progress = RichProgress(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
            MofNCompleteColumn(), TextColumn("{task.fields[unit]}", markup=False),
            TextColumn("{task.fields[details]}", markup=False), console=console,
            # A print to a redirected stdout belongs in that file, not above the bar.
            redirect_stdout=sys.stdout.isatty(), refresh_per_second=8)
        self.tasks: dict[int, Any] = {}

    def add(self, bar: Bar) -> None:
        if not self.tasks:
            self.progress.start()
        self.tasks[id(bar)] = self.progress.add_task(
            bar.label, total=bar.total, unit=bar.unit, details="")

    def draw(self, bar: Bar) -> None:
        self.progress.update(self.tasks[id(bar)], completed=bar.done, details=bar.details())

    def remove(self, bar: Bar, complete: bool) -> None:
        task = self.tasks.pop(id(bar))
        self.progress.update(task, completed=bar.done, details=bar.details(complete))
        if not bar.keep:
            self.progress.update(task, visible=False)
        if not self.tasks:
            self.progress.stop()


_display: _LiveDisplay | None = None


@contextlib.contextmanager
def track(
    label: str, total: int | None, unit: str = "step", *, keep: bool = True,
    stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic,
) -> Iterator[Bar]:
    """Shows progress while the ``with`` block runs.

    On a terminal this is a live bar; elsewhere (continuous integration, a
    notebook, a file) a plain line at most every five seconds and one at the end.

    Args:
      label: what is being done.
      total: number of units, or None if unknown.
      unit: what is counted, as it should read after "3/20".
      keep: whether the last state stays on the screen; an inner bar of a loop
        sets it to False.
      stream: where to write; stderr by default.
      clock: seconds, for tests.

    Yields:
      The :class:`Bar` to update.
    """
    global _display  # noqa: PLW0603 - a terminal has room for one live display
    stream = sys.stderr if stream is None else stream
    bar = Bar(label, total, unit, keep, clock)
    console = Console(file=stream)
    live = stream.isatty() and console.is_terminal and not console.is_dumb_terminal
    if live:
        if _display is None or not _display.tasks:
            _display = _LiveDisplay(console)
        display = _display
        display.add(bar)
        bar._interval, bar._draw = _DRAW_SECONDS, display.draw
    else:
        bar._draw = lambda shown: print(shown.line(), file=stream, flush=True)
    complete = False
    try:
        yield bar
        complete = True
    finally:
        bar._draw = None
        if live:
            display.remove(bar, complete)
        elif keep or not complete:
            ending = bar.line(complete) + ("" if complete else ", stopped")
            print(ending, file=stream, flush=True)
