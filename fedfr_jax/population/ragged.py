"""The examples of a round's clients, of any kind and number, as arrays of one shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedfr_jax.population.sampling import assign

PyTree = Any
Read = Callable[[np.ndarray], PyTree]


class Packed(NamedTuple):
    """The clients of a round in C slots, device by device; a pytree.

    In a client update, without the axis C, it is one client.

    Attributes:
      id: (C,) int32 number in the population, -1 for an empty slot.
      size: (C,) int32 number of examples, 0 in an empty slot.
      examples: pytree of arrays (C, M, ...) with zeros behind the examples of each client.
    """

    id: Any
    size: Any
    examples: PyTree

    @property
    def taken(self) -> Any:
        """(C,) bool, False for an empty slot."""
        return self.id >= 0


def pack_ragged(
    read: Read,
    shares: Sequence[np.ndarray],
    clients: np.ndarray,
    *,
    devices: int = 1,
    most: int | None = None,
) -> Packed:
    """Packs the clients of a round so that all devices have about the same work.

    Shapes depend on the number of clients, ``devices`` and M only, so that all rounds share one
    compiled program.

    Args:
      read: maps (n,) int64 numbers of examples to a pytree of arrays (n, ...): for instance
        ``lambda n: {"x": x[n], "y": y[n]}``, in which ``x`` may be a memory-mapped file. It is
        called once, with the examples of all clients.
      shares: the numbers of the examples of each client of the population.
      clients: (n,) ids, as a row of :func:`~fedfr_jax.population.sample_cohorts`; -1 = none.
      devices: number of devices of the mesh.
      most: M, room for so many examples of a client. None: the largest share.

    Raises:
      ValueError: a client does not exist, or its share is larger than ``most``.
    """
    clients = np.asarray(clients)
    work = np.array([len(own) for own in _shares_of(shares, clients)])
    return pack_slots(read, shares, assign(clients, work, devices=devices), most=most)


def pack_slots(
    read: Read, shares: Sequence[np.ndarray], slots: np.ndarray, *, most: int | None = None
) -> Packed:
    """:func:`pack_ragged` for clients that were assigned to slots already.

    Args:
      read, shares, most: as there.
      slots: (C,) client in each slot, -1 = empty.

    Raises:
      ValueError: a client does not exist, or its share is larger than ``most``.
    """
    slots = np.asarray(slots)
    own = _shares_of(shares, slots)
    size = np.array([len(numbers) for numbers in own], np.int32)
    if most is None:
        most = max(map(len, shares), default=0)
    if size.max(initial=0) > most:
        raise ValueError(f"most: {most}, but a client of this round has {size.max()} examples")
    filled = np.arange(most) < size[:, None]

    def spaced(rows: Any) -> np.ndarray:
        rows = np.asarray(rows)
        out = np.zeros((*filled.shape, *rows.shape[1:]), rows.dtype)
        out[filled] = rows
        return out

    numbers = np.concatenate([np.zeros(0, np.int64), *own])
    return Packed(slots.astype(np.int32), size, jax.tree.map(spaced, read(numbers)))


def _shares_of(shares: Sequence[np.ndarray], clients: np.ndarray) -> list[np.ndarray]:
    """The numbers of each client's examples; none for -1."""
    if len(clients) and not -1 <= clients.min() <= clients.max() < len(shares):
        raise ValueError(f"clients: {clients.tolist()}; must be in [-1, {len(shares)})")
    return [np.asarray(shares[i] if i >= 0 else [], np.int64) for i in clients.tolist()]
