"""Whose images an attacker asks about: people of clients, and people whom nobody trained on."""

from __future__ import annotations

import dataclasses

import numpy as np

from fedfr_jax.audit.plan import Plan
from fedfr_jax.data.types import FederatedSplit, ImageSource
from fedfr_jax.errors import InputError

TRAINED, KEPT, STRANGER = 0, 1, 2  # what an image is


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Images of members and of others.

    Attributes:
      numbers: (n,) int64 image numbers of the source.
      person: (n,) int64 in [0, P), ascending: a person is one entry of a client, or a stranger.
      role: (n,) TRAINED, KEPT (a held-out image of a person of a client) or STRANGER.
      client: (P,) int64 whose person it is, -1 for a stranger.
      label: (P,) int64 local label at that client, -1 for a stranger.
    """

    numbers: np.ndarray
    person: np.ndarray
    role: np.ndarray
    client: np.ndarray
    label: np.ndarray

    @property
    def people(self) -> int:
        return len(self.client)

    @property
    def is_member(self) -> np.ndarray:
        """(P,) bool: people of clients."""
        return self.client >= 0

    def only(self, kept: np.ndarray) -> Candidates:
        """Those images where (n,) ``kept`` is True; the people are numbered as before."""
        return dataclasses.replace(
            self, numbers=self.numbers[kept], person=self.person[kept], role=self.role[kept]
        )


def strangers_of(source: ImageSource, split: FederatedSplit) -> np.ndarray:
    """(H,) int64 people of the source of whom no client and no public data have an image."""
    seen = np.zeros(source.num_identities, bool)
    seen[split.clients.identities] = True
    seen[split.public_identities] = True
    return np.flatnonzero(~seen)


def choose(
    source: ImageSource, split: FederatedSplit, clients: np.ndarray, plan: Plan
) -> Candidates:
    """Draws people of clients, and as many strangers, and some images of each.

    Args:
      source, split: the data.
      clients: whose people may be drawn, in the order in which clients are taken.
      plan: how many.

    Raises:
      InputError: nobody can be compared.
    """
    rng = np.random.default_rng([plan.seed, 1])
    numbers: list[np.ndarray] = []
    roles: list[np.ndarray] = []
    owner: list[int] = []
    labels: list[int] = []
    for client in clients.tolist():
        if len(owner) >= plan.people:
            break
        share = split.clients[client]
        for label in range(len(share.identities))[: plan.people - len(owner)]:
            own = _some(rng, share.train_images[share.train_labels == label], plan.images)
            kept = _some(
                rng, share.verification_images[share.verification_labels == label], plan.images
            )
            numbers.append(np.concatenate([own, kept]))
            roles.append(np.repeat([TRAINED, KEPT], [len(own), len(kept)]))
            owner.append(client)
            labels.append(label)
    most = max((len(n) for n in numbers), default=0)
    members = len(owner)
    strangers = rng.permutation(strangers_of(source, split))[:members]
    for group in _images_of(source.labels, strangers):
        if len(group) > 1:
            numbers.append(_some(rng, group, most))
            roles.append(np.full(len(numbers[-1]), STRANGER))
            owner.append(-1)
            labels.append(-1)
    if not members:
        raise InputError("no client has people who could be attacked: the run has no clients")
    return Candidates(
        np.concatenate(numbers),
        np.repeat(np.arange(len(numbers)), [len(n) for n in numbers]),
        np.concatenate(roles),
        np.array(owner),
        np.array(labels),
    )


def _images_of(labels: np.ndarray, people: np.ndarray) -> list[np.ndarray]:
    """The image numbers of each of these people, in one pass over the labels."""
    place = np.full(int(labels.max(initial=-1)) + 1, -1)
    place[people] = np.arange(len(people))
    found = np.flatnonzero(place[labels] >= 0)
    whose = place[labels[found]]
    order = np.argsort(whose, kind="stable")
    return np.split(found[order], np.searchsorted(whose[order], np.arange(1, len(people))))


def _some(rng: np.random.Generator, images: np.ndarray, most: int) -> np.ndarray:
    if len(images) <= most:
        return images
    return np.sort(rng.choice(images, most, replace=False))


def similarity(features: np.ndarray, person: np.ndarray) -> np.ndarray:
    """(n,) cosine of each image with the center of its person's *other* images.

    Args:
      features: (n, d) of length one.
      person: (n,) whole numbers from 0.

    Returns:
      NaN where a person has one image.
    """
    total = sums_of_people(features, person)
    others = total[person] - features
    length = np.linalg.norm(others, axis=1)
    alone = np.bincount(person)[person] < 2
    cosine = (features * others).sum(1) / np.maximum(length, 1e-12)
    return np.where(alone, np.nan, cosine)


def compactness(features: np.ndarray, person: np.ndarray, people: int) -> np.ndarray:
    """(people,) mean cosine of pairs of images of one person; NaN with fewer than two images."""
    count = np.bincount(person, minlength=people)
    total = sums_of_people(features, person, people)
    pairs = count * (count - 1)
    inside = (total**2).sum(1) - np.bincount(person, (features**2).sum(1), people)
    return np.where(pairs > 0, inside / np.maximum(pairs, 1), np.nan)


def sums_of_people(features: np.ndarray, person: np.ndarray, people: int = 0) -> np.ndarray:
    """(K, d) float64 sums of each person's features; K is ``people``, or more if there are more."""
    total = np.zeros((max(people, int(person.max(initial=-1)) + 1), features.shape[1]))
    np.add.at(total, person, features.astype(np.float64))
    return total
