"""Who holds which images: clients, public data, held-out identities and pairs of them."""
from __future__ import annotations

import os
import pathlib
import zipfile

import numpy as np

from fedfr_jax.config import SplitConfig
from fedfr_jax.data.types import Client, FederatedSplit
from fedfr_jax.errors import InputError

_FOLDS = 10  # of the verification protocol; each needs genuine and impostor pairs


def make_split(
    labels: np.ndarray,
    num_clients: int,
    config: SplitConfig,
    seed: int,
    *,
    min_client_images: int = 1,
) -> FederatedSplit:
    """Divides identities among clients, public data and held-out pairs (paper, section 4.1).

    All identities are shuffled. The first ``held_out_identities`` are set aside; of the rest, the
    first ``client_fraction`` are for clients, the others public. Within each part, identities
    with a suitable number of images are used in shuffled order; ``unused_public`` makes those
    public that were for clients but not taken by any. An identity's first
    ``verification_images`` images, in the order of the source, are for verification.

    Args:
      labels: (N,) whole numbers >= 0, identity of each image.
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
    labels = np.asarray(labels, np.int64)
    counts = np.bincount(labels)
    by_identity = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    order = _stream(seed, 0).permutation(np.flatnonzero(counts))
    if config.held_out_identities > len(order):
        raise InputError(
            f"data.split.held_out_identities: {config.held_out_identities} wanted, but the data "
            f"has {len(order)} identities"
        )
    held_out, rest = np.split(order, [config.held_out_identities])
    for_clients, for_public = np.split(rest, [round(config.client_fraction * len(rest))])
    members = _members(for_clients, counts, num_clients, config, seed)
    clients = tuple(
        _client(i, identities, by_identity, config, min_client_images)
        for i, identities in enumerate(members)
    )
    if config.unused_public:
        unused = for_clients[~np.isin(for_clients, np.concatenate(members))]
        for_public = np.concatenate([for_public, unused])
    public = _public(for_public, counts, config)
    held_images = [by_identity[i] for i in held_out]
    pairs, same = _pairs(held_images, config.held_out_pairs, _stream(seed, 2))
    return FederatedSplit(
        clients=clients,
        public_identities=public,
        public_images=_join([by_identity[i] for i in public]),
        public_labels=np.repeat(np.arange(len(public)), counts[public]),
        held_out_identities=held_out,
        pairs=pairs,
        pairs_same=same,
    )


def _stream(seed: int, purpose: int) -> np.random.Generator:
    """Separate streams: asking for more pairs must not change who the clients are."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose,)))


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _check(config: SplitConfig, num_clients: int, seed: int) -> None:
    if num_clients < 1:
        raise InputError(f"fed.num_clients: {num_clients}; at least one client is needed")
    if seed < 0:
        raise InputError(f"data.seed: {seed}; must be >= 0")
    if not 0 <= config.client_fraction <= 1:
        raise InputError(f"data.split.client_fraction: {config.client_fraction}; must be in [0, 1]")
    for name in ("identities_per_client", "client_images", "public_images"):
        value = getattr(config, name)
        if len(value) != 2 or not 1 <= value[0] <= value[1]:
            raise InputError(f"data.split.{name}: {value}; must be (fewest, most) with 1 <= fewest")
    for name in (
        "verification_images", "public_identities", "max_training_images", "held_out_identities",
        "held_out_pairs",
    ):
        if getattr(config, name) < 0:
            raise InputError(f"data.split.{name}: {getattr(config, name)}; must be >= 0")
    if 0 < config.held_out_pairs < _FOLDS:
        raise InputError(
            f"data.split.held_out_pairs: {config.held_out_pairs}; the {_FOLDS} folds of the "
            f"evaluation need at least {_FOLDS} (0 for none)"
        )


def _suitable(identities: np.ndarray, counts: np.ndarray, limits: tuple[int, ...]) -> np.ndarray:
    found = counts[identities]
    return identities[(found >= limits[0]) & (found <= limits[1])]


def _members(
    pool: np.ndarray, counts: np.ndarray, num_clients: int, config: SplitConfig, seed: int
) -> list[np.ndarray]:
    """Returns each client's identities."""
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
    return np.split(suitable[: sizes.sum()], np.cumsum(sizes)[:-1])


def _client(
    number: int,
    identities: np.ndarray,
    by_identity: list[np.ndarray],
    config: SplitConfig,
    min_images: int,
) -> Client:
    held = config.verification_images
    limit = config.max_training_images or None
    verification = [by_identity[i][:held] for i in identities]
    training = [by_identity[i][held:][:limit] for i in identities]
    for identity, images in zip(identities, training, strict=True):
        if not len(images):
            raise InputError(
                f"data.split.verification_images: {held} leave client {number}'s identity "
                f"{identity} no training image, it has {len(by_identity[identity])} images; lower "
                f"it, or raise the first of data.split.client_images to {held + 1} or more"
            )
    client = Client(
        identities=identities,
        train_images=_join(training),
        train_labels=np.repeat(np.arange(len(identities)), [len(part) for part in training]),
        verification_images=_join(verification),
        verification_labels=np.repeat(
            np.arange(len(identities)), [len(part) for part in verification]
        ),
    )
    if len(client.train_images) < min_images:
        raise InputError(
            f"client {number} has {len(client.train_images)} training images, fewer than one batch "
            f"of {min_images}; lower fed.batch_size or raise data.split.identities_per_client"
        )
    return client


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
    people: list[np.ndarray], count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws ``count`` genuine and as many impostor pairs, all distinct, in alternation."""
    if not count:
        return np.zeros((0, 2), np.int64), np.zeros(0, bool)
    sizes = np.array([len(images) for images in people], np.int64)
    images = _join(people)
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
    drawn = []
    for start, most, share in zip(starts, possible, quota, strict=True):
        code = rng.choice(most, share, replace=False) if share else np.zeros(0, np.int64)
        # Pair number c of images a < b: c = b (b - 1) / 2 + a.
        b = (1 + np.sqrt(1 + 8 * code.astype(np.float64))).astype(np.int64) // 2
        b += (code >= b * (b + 1) // 2).astype(np.int64) - (code < b * (b - 1) // 2)
        drawn.append(start + np.stack([code - b * (b - 1) // 2, b], axis=1))
    return rng.permutation(np.concatenate(drawn))


def _even_shares(capacity: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Shares ``count`` out as evenly as ``capacity`` allows, so that no identity dominates."""
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


def save_split(path: str | os.PathLike, split: FederatedSplit) -> None:
    """Writes a split as ``.npz``; :func:`load_split` reads it."""
    arrays = {name: getattr(split, name) for name in _SHARED}
    for name in _PER_CLIENT:
        parts = [getattr(client, name) for client in split.clients]
        arrays[f"client_{name}"] = _join(parts)
        arrays[f"client_{name}_sizes"] = np.array([len(part) for part in parts], np.int64)
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(partial, path)


_SHARED = (
    "public_identities", "public_images", "public_labels", "held_out_identities", "pairs",
    "pairs_same",
)
_PER_CLIENT = (
    "identities", "train_images", "train_labels", "verification_images", "verification_labels",
)


def load_split(path: str | os.PathLike) -> FederatedSplit:
    """Reads what :func:`save_split` wrote.

    Raises:
      InputError: the file is missing or is no split.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        parts = {
            name: np.split(
                arrays[f"client_{name}"], np.cumsum(arrays[f"client_{name}_sizes"])[:-1]
            )
            for name in _PER_CLIENT
        }
        shared = {name: arrays[name] for name in _SHARED}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as a split: {error}") from error
    clients = tuple(
        Client(**dict(zip(_PER_CLIENT, values, strict=True)))
        for values in zip(*(parts[name] for name in _PER_CLIENT), strict=True)
    )
    return FederatedSplit(clients=clients, **shared)


def describe_split(split: FederatedSplit, source_name: str) -> dict[str, object]:
    """Returns counts of a split, ready for JSON; ranges are ``{"min", "mean", "max"}``."""
    clients = split.clients
    return {
        "source": source_name,
        "clients": len(clients),
        "client_identities": sum(len(client.identities) for client in clients),
        "client_training_images": sum(len(client.train_images) for client in clients),
        "client_verification_images": sum(len(client.verification_images) for client in clients),
        "identities_per_client": _range([len(client.identities) for client in clients]),
        "training_images_per_client": _range([len(client.train_images) for client in clients]),
        "verification_images_per_client": _range(
            [len(client.verification_images) for client in clients]
        ),
        "training_images_per_identity": _range(
            np.concatenate([np.bincount(client.train_labels) for client in clients])
        ),
        "public_identities": len(split.public_identities),
        "public_images": len(split.public_images),
        "public_images_per_identity": _range(np.bincount(split.public_labels)),
        "held_out_identities": len(split.held_out_identities),
        "genuine_pairs": int(split.pairs_same.sum()),
        "impostor_pairs": int((~split.pairs_same).sum()),
    }


def _range(values: list[int] | np.ndarray) -> dict[str, float]:
    if not len(values):
        return {"min": 0, "mean": 0.0, "max": 0}
    return {
        "min": int(np.min(values)), "mean": float(np.mean(values)), "max": int(np.max(values))
    }
