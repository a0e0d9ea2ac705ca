"""Packs plain arrays of each client for a round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedfr_jax.errors import InputError
from fedfr_jax.population.cohort_data import CohortData, PublicData


def pack_public(images: np.ndarray, labels: np.ndarray) -> PublicData:
    """Public images for a round.

    Args:
      images: (N_0, S, S, 3) uint8 RGB.
      labels: (N_0,) whole numbers from 0, one per public identity.

    Raises:
      InputError: shapes, types or labels do not fit.
    """
    _check("the public data", images, labels)
    return PublicData(
        np.asarray(images), np.asarray(labels, np.int32), int(np.max(labels, initial=-1)) + 1
    )


def pack_clients(
    clients: Sequence[tuple[np.ndarray, np.ndarray]],
    devices: int = 1,
    chosen: Sequence[int] | None = None,
) -> CohortData:
    """A cohort for a round, from the images and labels of every client of a population.

    Clients are assigned to the devices in turn: number ``i`` of the cohort is in slot
    ``(i % devices) * slots + i // devices``. Empty slots come last on each device.

    Args:
      clients: (images (M_i, S, S, 3) uint8 RGB, labels (M_i,) whole numbers from 0) of each.
        Labels are local to a client: label 0 of two clients means different people.
      devices: number of devices of the mesh.
      chosen: numbers of the clients that take part; None: all.

    Raises:
      InputError: shapes, types or labels do not fit, or a chosen client does not exist.
    """
    for i, (images, labels) in enumerate(clients):
        _check(f"client {i}", images, labels)
    chosen = range(len(clients)) if chosen is None else chosen
    if any(not 0 <= c < len(clients) for c in chosen):
        raise InputError(
            f"the chosen clients are {list(chosen)}, but there are clients 0 to {len(clients) - 1}"
        )
    slots = max(1, -(-len(chosen) // devices))
    most = max((len(labels) for _, labels in clients), default=0)
    placed = np.full((devices, slots), -1, np.int32)
    for i, client in enumerate(chosen):
        placed[i % devices, i // devices] = client
    flat = placed.reshape(-1)
    rows, labels = (np.zeros((flat.size, most), np.int32) for _ in range(2))
    sizes, identities = (np.zeros(flat.size, np.int32) for _ in range(2))
    first = np.concatenate([[0], np.cumsum([len(labels) for _, labels in clients])])
    lists: list[list[int]] = [[] for _ in range(devices)]
    for at, client in enumerate(flat.tolist()):
        if client < 0:
            continue
        own, found = clients[client][1], lists[at // slots]
        rows[at, : len(own)] = len(found) + np.arange(len(own))
        labels[at, : len(own)], sizes[at] = own, len(own)
        identities[at] = np.max(own, initial=-1) + 1
        found += range(first[client], first[client + 1])
    longest = max(map(len, lists))
    return CohortData(
        images=np.concatenate([images for images, _ in clients]),
        table_rows=np.array([x + [0] * (longest - len(x)) for x in lists], np.int32).reshape(-1),
        used=np.array(list(map(len, lists)), np.int32),
        rows=rows,
        labels=labels,
        sizes=sizes,
        identities=identities,
        clients=flat,
    )


def _check(whose: str, images: np.ndarray, labels: np.ndarray) -> None:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise InputError(
            f"the images of {whose} are {images.dtype} of shape {images.shape}; give "
            "(N, S, S, 3) uint8 RGB"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or (labels < 0).any():
        raise InputError(
            f"the labels of {whose} are {labels.dtype} of shape {labels.shape}; give "
            f"({len(images)},) whole numbers from 0"
        )
