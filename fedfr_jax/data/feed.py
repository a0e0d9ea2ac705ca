"""The host's side of a round's training images: which of them the cohort needs, and where they go.

Only NumPy here, so that a thread can get the next round ready while the devices work on this one.
The work is in proportion to the cohort, not to the population.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np

from fedfr_jax.data.types import Clients, ranges

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class CohortRows:
    """One cohort's training images, a part for each of D devices; C = D * slots places.

    Attributes:
      numbers: (D * capacity,) int64 image numbers of the source. Device ``d``'s part is
        ``[d * capacity, d * capacity + used[d])``; image 0 fills up the rest.
      used: (D,) int32 images of each device.
      rows: (C, M) int32, where in its device's part a client's images are; padding is 0.
      labels: (C, M) int32 local labels; padding is 0.
      sizes: (C,) int32 training images; 0 for an empty place, as in the next.
      identities: (C,) int32 identities.
      clients: (C,) int32 numbers in the population; -1 for an empty place.
    """

    numbers: np.ndarray
    used: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    identities: np.ndarray
    clients: np.ndarray


def cohort_rows(
    clients: Clients, assigned: np.ndarray, *, devices: int, capacity: int, most_images: int
) -> CohortRows:
    """Lists the images of a cohort and says where on the devices each client finds its own.

    Args:
      clients: the population.
      assigned: (D * slots,) int, the client in each place, device by device; -1 for nobody.
      devices: D.
      capacity: images that a device has room for; see :func:`needed_capacity`.
      most_images: M, images that a client may have.

    Returns:
      The rows. Their shapes depend on the arguments' shapes, ``devices``, ``capacity`` and
      ``most_images`` only, so that one compiled program takes any cohort.

    Raises:
      ValueError: the devices do not divide the places, or a client or a device has too many
        images.
    """
    assigned = np.asarray(assigned)
    taken = assigned >= 0
    members = assigned[taken]
    sizes = _where_taken(clients.sizes, assigned)
    by_device = _by_device(sizes, devices)
    used = by_device.sum(axis=1)
    if sizes.max(initial=0) > most_images:
        raise ValueError(f"a client has {sizes.max()} images, room is for {most_images}")
    if used.max(initial=0) > capacity:
        raise ValueError(f"a device has {used.max()} images, room is for {capacity}")
    first = (np.cumsum(by_device, axis=1) - by_device).reshape(-1)
    part = np.repeat(np.arange(devices) * capacity, by_device.shape[1])
    images, local = clients.training(members)
    numbers = np.zeros(devices * capacity, np.int64)
    numbers[ranges((part + first)[taken], sizes[taken])] = images
    columns = np.arange(most_images)
    filled = columns < sizes[:, None]
    labels = np.zeros(filled.shape, np.int32)
    labels[filled] = local  # row by row, as the images are listed
    return CohortRows(
        numbers=numbers,
        used=used.astype(np.int32),
        rows=np.where(filled, first[:, None] + columns, 0).astype(np.int32),
        labels=labels,
        sizes=sizes.astype(np.int32),
        identities=_where_taken(clients.identity_counts, assigned).astype(np.int32),
        clients=np.where(taken, assigned, -1).astype(np.int32),
    )


def needed_capacity(
    sizes: np.ndarray, assigned_rounds: Iterable[np.ndarray], devices: int
) -> int:
    """Returns the most images that any device holds in any round of a plan.

    Args:
      sizes: (N,) int64 training images per client of the population.
      assigned_rounds: for each round (D * slots,) int, as for :func:`cohort_rows`.
      devices: D.

    Raises:
      ValueError: the devices do not divide the places of a round.
    """
    totals = (
        _by_device(_where_taken(sizes, np.asarray(assigned)), devices).sum(axis=1)
        for assigned in assigned_rounds
    )
    return max((int(total.max(initial=0)) for total in totals), default=0)


def _where_taken(values: np.ndarray, assigned: np.ndarray) -> np.ndarray:
    """(C,) int64 entries of ``values`` of the assigned clients; 0 for nobody."""
    return np.where(assigned >= 0, values[assigned], 0)


def _by_device(values: np.ndarray, devices: int) -> np.ndarray:
    if len(values) % devices:
        raise ValueError(f"{len(values)} places cannot be shared out among {devices} devices")
    return values.reshape(devices, -1)


class Prefetcher(Generic[T]):
    """Makes one round's value in a background thread while the caller uses the one before.

    At most one call of ``make`` runs at a time, and at most one finished value waits. It is a
    context manager; leaving it closes it. :meth:`get` and the other methods are for one thread.
    """

    def __init__(self, make: Callable[[int], T], end: int | None = None):
        """Starts nothing yet.

        Args:
          make: maps a round to its value; called in the background thread only.
          end: rounds from here on are not made unless they are asked for; None for no end.
        """
        self._make, self._end = make, end
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: tuple[int, Future[T]] | None = None

    def start(self, round_number: int) -> None:
        """Begins to make this round's value, if it is not being made already."""
        if self._ahead and self._ahead[0] == round_number:
            return
        if self._ahead:  # nobody asked for it
            self._ahead[1].cancel()
        self._ahead = (round_number, self._thread.submit(self._make, round_number))

    def get(self, round_number: int) -> T:
        """Returns this round's value, waiting if need be, and begins with the next round's.

        A round that was not made ahead is made now; that waits for the call of ``make`` under
        way, as that cannot be stopped.

        Raises:
          Whatever ``make`` raised for this round; asking again makes it again.
          RuntimeError: the prefetcher is closed.
        """
        self.start(round_number)
        future, self._ahead = self._ahead[1], None
        value = future.result()
        if self._end is None or round_number + 1 < self._end:
            self.start(round_number + 1)
        return value

    def close(self) -> None:
        """Ends the thread, after the call of ``make`` under way; what it made is dropped."""
        self._ahead = None
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
