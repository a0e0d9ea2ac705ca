"""A split as a file and in words: ``split.npz`` of a work directory, and its counts."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fedfr_jax.atomic import write_file
from fedfr_jax.data.arrays import load_arrays
from fedfr_jax.data.types import Clients, FederatedSplit
from fedfr_jax.errors import InputError

_SHARED = (
    "public_identities",
    "public_images",
    "public_labels",
    "held_out_identities",
    "pairs",
    "pairs_same",
)
_CLIENTS = ("identities", "offsets", "starts", "counts")


def save_split(path: str | os.PathLike, split: FederatedSplit) -> None:
    """Writes a split as ``.npz``; :func:`load_split` reads it.

    The arrays are those of :class:`FederatedSplit` and, with the prefix ``clients_``, of
    :class:`Clients`, as int32 where values allow. They are not compressed: the file would be half
    as large, but writing would take about sixty times as long.
    """
    arrays: dict[str, Any] = {name: _narrow(a) for name, a in split_arrays(split).items()}
    write_file(path, lambda file: np.savez(file, **arrays))


def split_arrays(split: FederatedSplit) -> dict[str, np.ndarray]:
    """All arrays of a split by name, as :func:`save_split` writes them."""
    clients = split.clients
    arrays = {name: getattr(split, name) for name in _SHARED}
    arrays |= {f"clients_{name}": getattr(clients, name) for name in _CLIENTS}
    arrays["clients_verification_images"] = np.array(clients.verification_images)
    if clients.validation_images:  # the digests of splits without them stay the same
        arrays["clients_validation_images"] = np.array(clients.validation_images)
    if clients.order is not None:
        arrays["clients_order"] = clients.order
    if split.groups is not None:
        arrays["clients_groups"] = split.groups
    return arrays


def _narrow(array: np.ndarray) -> np.ndarray:
    fits = array.dtype == np.int64 and array.max(initial=0) < 2**31  # none is negative
    return array.astype(np.int32) if fits else array


def _widen(array: np.ndarray) -> np.ndarray:
    return array.astype(np.int64) if array.dtype == np.int32 else array


def load_split(path: str | os.PathLike) -> FederatedSplit:
    """Reads what :func:`save_split` wrote.

    Raises:
      InputError: the file is missing or is no split.
    """
    try:
        arrays = {name: _widen(array) for name, array in load_arrays(path).items()}
        clients = Clients(
            **{name: arrays[f"clients_{name}"] for name in _CLIENTS},
            verification_images=int(arrays["clients_verification_images"]),
            order=arrays.get("clients_order"),
            validation_images=int(arrays.get("clients_validation_images", 0)),
        )
        return FederatedSplit(
            clients=clients,
            **{name: arrays[name] for name in _SHARED},
            groups=arrays.get("clients_groups"),
        )
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as a split: {error}") from error


def describe_split(split: FederatedSplit, source_name: str) -> dict[str, object]:
    """Returns counts of a split, ready for JSON; ranges are ``{"min", "mean", "max"}``."""
    clients = split.clients
    shared = len(np.unique(clients.identities[clients.sites > 1]))
    return {
        "source": source_name,
        "clients": len(clients),
        "client_identities": int((clients.sites == 1).sum()) + shared,
        **({"shared_identities": shared} if shared else {}),
        "client_training_images": int(clients.sizes.sum()),
        "client_verification_images": int(clients.verification_counts.sum()),
        "identities_per_client": _range(clients.identity_counts),
        "training_images_per_client": _range(clients.sizes),
        "verification_images_per_client": _range(clients.verification_counts),
        "training_images_per_identity": _range(clients.training_counts),
        "public_identities": len(split.public_identities),
        "public_images": len(split.public_images),
        "public_images_per_identity": _range(np.bincount(split.public_labels)),
        "held_out_identities": len(split.held_out_identities),
        "genuine_pairs": int(split.pairs_same.sum()),
        "impostor_pairs": int((~split.pairs_same).sum()),
    }


def _range(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {"min": 0, "mean": 0.0, "max": 0}
    return {"min": int(np.min(values)), "mean": float(np.mean(values)), "max": int(np.max(values))}
