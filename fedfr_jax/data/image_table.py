"""Which images a person has, for any number of images and people."""

from __future__ import annotations

import dataclasses

import numpy as np

from fedfr_jax.data.types import ranges

_BLOCK = 1 << 22  # labels counted at a time: NumPy makes an int64 copy of them


@dataclasses.dataclass(frozen=True)
class Table:
    """Image numbers by identity: those of identity ``i`` are ``order[starts[i]:][:counts[i]]``.

    ``order`` is None if positions are image numbers. ``starts`` and ``counts`` have an entry
    for every number up to the largest label; ``counts`` is 0 for those without an image.
    """

    order: np.ndarray | None
    starts: np.ndarray
    counts: np.ndarray

    def images(self, identities: np.ndarray) -> np.ndarray:
        """Returns all image numbers of ``identities``, one identity after the other; int64."""
        positions = ranges(self.starts[identities], self.counts[identities])
        return positions if self.order is None else self.order[positions]


def tabulate(labels: np.ndarray) -> Table:
    """Sorts out (N,) labels, whole numbers >= 0, of any kind of integer."""
    if labels.dtype not in (np.int32, np.int64):
        labels = labels.astype(np.int64)
    counts = np.zeros(int(labels.max(initial=-1)) + 1, np.int64)
    for start in range(0, len(labels), _BLOCK):
        part = np.bincount(labels[start : start + _BLOCK])
        counts[: len(part)] += part
    is_sorted = bool((labels[:-1] <= labels[1:]).all())
    order = None if is_sorted else np.argsort(labels, kind="stable")
    return Table(order, np.cumsum(counts) - counts, counts)


def suitable(identities: np.ndarray, counts: np.ndarray, limits: tuple[int, ...]) -> np.ndarray:
    """Those of the identities that have ``limits[0]`` to ``limits[1]`` images, in their order."""
    found = counts[identities]
    return identities[(found >= limits[0]) & (found <= limits[1])]
