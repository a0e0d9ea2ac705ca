"""The held-out images on which the clients' models are compared."""

from __future__ import annotations

import dataclasses

import numpy as np

from fedfr_jax.data.types import FederatedSplit, ImageSource


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Verification images of the evaluated clients' identities.

    Attributes:
      numbers: (E,) int64 evaluated clients, by their number in the population.
      images: (V, S, S, 3) uint8.
      labels: (V,) int64 identity, numbered consecutively over the evaluated clients: local
        label ``k`` of client ``numbers[i]`` is ``first_identity[i] + k``.
      clients: (V,) int64 position ``i`` of the client whose identity it is.
      first_identity: (E + 1,) int64.
    """

    numbers: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    clients: np.ndarray
    first_identity: np.ndarray


def evaluated_clients(population: int, count: int, seed: int) -> np.ndarray:
    """Ascending numbers of ``count`` clients drawn from the population; 0: all of them."""
    if not count or count >= population:
        return np.arange(population)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(5,)))
    return np.sort(rng.choice(population, count, replace=False))


def read_held_out(source: ImageSource, split: FederatedSplit, numbers: np.ndarray) -> HeldOut:
    """Reads the verification images of the clients ``numbers``."""
    clients = [split.clients[int(i)] for i in numbers]
    first = np.concatenate([[0], np.cumsum([len(c.identities) for c in clients])])
    labels = [f + c.verification_labels for f, c in zip(first[:-1], clients, strict=True)]
    images = source.read(np.concatenate([c.verification_images for c in clients]))
    owner = np.repeat(np.arange(len(clients)), [len(l) for l in labels])
    return HeldOut(numbers, images, np.concatenate(labels), owner, first)
