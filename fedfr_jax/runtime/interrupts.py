"""SIGTERM and Ctrl-C: finished work is saved first, then the program ends.

The commands install the handlers; without them, signals have Python's default effect.
"""

from __future__ import annotations

import signal
import sys
import threading


class Stopped(KeyboardInterrupt):
    """A signal told the program to end.

    Attributes:
      signal: its number.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = signal.Signals(number)


class _State:
    holding = False  # there is unsaved work that can be saved after a short wait
    pending: int | None = None  # the signal that waits for this


def install() -> None:
    """Turns SIGTERM and SIGINT into :class:`Stopped`, if signals can be handled here."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _handle)


def _handle(number: int, frame) -> None:
    if _State.holding and _State.pending is None:
        _State.pending = number
        print(
            f"{signal.Signals(number).name}: the round under way is finished and saved, then "
            "the run ends; once more ends it at once",
            file=sys.stderr,
            flush=True,
        )
        return
    raise Stopped(number)


def hold() -> None:
    """From now on a first signal waits for :func:`release`: there is unsaved work."""
    _State.holding = True


def pending() -> bool:
    """Whether a signal waits."""
    return _State.pending is not None


def release(stop: bool = True) -> None:
    """Says that there is no unsaved work (any more).

    Args:
      stop: raise :class:`Stopped` if a signal waits; False forgets the signal.
    """
    _State.holding, number, _State.pending = False, _State.pending, None
    if number is not None and stop:
        raise Stopped(number)
