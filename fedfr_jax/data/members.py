"""Which people each client has: in shuffled order, shared with other clients, or by group."""

from __future__ import annotations

import dataclasses

import numpy as np

from fedfr_jax.data.attributes import LOOKED_AT, Features
from fedfr_jax.data.image_table import Table, suitable
from fedfr_jax.data.sharing import part_of, plan_sharing, shared_places
from fedfr_jax.data.skew import draw_people, group_people
from fedfr_jax.data.types import ranges
from fedfr_jax.errors import InputError
from fedfr_jax.settings import SplitConfig


def stream(seed: int, purpose: int) -> np.random.Generator:
    """Separate streams: asking for more pairs must not change who the clients are."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose,)))


@dataclasses.dataclass(frozen=True)
class Members:
    """The clients' people, client after client.

    Attributes:
      identities: (T,) int64; ``sizes``: (N,) int64, how many each client has.
      starts, counts: (T,) int64, the images of each that its client may use, in the table's order.
      groups, attribute: as in :class:`FederatedSplit`.
    """

    identities: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    groups: np.ndarray | None = None
    attribute: np.ndarray | None = None


def choose_members(
    pool: np.ndarray,
    table: Table,
    num_clients: int,
    config: SplitConfig,
    seed: int,
    features: Features | None,
) -> Members:
    """Gives each client its people.

    Args:
      pool: (n,) int64 identities for clients, in shuffled order.
      table: everybody's images.
      num_clients, config, seed, features: as for :func:`fedfr_jax.data.split.make_split`.

    Raises:
      InputError: the pool has too few people, or too few with as many images as sharing needs.
    """
    people = suitable(pool, table.counts, config.client_images)
    low, high = config.identities_per_client
    if num_clients * low > table.counts[people].sum():  # before there is anything per client
        raise _too_few(f"at least {num_clients * low}", people, pool, num_clients, config)
    sizes = stream(seed, 1).integers(low, high, num_clients, endpoint=True)
    sites = config.sites_per_shared_identity
    places = shared_places(sizes, config.shared_identities, sites)
    needed = sizes.sum() - places.sum() + places.sum() // sites
    if needed > len(people):
        raise _too_few(needed, people, pool, num_clients, config)
    shared = _to_share(people, table.counts, int(places.sum()) // sites, config)
    groups, attribute = _grouped(people, table, config, seed, features)
    # Where everybody is: positions in ``people``, client after client, its shared people first.
    plan = plan_sharing(places, sites, stream(seed, 7))
    is_shared = ranges(np.zeros_like(sizes), sizes) < np.repeat(places, sizes)
    chosen, part = np.empty(len(is_shared), np.int64), np.zeros(len(is_shared), np.int64)
    chosen[is_shared], part[is_shared] = shared[plan.people], plan.parts
    free = np.ones(len(people), bool)
    free[shared] = False
    chosen[~is_shared] = _alone(np.flatnonzero(free), sizes - places, groups, config, seed)
    identities = people[chosen]
    first, counts = part_of(table.counts[identities], part, np.where(is_shared, sites, 1))
    return Members(
        identities,
        sizes,
        table.starts[identities] + first,
        counts,
        None if groups is None else groups[chosen],
        None if attribute is None else attribute[chosen],
    )


def _too_few(
    needed: object, people: np.ndarray, pool: np.ndarray, num_clients: int, config: SplitConfig
) -> InputError:
    return InputError(
        f"too few client identities: {num_clients} clients need {needed}, but only "
        f"{len(people)} of the {len(pool)} identities for clients have "
        f"{config.client_images[0]} to {config.client_images[1]} images; lower "
        "fed.num_clients or data.split.identities_per_client, widen "
        "data.split.client_images, or raise data.split.client_fraction"
    )


def _to_share(
    people: np.ndarray, counts: np.ndarray, wanted: int, config: SplitConfig
) -> np.ndarray:
    """(wanted,) positions of the first of the people who have enough images for several clients."""
    held = config.verification_images + config.validation_images
    sites = config.sites_per_shared_identity
    enough = np.flatnonzero(counts[people] >= sites * (held + 1))
    if len(enough) < wanted:
        raise InputError(
            f"data.split.shared_identities: {wanted} shared people are needed, but only "
            f"{len(enough)} of the {len(people)} who suit have {sites * (held + 1)} "
            f"images, so that each of their {sites} clients gets {held} to hold out and "
            "one to train on; lower it, data.split.sites_per_shared_identity or "
            "data.split.verification_images, or raise data.split.client_fraction"
        )
    return enough[:wanted]


def _grouped(
    people: np.ndarray, table: Table, config: SplitConfig, seed: int, features: Features | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(group of each of the people, the number that decides it if it is one), or Nones."""
    if not config.skew_by:
        return None, None
    if features is None:
        raise ValueError("data.split.skew_by needs features, see attributes.features_of")
    if len(people) < config.skew_groups:  # before images are looked at
        raise InputError(
            f"data.split.skew_groups: {config.skew_groups} wanted, but only {len(people)} people "
            "can be drawn for clients; lower it"
        )
    # Images at equal distances: the first ones may all be of one day.
    steps = np.arange(LOOKED_AT) * (table.counts[people, None] - 1) // (LOOKED_AT - 1)
    numbers = table.starts[people, None] + steps
    found = features(people, numbers if table.order is None else table.order[numbers])
    groups = group_people(found, config.skew_groups, stream(seed, 8))
    return groups, found if found.ndim == 1 else None


def _alone(
    free: np.ndarray,
    sizes: np.ndarray,
    groups: np.ndarray | None,
    config: SplitConfig,
    seed: int,
) -> np.ndarray:
    """Positions of the people that a client has alone: the next ones, or by group."""
    if groups is None:
        return free[: sizes.sum()]
    numbers = np.unique(groups[free], return_inverse=True)[1]
    return free[draw_people(numbers, sizes, config.skew_alpha, stream(seed, 9))]
