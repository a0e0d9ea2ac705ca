"""Which images belong to clients, to the public data and to the held-out identities and pairs.

Millions of clients are split in seconds: identities and clients are entries of flat arrays, and
there are no loops over them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from fedfr_jax.data.attributes import Features
from fedfr_jax.data.folds import FOLDS
from fedfr_jax.data.image_table import Table, suitable, tabulate
from fedfr_jax.data.members import Members, choose_members, stream
from fedfr_jax.data.pairs import draw_pairs
from fedfr_jax.data.skew import KINDS, MOST_GROUPS
from fedfr_jax.data.types import Clients, FederatedSplit, ranges
from fedfr_jax.errors import ConfigError, InputError
from fedfr_jax.settings import SplitConfig


def make_split(
    labels: np.ndarray,
    num_clients: int,
    config: SplitConfig,
    seed: int,
    *,
    min_client_images: int = 1,
    features: Features | None = None,
) -> FederatedSplit:
    """Divides identities among clients, public data and held-out pairs (paper, section 4.1).

    With ``tuning_fraction``, one part of the identities is for choosing settings and the other for
    results; only one of them is used. Its identities are shuffled. The first
    ``held_out_identities`` are set aside; of the rest, the first ``client_fraction`` are for
    clients, the others public. Within each part, identities with a suitable number of images are
    used in shuffled order; with ``unused_public``, client identities that no client took become
    public. An identity's first ``verification_images`` images, in the order of the source, are for
    verification.

    With ``shared_identities``, a part of each client's people is at other clients, too. A shared
    person's images, in the order of the source, are divided into consecutive parts of nearly equal
    size, one for each of its clients; each part has verification and training images of its own.
    With ``skew_by``, the other people are drawn by group instead of in shuffled order.

    Args:
      labels: (N,) whole numbers >= 0, identity of each image. If they are sorted int32 or int64,
        they are not copied.
      num_clients: number of clients.
      config: the ``data.split`` settings.
      seed: whole number >= 0; the same arguments give the same split.
      min_client_images: training images that every client must have (``fed.batch_size``).
      features: what ``skew_by`` groups people by, from
        :func:`fedfr_jax.data.attributes.features_of`; not called without ``skew_by``.

    Returns:
      The split.

    Raises:
      InputError: a setting is out of range, or the data has too few identities or images for it.
    """
    _check(config, num_clients, seed)
    table = tabulate(np.asarray(labels))
    order = stream(seed, 0).permutation(_people(np.flatnonzero(table.counts), config))
    held_out, rest = _set_aside(order, config.held_out_identities)
    for_clients, for_public = np.split(rest, [round(config.client_fraction * len(rest))])
    pairs, same = draw_pairs(
        table.counts[held_out], table.images(held_out), config.held_out_pairs, stream(seed, 2)
    )
    members = choose_members(for_clients, table, num_clients, config, seed, features)
    clients = _clients(members, table, config)
    clients = _skewed(clients, config.quantity_skew, min_client_images, seed)
    _check_clients(clients, members.counts, min_client_images)
    if config.unused_public:
        taken = np.zeros(len(table.counts), bool)
        taken[members.identities] = True
        for_public = np.concatenate([for_public, for_clients[~taken[for_clients]]])
    public = _public(for_public, table.counts, config)
    return FederatedSplit(
        clients=clients,
        public_identities=public,
        public_images=table.images(public),
        public_labels=np.repeat(np.arange(len(public)), table.counts[public]),
        held_out_identities=held_out,
        pairs=pairs,
        pairs_same=same,
        groups=members.groups,
        attribute=members.attribute,
    )


def _set_aside(order: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(the first ``count`` identities, the others)."""
    if count > len(order):
        raise InputError(
            f"data.split.held_out_identities: {count} wanted, but the data has {len(order)} "
            "identities"
        )
    return order[:count], order[count:]


def _people(identities: np.ndarray, config: SplitConfig) -> np.ndarray:
    """The part of the identities that this split may use; the parts do not depend on the seed."""
    if not config.tuning_fraction:
        return identities
    shuffled = stream(0, 4).permutation(identities)
    first = round(config.tuning_fraction * len(identities))
    return np.sort(shuffled[:first] if config.tuning else shuffled[first:])


def _check(config: SplitConfig, num_clients: int, seed: int) -> None:
    if num_clients < 1:
        raise InputError(f"fed.num_clients: {num_clients}; at least one client is needed")
    if seed < 0:
        raise InputError(f"data.seed: {seed}; must be >= 0")
    if not 0 <= config.client_fraction <= 1:
        raise InputError(f"data.split.client_fraction: {config.client_fraction}; must be in [0, 1]")
    if not 0 <= config.tuning_fraction < 1 or (config.tuning and not config.tuning_fraction):
        raise InputError(
            f"data.split.tuning_fraction: {config.tuning_fraction}; must be in [0, 1), and above 0 "
            "if data.split.tuning is set"
        )
    if not 0 <= config.quantity_skew <= 10:
        raise InputError(
            f"data.split.quantity_skew: {config.quantity_skew}; must be in [0, 10], the standard "
            "deviation of the logarithm of the clients' images"
        )
    _check_heterogeneity(config, num_clients)
    for name in ("identities_per_client", "client_images", "public_images"):
        value = getattr(config, name)
        if len(value) != 2 or not 1 <= value[0] <= value[1]:
            raise InputError(f"data.split.{name}: {value}; must be (fewest, most) with 1 <= fewest")
    for name in (
        "verification_images",
        "public_identities",
        "max_training_images",
        "held_out_identities",
        "held_out_pairs",
    ):
        if getattr(config, name) < 0:
            raise InputError(f"data.split.{name}: {getattr(config, name)}; must be >= 0")
    if 0 < config.held_out_pairs < FOLDS:
        raise InputError(
            f"data.split.held_out_pairs: {config.held_out_pairs}; the {FOLDS} folds of the "
            f"evaluation need at least {FOLDS} (0 for none)"
        )


def _check_heterogeneity(config: SplitConfig, num_clients: int) -> None:
    """The settings of shared people and of groups."""
    if not 0 <= config.shared_identities <= 1:
        raise ConfigError(
            f"data.split.shared_identities is {config.shared_identities}; it is a share of each "
            "client's people, 0 to 1"
        )
    sites = config.sites_per_shared_identity
    if sites < 2 or (config.shared_identities and sites > num_clients):
        raise ConfigError(
            f"data.split.sites_per_shared_identity is {sites}; a shared person is at 2 clients or "
            f"more, but there are only fed.num_clients={num_clients}"
        )
    if config.skew_by and config.skew_by not in KINDS:
        raise ConfigError(
            f"data.split.skew_by is {config.skew_by!r}; use one of {', '.join(KINDS)}, or ''"
        )
    if config.skew_features and config.skew_by != "cluster":
        raise ConfigError(
            f"data.split.skew_features is {config.skew_features!r}, which is for "
            f"data.split.skew_by='cluster', not {config.skew_by!r}"
        )
    if not 1e-3 <= config.skew_alpha <= 1e6:
        raise ConfigError(f"data.split.skew_alpha is {config.skew_alpha}; it must be 0.001 to 1e6")
    if not 2 <= config.skew_groups <= MOST_GROUPS:
        raise ConfigError(
            f"data.split.skew_groups is {config.skew_groups}; it must be 2 to {MOST_GROUPS}"
        )


def _clients(members: Members, table: Table, config: SplitConfig) -> Clients:
    counts, starts, order = members.counts, members.starts, table.order
    if config.max_training_images:
        held = config.verification_images + config.validation_images
        counts = np.minimum(counts, held + config.max_training_images)
    if order is not None:  # keep the clients' part of it
        order, starts = order[ranges(starts, counts)], np.cumsum(counts) - counts
    return Clients(
        identities=members.identities,
        offsets=np.concatenate([[0], np.cumsum(members.sizes)]),
        starts=starts,
        counts=counts,
        verification_images=config.verification_images,
        order=order,
        validation_images=config.validation_images,
    )


def _skewed(clients: Clients, sigma: float, min_images: int, seed: int) -> Clients:
    """Clients with fewer training images: the same share of each identity's, at least one."""
    if not sigma:
        return clients
    drawn = sigma * stream(seed, 6).standard_normal(len(clients))
    shares = np.exp(drawn - drawn.max())
    shares = np.maximum(shares, np.minimum(min_images / np.maximum(clients.sizes, 1), 1.0))
    held = clients.verification_images + clients.validation_images
    training = np.maximum(clients.counts - held, 0)
    left = np.ceil(np.repeat(shares, clients.identity_counts) * training - 1e-9).astype(np.int64)
    return dataclasses.replace(clients, counts=np.minimum(clients.counts, held + left))


def _check_clients(clients: Clients, images: np.ndarray, min_images: int) -> None:
    """Raises for the first client that cannot train; ``images`` are all that identities have."""
    held = clients.verification_images + clients.validation_images
    untrained = np.flatnonzero(clients.counts <= held)
    # The client of the first identity without a training image, if there is one.
    number = (
        np.searchsorted(clients.offsets, untrained[0], side="right") - 1
        if len(untrained)
        else len(clients)
    )
    small = np.flatnonzero(clients.sizes[:number] < min_images)
    if len(small):
        raise InputError(
            f"client {small[0]} has {clients.sizes[small[0]]} training images, fewer than one "
            f"batch of {min_images}; lower fed.batch_size or raise "
            "data.split.identities_per_client"
        )
    if len(untrained):
        both = " + data.split.validation_images" if clients.validation_images else ""
        setting = f"data.split.verification_images{both}"
        raise InputError(
            f"{setting}: {held} leave client {number}'s identity "
            f"{clients.identities[untrained[0]]} no training image, it has "
            f"{images[untrained[0]]} images; lower it, or raise the first of "
            f"data.split.client_images to {held + 1} or more"
        )


def _public(pool: np.ndarray, counts: np.ndarray, config: SplitConfig) -> np.ndarray:
    chosen = suitable(pool, counts, config.public_images)
    if not len(chosen) and (len(pool) or config.public_identities):
        raise InputError(
            f"no public identities: none of {len(pool)} has {config.public_images[0]} to "
            f"{config.public_images[1]} images; widen data.split.public_images, or set "
            "data.split.client_fraction to 1 and data.split.public_identities to 0 to go without"
        )
    return chosen[: config.public_identities or None]
