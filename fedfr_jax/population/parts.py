"""Which clients of a round are on the devices at a time, where a round runs in parts."""

from __future__ import annotations

import dataclasses

import numpy as np

from fedfr_jax.population.feed import CohortRows, cohort_rows, needed_capacity
from fedfr_jax.population.schedule import Schedule

_FEWEST = 256  # public images that there is room for, at least


@dataclasses.dataclass(frozen=True)
class Part:
    """Clients that are on the devices together.

    Attributes:
      slots: (D * n,) their slots in the round, device by device; -1 where there is none.
      clients: (D * n,) their numbers; -1 where there is none.
    """

    slots: np.ndarray
    clients: np.ndarray


@dataclasses.dataclass(frozen=True)
class CohortParts:
    """How the rounds of a schedule are divided.

    Attributes:
      schedule: of the run.
      size: n, clients of a device at a time.
      capacity: images that a device has of a part, at most.
    """

    schedule: Schedule
    size: int
    capacity: int

    def of(self, assigned: np.ndarray) -> list[Part]:
        """The parts of a round, those with most work first; none is without clients.

        Args:
          assigned: (D * slots,) client in each slot, -1 = empty.
        """
        return parts_of(assigned, self.schedule.clients.sizes, self.schedule.devices, self.size)

    def rows(self, part: Part) -> CohortRows:
        """Which images the clients of a part train on."""
        return cohort_rows(
            self.schedule.clients,
            part.clients,
            devices=self.schedule.devices,
            capacity=self.capacity,
            most_images=self.schedule.most_images,
        )


def make_parts(schedule: Schedule, size: int) -> CohortParts:
    """Divides all rounds of a schedule into parts of ``size`` clients per device."""
    size, sizes, devices = min(size, schedule.slots), schedule.clients.sizes, schedule.devices
    # Equal rounds (all clients take part) are processed only once.
    _, different = np.unique(schedule.cohorts, axis=0, return_index=True)
    parts = (
        part.clients
        for r in different
        for part in parts_of(schedule.assigned(int(r)), sizes, devices, size)
    )
    return CohortParts(schedule, size, max(1, needed_capacity(sizes, parts, devices)))


def parts_of(assigned: np.ndarray, sizes: np.ndarray, devices: int, size: int) -> list[Part]:
    """Divides a round's slots: each device's clients in the order of their images, most first.

    Args:
      assigned: (D * slots,) client in each slot, -1 = empty.
      sizes: training images per client of the population.
      devices: D; ``size``: clients of a device in a part.
    """
    by_device = assigned.reshape(devices, -1)
    slots = by_device.shape[1]
    work = np.where(by_device >= 0, sizes[by_device], -1)
    order = np.argsort(-work, axis=1, kind="stable") + np.arange(devices)[:, None] * slots
    order = np.pad(order, ((0, 0), (0, -slots % size)), constant_values=-1)
    found = []
    for first in range(0, order.shape[1], size):
        at = order[:, first : first + size].reshape(-1)
        clients = np.where(at >= 0, assigned[at], -1)
        if (clients >= 0).any():
            found.append(Part(np.where(clients >= 0, at, -1), clients))
    return found


def capacity_for(count: int, most: int, before: int = 0) -> int:
    """Public images that a program has room for: a power of two, so that there are few programs.

    It never shrinks during a run, as the memory for the largest part is needed anyway.

    Args:
      count: images to be kept; ``most``: N_0.
      before: the largest capacity so far.
    """
    needed = max(_FEWEST, before)
    while needed < count:
        needed *= 2
    return min(needed, most)
