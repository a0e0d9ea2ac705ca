"""Batches of one size, so that a compiled function is compiled once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np


class Rows(Protocol):
    """(N, ...) rows: an array, or what looks like one."""

    def __len__(self) -> int:
        """N."""
        ...

    def __getitem__(self, at: slice, /) -> np.ndarray:
        """Some of them."""
        ...


def equal_batches(rows: Rows, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Cuts (N, ...) rows into batches of ``size``, the last one filled up with zeros.

    Args:
      rows: an array, or an object that reads one when it is indexed with a slice.

    Yields:
      (number of real rows, (size, ...) batch).
    """
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        missing = size - len(part)
        whole = np.pad(part, [(0, missing)] + [(0, 0)] * (part.ndim - 1)) if missing else part
        yield len(part), whole


def by_batches(
    function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, size: int
) -> np.ndarray:
    """``function`` of (N, ...) rows, N > 0, called with batches of ``size`` rows.

    Args:
      function: maps a (size, ...) batch to (size, ...) results.
    """
    found = [np.asarray(function(batch))[:count] for count, batch in equal_batches(rows, size)]
    return np.concatenate(found)
