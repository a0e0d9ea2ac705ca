"""A round's training images on the host: which ones the cohort needs, and where they go.

It uses only NumPy, so the next round is prepared while the devices work on this one. The
work is proportional to the cohort, not to the population.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from fedfr_jax.data.types import Clients, ranges


@dataclasses.dataclass(frozen=True)
class CohortRows:
    """One cohort's training images, a part for each of D devices; C = D * slots places.

    Attributes:
      numbers: (D * capacity,) int64 image numbers of the source. Device ``d``'s part is
        ``[d * capacity, d * capacity + used[d])``; image 0 fills up the rest.
      used: (D,) int32 images of each device.
      rows: (C, M) int32 positions of a client's images in its device's part; padding is 0.
      labels: (C, M) int32 local labels; padding is 0.
      sizes: (C,) int32 training images; 0 for an empty place.
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
    """Lists the images of a cohort and the positions of each client's images on the devices.

    Args:
      clients: the population.
      assigned: (D * slots,) int, the client in each place, device by device; -1 for none.
      devices: D.
      capacity: images that a device has room for; see :func:`needed_capacity`.
      most_images: M, the largest number of images of a client.

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


def needed_capacity(sizes: np.ndarray, assigned_rounds: Iterable[np.ndarray], devices: int) -> int:
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
    """(C,) int64 entries of ``values`` of the assigned clients; 0 for empty places."""
    return np.where(assigned >= 0, values[assigned], 0)


def _by_device(values: np.ndarray, devices: int) -> np.ndarray:
    if len(values) % devices:
        raise ValueError(f"{len(values)} places cannot be shared out among {devices} devices")
    return values.reshape(devices, -1)
