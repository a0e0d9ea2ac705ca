"""People who are at several clients: who is where, and who has which of their images.

A shared person is at exactly ``sites`` clients. Nothing here is drawn and rejected: a valid plan is
written down, then mixed by exchanges that keep it valid. So there is no request on which it could
go on for ever.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from fedfr_jax.data.types import ranges
from fedfr_jax.errors import ConfigError

_MIXINGS = 3  # times that every place of a shared person is offered an exchange with another


@dataclasses.dataclass(frozen=True)
class Sharing:
    """The shared people of N clients, in S places, client after client.

    Attributes:
      places: (N,) int64 shared people of each client.
      people: (S,) int64 in [0, count), each ``sites`` times, never twice at a client.
      parts: (S,) int64 which part of the person's images is here; those of a person are
        0 to ``sites`` - 1.
      count: shared people.
      sites: clients that have a shared person.
    """

    places: np.ndarray
    people: np.ndarray
    parts: np.ndarray
    count: int
    sites: int


def shared_places(sizes: np.ndarray, share: float, sites: int) -> np.ndarray:
    """Decides how many of its people each client shares.

    ``share * sizes[i]``, rounded up or down so that the clients together share what was asked for,
    up to the rounding to whole people at ``sites`` clients.

    Args:
      sizes: (N,) int64 people of each client.
      share: of a client's people who are also elsewhere, in [0, 1].
      sites: clients that have a shared person, at least 2.

    Returns:
      (N,) int64; the sum is a multiple of ``sites``, of which none is larger than the sum's
      ``sites``-th part: so there is a plan.

    Raises:
      ConfigError: there is no such plan.
    """
    if not share:
        return np.zeros_like(sizes)
    ends = np.floor(share * np.cumsum(sizes) + 0.5).astype(np.int64)
    wanted = np.minimum(np.diff(ends, prepend=0), sizes)
    count = int(wanted.sum()) // sites
    if not count:
        raise ConfigError(
            f"data.split.shared_identities is {share}, but of the clients' {sizes.sum()} people "
            f"that leaves no one to be at {sites} clients; raise it, or lower "
            "data.split.sites_per_shared_identity"
        )
    places = np.minimum(wanted, count)  # nobody is twice at a client
    largest, excess = int(np.argmax(wanted)), int(places.sum()) - sites * count
    if wanted[largest] > count + 1 or excess < 0:
        raise ConfigError(
            f"data.split.shared_identities is {share}, but client {largest} would share "
            f"{wanted[largest]} of its {sizes[largest]} people, each at {sites} clients, and the "
            "others do not share as many; lower it or data.split.sites_per_shared_identity, "
            "raise fed.num_clients, or make data.split.identities_per_client more equal"
        )
    places[np.argsort(-places, kind="stable")[:excess]] -= 1
    return places


def plan_sharing(places: np.ndarray, sites: int, rng: np.random.Generator) -> Sharing:
    """Decides who shares whom.

    Args:
      places: (N,) shared people of each client, from :func:`shared_places`.
      sites: clients that have a shared person.
      rng: a stream of its own.
    """
    count = int(places.sum()) // sites
    owner = np.repeat(np.arange(len(places)), places)
    people = _mixed(owner, _in_turn(places, count, rng), count, rng)
    order = np.lexsort((rng.random(len(people)), people))
    parts = np.empty(len(people), np.int64)
    parts[order] = np.arange(len(people)) % sites
    return Sharing(places, people, parts, count, sites)


def part_of(counts: np.ndarray, part: np.ndarray, parts: np.ndarray | int) -> tuple:
    """(first, length) of one of several near-equal consecutive parts of ``counts`` images."""
    first = counts * part // parts
    return first, counts * (part + 1) // parts - first


def _in_turn(places: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(S,) people: dealt out in turn to clients in random order, so that none gets one twice.

    A client has at most ``count`` places, one after the other, and a person returns after
    ``count`` places.
    """
    order = rng.permutation(len(places))
    first = np.empty(len(places), np.int64)
    first[order] = np.cumsum(places[order]) - places[order]
    return ranges(first, places) % count


def _mixed(
    owner: np.ndarray, people: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """People exchanged between random pairs of places, wherever nobody is then twice at a client.

    Args:
      owner: (S,) client of each place; people: (S,) in [0, count).
    """
    for _ in range(_MIXINGS):
        order, half = rng.permutation(len(people)), len(people) // 2
        one, other = order[:half], order[half : 2 * half]
        swap = np.ones(half, bool)
        while True:  # ends: whoever is twice somewhere came by an exchange, which is taken back
            now = people.copy()
            now[one[swap]], now[other[swap]] = people[other[swap]], people[one[swap]]
            twice = _repeated(owner * count + now)
            if not twice.any():
                break
            swap &= ~(twice[one] | twice[other])
        people = now
    return people


def _repeated(keys: np.ndarray) -> np.ndarray:
    """(S,) bool: the key occurs more than once."""
    order = np.argsort(keys, kind="stable")
    like_last = np.zeros(len(keys) + 1, bool)
    like_last[1:-1] = keys[order[1:]] == keys[order[:-1]]
    found = np.empty(len(keys), bool)
    found[order] = like_last[:-1] | like_last[1:]
    return found
