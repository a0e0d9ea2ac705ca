"""How many images, people, clients and devices a run has."""

from __future__ import annotations

import dataclasses

import numpy as np

from fedfr_jax.config import Config
from fedfr_jax.data.held_out import evaluated_clients
from fedfr_jax.data.split_file import split_arrays
from fedfr_jax.data.types import FederatedSplit
from fedfr_jax.population.parts import make_parts
from fedfr_jax.population.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Counts:
    """How much there is of everything; with several hosts, most of it is of all of them.

    Attributes:
      public_images, public_identities: N_0, K_0.
      training_images: of all clients of the population.
      probes: verification images of the evaluated clients, and images of verification pairs.
      clients: of the population; ``touched``: that take part in some round.
      devices, hosts: over which rounds are spread.
      slots: clients per device in a round; ``capacity``: their training images.
      most_images, most_identities: of a client.
      part_capacity: training images of a device's clients in a part of a round; as ``capacity``
        where rounds are not in parts.
      one_cohort: all rounds have the same clients.
      tables: bytes of labels, split and schedule on each host.
    """

    public_images: int
    public_identities: int
    training_images: int
    probes: int
    clients: int
    touched: int
    devices: int
    hosts: int
    slots: int
    capacity: int
    part_capacity: int
    most_images: int
    most_identities: int
    one_cohort: bool
    tables: int

    @property
    def local_devices(self) -> int:
        """Devices of one host."""
        return -(-self.devices // self.hosts)


def counts_of(
    config: Config,
    labels: np.ndarray,
    split: FederatedSplit,
    schedule: Schedule,
    hosts: int = 1,
    pair_images: int | None = None,
) -> Counts:
    """How much there is of everything.

    Args:
      labels: of the source; ``hosts``: over which the devices are spread.
      pair_images: of verification sets; None: only those of the split.
    """
    clients, cohorts = split.clients, schedule.cohorts
    evaluated = evaluated_clients(len(clients), config.eval.clients, config.data.seed)
    probes = int(clients.verification_counts[evaluated].sum())
    arrays = [labels, cohorts, *split_arrays(split).values()]
    return Counts(
        public_images=len(split.public_images),
        public_identities=len(split.public_identities),
        training_images=int(clients.sizes.sum()),
        probes=probes + (split.pairs.size if pair_images is None else pair_images),
        clients=len(schedule.clients),
        touched=len(np.unique(cohorts[cohorts >= 0])),
        devices=schedule.devices,
        hosts=hosts,
        slots=schedule.slots,
        capacity=schedule.capacity,
        part_capacity=(
            make_parts(schedule, config.engine.part).capacity
            if config.engine.part
            else schedule.capacity
        ),
        most_images=schedule.most_images,
        most_identities=schedule.most_identities,
        one_cohort=bool((cohorts == cohorts[0]).all()),
        tables=sum(np.asarray(a).nbytes for a in arrays),
    )
