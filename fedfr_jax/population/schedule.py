"""The plan of a run: which client is in which slot of which device in every round.

It depends only on the settings. So its largest round gives shapes that fit all rounds, and a
resumed run continues with the same cohorts.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from fedfr_jax.data.types import Clients
from fedfr_jax.population.feed import CohortRows, cohort_rows, needed_capacity
from fedfr_jax.population.participation import tree_sensitivities
from fedfr_jax.population.sampling import assign, drop_out, needed_slots, sample_cohorts
from fedfr_jax.settings import PopulationConfig

_SEED_PURPOSE = 4  # of the cohorts' random stream


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Cohorts of all rounds and the shapes that they need.

    Attributes:
      cohorts: (rounds, n) client numbers, -1 = none.
      clients: the population.
      devices: of all processes; ``processes``.
      slots: clients per device, ``capacity``: training images per device.
      most_images, most_identities: of a client of the population.
      dropped: (rounds,) clients that were drawn and failed before they trained.
    """

    cohorts: np.ndarray
    clients: Clients
    devices: int
    processes: int
    slots: int
    capacity: int
    most_images: int
    most_identities: int
    dropped: np.ndarray

    @functools.cached_property
    def tree_sensitivities(self) -> np.ndarray:
        """See :func:`fedfr_jax.population.participation.tree_sensitivities`."""
        return tree_sensitivities(self.cohorts)

    def assigned(self, round_index: int) -> np.ndarray:
        """(devices * slots,) client in each slot, -1 = empty."""
        return _assign(
            self.cohorts[round_index], self.clients, self.devices, self.slots, self.processes
        )

    def rows(self, assigned: np.ndarray) -> CohortRows:
        """Which images the clients in these slots train on."""
        return cohort_rows(
            self.clients,
            assigned,
            devices=self.devices,
            capacity=self.capacity,
            most_images=self.most_images,
        )


def _assign(cohort, clients, devices, slots, processes):
    present = cohort[cohort >= 0]
    return assign(
        present, clients.sizes[present], devices=devices, slots=slots, processes=processes
    )


def make_schedule(
    settings: PopulationConfig, rounds: int, seed: int, clients: Clients, devices: int
) -> Schedule:
    """Draws the cohorts of all rounds.

    Args:
      settings: cohort size, sampling, schedule and availability.
      rounds, seed: of the run.
      clients: the population.
      devices: of all processes.

    Raises:
      InputError: the schedule or availability file does not fit.
    """
    processes = jax.process_count()
    # Even without rounds, shapes are needed: those of a first round.
    cohorts = sample_cohorts(
        len(clients),
        max(1, rounds),
        settings,
        seed=seed * 1000 + _SEED_PURPOSE,
        weights=clients.sizes,
    )
    drawn = cohorts
    cohorts = drop_out(drawn, settings.dropout, seed=seed * 1000 + _SEED_PURPOSE)
    slots = needed_slots(cohorts, devices, processes)
    # Equal rounds (all clients take part) are processed only once.
    different = np.unique(cohorts, axis=0)
    capacity = needed_capacity(
        clients.sizes, (_assign(c, clients, devices, slots, processes) for c in different), devices
    )
    return Schedule(
        cohorts,
        clients,
        devices,
        processes,
        slots,
        max(1, capacity),
        int(clients.sizes.max()),
        int(clients.identity_counts.max()),
        (drawn >= 0).sum(1) - (cohorts >= 0).sum(1),
    )
