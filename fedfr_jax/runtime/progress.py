"""Progress of long phases: a live bar on a terminal or in a notebook, plain lines elsewhere.

``with track("pretraining", total=steps, unit="step") as bar: bar.update(1, images=128, loss=x)``
"""

from __future__ import annotations

import contextlib
import html
import math
import sys
import threading
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
_WINDOW_SECONDS = 30.0  # rates are averaged over about this time
_SILENT_SECONDS = (4.0, 10.0)  # without an update: a first sign of life, and further ones


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
    """Counts finished units. Made by :func:`track`; all its work is on the host.

    Rates and the remaining time count from the first update, so that compilation
    before it is left out, and are averaged over about half a minute.
    """

    def __init__(
        self, label: str, total: int | None, unit: str, keep: bool, clock: Callable[[], float]
    ):
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
        self._lock = threading.Lock()

    def update(self, n: int = 1, images: int = 0, **values: Any) -> None:
        """Adds ``n`` finished units.

        Args:
          n: units finished since the last update.
          images: images processed for them; shown per second.
          **values: numbers or text to show (loss=...). They may be JAX arrays:
            they are fetched only when a line is drawn, a few times per second
            at most, so that dispatch is not delayed.
        """
        self.done += n
        self.images += images
        self.values.update(values)
        now = self.clock()
        self._seen.append((now, self.done, self.images))
        while len(self._seen) > 2 and self._seen[1][0] < now - _WINDOW_SECONDS:
            self._seen.popleft()
        if now - self._drawn >= self._interval:
            self._show()

    def _show(self) -> None:
        with self._lock:
            self._drawn = self.clock()
            if self._draw is not None:
                self._draw(self)

    def show_when_silent(self) -> None:
        """Draws if there was no update for some time, as while something is compiled."""
        silent = self.clock() - self._drawn
        if silent >= _SILENT_SECONDS[self._drawn > self.start]:
            self._show()

    def rates(self) -> tuple[float, float] | None:
        """(units, images) per second over the window, or None before the second update."""
        if len(self._seen) < 2:
            return None
        (t0, done0, images0), (t1, done1, images1) = self._seen[0], self._seen[-1]
        if t1 <= t0:
            return None
        return (done1 - done0) / (t1 - t0), (images1 - images0) / (t1 - t0)

    def seconds_left(self) -> float | None:
        """Remaining time at the present rate, or None if it is unknown."""
        rates = self.rates()
        if self.total is None or rates is None or rates[0] <= 0:
            return None
        return max(self.total - self.done, 0) / rates[0]

    def details(self, finished: bool = False) -> str:
        """The text after the count: time, images per second, values."""
        rates, left = self.rates(), self.seconds_left()
        parts = []
        if finished:
            parts.append(f"in {duration(self.clock() - self.start)}")
        elif left is None:
            parts.append(f"{duration(self.clock() - self.start)} so far")
        else:
            parts.append(f"{duration(left)} left")
        if rates is not None and rates[1] > 0:
            parts.append(f"{quantity(float(rates[1]))} images/s")
        return ", ".join(parts + [f"{key} {quantity(value)}" for key, value in self.values.items()])

    def line(self, finished: bool = False) -> str:
        """The plain line: ``pretraining: 120/400 step, 12 s left, 310 images/s, loss 3.21``."""
        count = f"{self.done:,}" + (f"/{self.total:,}" if self.total is not None else "")
        counted = [f"{count} {self.unit}"] if self.unit else []
        return f"{self.label}: " + ", ".join(filter(None, [*counted, self.details(finished)]))


class _LiveDisplay:
    """One rich display on a terminal, shared by nested bars."""

    def __init__(self, console: Console):
        self.progress = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            TextColumn("{task.fields[details]}", markup=False),
            console=console,
            # A print to a redirected stdout belongs in that file, not above the bar.
            redirect_stdout=sys.stdout.isatty(),
            refresh_per_second=8,
        )
        self.tasks: dict[int, Any] = {}

    def add(self, bar: Bar) -> None:
        if not self.tasks:
            self.progress.start()
        self.tasks[id(bar)] = self.progress.add_task(
            bar.label, total=bar.total, unit=bar.unit, details=""
        )

    def draw(self, bar: Bar) -> None:
        self.progress.update(self.tasks[id(bar)], completed=bar.done, details=bar.details())

    def remove(self, bar: Bar, complete: bool) -> None:
        task = self.tasks.pop(id(bar))
        self.progress.update(task, completed=bar.done, details=bar.details(complete))
        if not bar.keep:
            self.progress.update(task, visible=False)
        if not self.tasks:
            self.progress.stop()


class _NotebookDisplay:
    """A bar in a cell's output, which changes in place."""

    def __init__(self, bar: Bar):
        from IPython.display import HTML, display  # noqa: PLC0415 - only in a notebook

        self.html = HTML
        self.handle = display(HTML(self._text(bar)), display_id=True)

    @staticmethod
    def _text(bar: Bar, finished: bool = False) -> str:
        value = (
            ""
            if bar.total is None and not finished
            else (
                f' value="{1 if finished else bar.done}" max="{1 if finished else bar.total or 1}"'
            )
        )
        return f"<progress{value}></progress> {html.escape(bar.line(finished))}"

    def draw(self, bar: Bar) -> None:
        self.handle.update(self.html(self._text(bar)))

    def close(self, bar: Bar, complete: bool) -> None:
        ending = "" if complete else ", stopped"
        shown = bar.keep or not complete
        self.handle.update(self.html(self._text(bar, complete) + ending if shown else ""))


_display: _LiveDisplay | None = None


@contextlib.contextmanager
def track(
    label: str,
    total: int | None,
    unit: str = "step",
    *,
    keep: bool = True,
    stream: IO[str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Bar]:
    """Shows progress while the ``with`` block runs.

    On a terminal or in a notebook this is a live bar; elsewhere (continuous integration, a
    file) a plain line at most every five seconds and one at the end. If there is no update for
    some time, as during compilation, the elapsed time is shown.

    Args:
      label: what is being done.
      total: number of units, or None if unknown.
      unit: what is counted, as it should read after "3/20"; "" if nothing is.
      keep: whether the last state stays on the screen; an inner bar of a loop
        sets it to False.
      stream: where to write; stderr by default.
      clock: seconds, for tests.

    Yields:
      The :class:`Bar` to update.
    """
    in_notebook = stream is None and _in_notebook()
    stream = sys.stderr if stream is None else stream
    bar = Bar(label, total, unit, keep, clock)
    close = _notebook(bar) if in_notebook else _terminal(bar, stream) or _lines(bar, stream)
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(bar, ended), daemon=True)
    watch.start()
    complete = False
    try:
        yield bar
        complete = True
    finally:
        ended.set()
        with bar._lock:
            bar._draw = None
        close(complete)


def _in_notebook() -> bool:
    return Console().is_jupyter


def _watch(bar: Bar, ended: threading.Event) -> None:
    while not ended.wait(1.0):
        bar.show_when_silent()


# How a bar is shown: each sets ``bar._draw`` and returns what closes the bar.
def _notebook(bar: Bar) -> Callable[[bool], None]:
    display = _NotebookDisplay(bar)
    bar._interval, bar._draw = 5 * _DRAW_SECONDS, display.draw
    return lambda complete: display.close(bar, complete)


def _terminal(bar: Bar, stream: IO[str]) -> Callable[[bool], None] | None:
    global _display  # noqa: PLW0603 - a terminal has room for one live display
    console = Console(file=stream)
    if not (stream.isatty() and console.is_terminal and not console.is_dumb_terminal):
        return None
    if _display is None or not _display.tasks:
        _display = _LiveDisplay(console)
    display = _display
    display.add(bar)
    bar._interval, bar._draw = _DRAW_SECONDS, display.draw
    return lambda complete: display.remove(bar, complete)


def _lines(bar: Bar, stream: IO[str]) -> Callable[[bool], None]:
    def close(complete):
        if bar.keep or not complete:
            ending = bar.line(complete) + ("" if complete else ", stopped")
            print(ending, file=stream, flush=True)

    bar._draw = lambda shown: print(shown.line(), file=stream, flush=True)
    return close
