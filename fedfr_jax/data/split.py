"""Which images belong to clients, to the public data and to the held-out identities and pairs.

Millions of clients are split in seconds: identities and clients are entries of flat arrays, and
there are no loops over them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from fedfr_jax.data.folds import FOLDS
from fedfr_jax.data.types import Clients, FederatedSplit, ranges
from fedfr_jax.errors import InputError
from fedfr_jax.settings import SplitConfig

_BLOCK = 1 << 22  # labels counted at a time: NumPy makes an int64 copy of them


def make_split(
    labels: np.ndarray,
    num_clients: int,
    config: SplitConfig,
    seed: int,
    *,
    min_client_images: int = 1,
) -> FederatedSplit:
    """Divides identities among clients, public data and held-out pairs (paper, section 4.1).

    With ``tuning_fraction``, one part of the identities is for choosing settings and the other for
    results; only one of them is used. Its identities are shuffled. The first
    ``held_out_identities`` are set aside; of the rest, the first ``client_fraction`` are for
    clients, the others public. Within each part, identities with a suitable number of images are
    used in shuffled order; with ``unused_public``, client identities that no client took become
    public. An identity's first ``verification_images`` images, in the order of the source, are for
    verification.

    Args:
      labels: (N,) whole numbers >= 0, identity of each image. If they are sorted int32 or int64,
        they are not copied.
      num_clients: number of clients.
      config: the ``data.split`` settings.
      seed: whole number >= 0; the same arguments give the same split.
      min_client_images: training images that every client must have (``fed.batch_size``).

    Returns:
      The split.

    Raises:
      InputError: a setting is out of range, or the data has too few identities or images for it.
    """
    _check(config, num_clients, seed)
    table = _tabulate(np.asarray(labels))
    order = _stream(seed, 0).permutation(_people(np.flatnonzero(table.counts), config))
    held_out, rest = _set_aside(order, config.held_out_identities)
    for_clients, for_public = np.split(rest, [round(config.client_fraction * len(rest))])
    members, sizes = _members(for_clients, table.counts, num_clients, config, seed)
    clients = _clients(members, sizes, table, config)
    clients = _skewed(clients, config.quantity_skew, min_client_images, seed)
    _check_clients(clients, table.counts[members], min_client_images)
    if config.unused_public:
        taken = np.zeros(len(table.counts), bool)
        taken[members] = True
        for_public = np.concatenate([for_public, for_clients[~taken[for_clients]]])
    public = _public(for_public, table.counts, config)
    pairs, same = _pairs(
        table.counts[held_out], table.images(held_out), config.held_out_pairs, _stream(seed, 2)
    )
    return FederatedSplit(
        clients=clients,
        public_identities=public,
        public_images=table.images(public),
        public_labels=np.repeat(np.arange(len(public)), table.counts[public]),
        held_out_identities=held_out,
        pairs=pairs,
        pairs_same=same,
    )


@dataclasses.dataclass(frozen=True)
class _Table:
    """Image numbers by identity: those of identity ``i`` are ``order[starts[i]:][:counts[i]]``.

    ``order`` is None if positions are image numbers. ``starts`` and ``counts`` have an entry
    for every number up to the largest label; ``counts`` is 0 for those without an image.
    """

    order: np.ndarray | None
    starts: np.ndarray
    counts: np.ndarray

    def images(self, identities: np.ndarray) -> np.ndarray:
        """Returns all image numbers of ``identities``, one identity after the other; int64."""
        positions = ranges(self.starts[identities], self.counts[identities])
        return positions if self.order is None else self.order[positions]


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
    shuffled = _stream(0, 4).permutation(identities)
    first = round(config.tuning_fraction * len(identities))
    return np.sort(shuffled[:first] if config.tuning else shuffled[first:])


def _tabulate(labels: np.ndarray) -> _Table:
    if labels.dtype not in (np.int32, np.int64):
        labels = labels.astype(np.int64)
    counts = np.zeros(int(labels.max(initial=-1)) + 1, np.int64)
    for start in range(0, len(labels), _BLOCK):
        part = np.bincount(labels[start : start + _BLOCK])
        counts[: len(part)] += part
    is_sorted = bool((labels[:-1] <= labels[1:]).all())
    order = None if is_sorted else np.argsort(labels, kind="stable")
    return _Table(order, np.cumsum(counts) - counts, counts)


def _stream(seed: int, purpose: int) -> np.random.Generator:
    """Separate streams: asking for more pairs must not change who the clients are."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose,)))


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


def _suitable(identities: np.ndarray, counts: np.ndarray, limits: tuple[int, ...]) -> np.ndarray:
    found = counts[identities]
    return identities[(found >= limits[0]) & (found <= limits[1])]


def _members(
    pool: np.ndarray, counts: np.ndarray, num_clients: int, config: SplitConfig, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns all clients' identities, client after client, and how many each client has."""
    suitable = _suitable(pool, counts, config.client_images)
    low, high = config.identities_per_client
    sizes = _stream(seed, 1).integers(low, high, num_clients, endpoint=True)
    if sizes.sum() > len(suitable):
        raise InputError(
            f"too few client identities: {num_clients} clients need {sizes.sum()}, but only "
            f"{len(suitable)} of the {len(pool)} identities for clients have "
            f"{config.client_images[0]} to {config.client_images[1]} images; lower "
            "fed.num_clients or data.split.identities_per_client, widen "
            "data.split.client_images, or raise data.split.client_fraction"
        )
    return suitable[: sizes.sum()], sizes


def _clients(members: np.ndarray, sizes: np.ndarray, table: _Table, config: SplitConfig) -> Clients:
    counts, starts, order = table.counts[members], table.starts[members], table.order
    if config.max_training_images:
        held = config.verification_images + config.validation_images
        counts = np.minimum(counts, held + config.max_training_images)
    if order is not None:  # keep the clients' part of it
        order, starts = order[ranges(starts, counts)], np.cumsum(counts) - counts
    return Clients(
        identities=members,
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
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
    drawn = sigma * _stream(seed, 6).standard_normal(len(clients))
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
    suitable = _suitable(pool, counts, config.public_images)
    if not len(suitable) and (len(pool) or config.public_identities):
        raise InputError(
            f"no public identities: none of {len(pool)} has {config.public_images[0]} to "
            f"{config.public_images[1]} images; widen data.split.public_images, or set "
            "data.split.client_fraction to 1 and data.split.public_identities to 0 to go without"
        )
    return suitable[: config.public_identities or None]


def _pairs(
    sizes: np.ndarray, images: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws ``count`` genuine and as many impostor pairs, all distinct, in alternation.

    Args:
      sizes: (H,) int64 images per held-out identity.
      images: (sizes.sum(),) int64 their image numbers, identity after identity.
      count: pairs of each kind.
      rng: a stream of its own.

    Returns:
      (2 count, 2) int64 image numbers and (2 count,) bool, whether a pair is genuine.
    """
    if not count:
        return np.zeros((0, 2), np.int64), np.zeros(0, bool)
    starts = np.cumsum(sizes) - sizes
    genuine = images[_genuine(sizes, starts, count, rng)]
    impostor = images[_impostor(sizes, starts, count, rng)]
    pairs = np.stack([genuine, impostor], axis=1).reshape(-1, 2)
    return pairs, np.tile([True, False], count)


def _genuine(
    sizes: np.ndarray, starts: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns (count, 2) positions of two images of one identity, spread over identities."""
    possible = sizes * (sizes - 1) // 2
    if possible.sum() < count:
        raise InputError(
            f"data.split.held_out_pairs: {count} genuine pairs wanted, but the "
            f"{len(sizes)} held-out identities have only {possible.sum()}; lower it or raise "
            "data.split.held_out_identities"
        )
    quota = _even_shares(possible, count, rng)
    some = np.flatnonzero(quota)  # at most ``count`` identities, however many are held out
    drawn = [rng.choice(possible[i], quota[i], replace=False) for i in some]
    code, start = np.concatenate(drawn), np.repeat(starts[some], quota[some])
    # Pair number c of images a < b: c = b (b - 1) / 2 + a.
    b = (1 + np.sqrt(1 + 8 * code.astype(np.float64))).astype(np.int64) // 2
    b += (code >= b * (b + 1) // 2).astype(np.int64) - (code < b * (b - 1) // 2)
    return rng.permutation(np.stack([start + code - b * (b - 1) // 2, start + b], axis=1))


def _even_shares(capacity: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Divides ``count`` as evenly as ``capacity`` allows, so that no identity dominates."""
    low, high = 0, int(capacity.max())
    while low < high:  # the largest level whose shares do not exceed count
        level = (low + high + 1) // 2
        affordable = np.minimum(capacity, level).sum() <= count
        low, high = (level, high) if affordable else (low, level - 1)
    shares = np.minimum(capacity, low)
    open_to_more = rng.permutation(np.flatnonzero(capacity > low))
    shares[open_to_more[: count - shares.sum()]] += 1
    return shares


def _impostor(
    sizes: np.ndarray, starts: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns (count, 2) positions of images of two identities, uniform over all such pairs."""
    # Image j has as many partners as there are images of the identities before its own.
    partners = np.repeat(starts, sizes)
    ends = np.cumsum(partners)
    possible = int(ends[-1]) if len(ends) else 0
    if possible < count:
        raise InputError(
            f"data.split.held_out_pairs: {count} impostor pairs wanted, but the {len(sizes)} "
            f"held-out identities have only {possible}; raise data.split.held_out_identities"
        )
    code = rng.choice(possible, count, replace=False)
    second = np.searchsorted(ends, code, side="right")
    first = code - (ends[second] - partners[second])
    return np.stack([first, second], axis=1)
