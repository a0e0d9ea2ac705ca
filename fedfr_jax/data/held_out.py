"""The held-out images on which the clients' models are compared."""

from __future__ import annotations

import dataclasses

import numpy as np

from fedfr_jax.data.types import FederatedSplit, ImageSource, consecutive


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Verification images of the evaluated clients' identities.

    Attributes:
      numbers: (E,) int64 evaluated clients, by their number in the population.
      images: (V, S, S, 3) uint8.
      labels: (V,) int64 person, numbered from 0 over the evaluated clients. A person whom several
        clients have is one person.
      clients: (V,) int64 position ``i`` of the client that has the image.
      first_identity: (E + 1,) int64; the K_i people of client ``numbers[i]`` are the entries
        ``first_identity[i]:first_identity[i + 1]`` of ``people``.
      people: (sum of K_i,) int64 person of each local label, client after client.
    """

    numbers: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    clients: np.ndarray
    first_identity: np.ndarray
    people: np.ndarray

    def people_of(self, position: int) -> np.ndarray:
        """(K_i,) int64 person of each local label of the client at ``position``."""
        return self.people[self.first_identity[position] : self.first_identity[position + 1]]

    def shows(self, position: int) -> np.ndarray:
        """(V,) bool: the image shows a person of this client, whichever client has the image."""
        own = np.zeros(self.people.max(initial=-1) + 1, bool)
        own[self.people_of(position)] = True
        return own[self.labels]


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
    _, people = consecutive(np.concatenate([c.identities for c in clients]))
    labels = [people[f + c.verification_labels] for f, c in zip(first[:-1], clients, strict=True)]
    images = source.read(np.concatenate([c.verification_images for c in clients]))
    owner = np.repeat(np.arange(len(clients)), [len(l) for l in labels])
    return HeldOut(numbers, images, np.concatenate(labels), owner, first, people)
