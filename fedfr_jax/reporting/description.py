"""What a configuration makes of its data, before anything is trained: ``train --describe``."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedfr_jax.config import Config
from fedfr_jax.data import open_source
from fedfr_jax.data.degrade import camera_of
from fedfr_jax.data.skew import effective_groups, group_counts
from fedfr_jax.data.split_file import describe_split
from fedfr_jax.data.types import Clients, FederatedSplit, ImageSource
from fedfr_jax.reporting.result_table import Cell, ResultTable
from fedfr_jax.runtime.simulation import split_of
from fedfr_jax.settings import DEGRADATIONS

_QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
_CAMERAS = 10_000  # most clients whose cameras are looked at
_MOST_PAIRS = 20_000_000  # pairs of places of a shared person that are looked at
_SHOWN, _MOST_OF_A_CLIENT = 20, 8  # clients with a row of their own, and groups in it


def describe(config: Config, source: ImageSource | None = None) -> list[ResultTable]:
    """Who has what: counts of the split, how the clients differ, their people and cameras.

    Only labels are read, and images only where ``data.split.skew_by`` needs them.

    Args:
      source: the image source of ``config.data``, if it is already open.

    Raises:
      InputError: the data cannot be split as asked.
    """
    source = open_source(config.data) if source is None else source
    split = split_of(config, source)
    found = [_counts(split, source), _spread(config, split)]
    if config.data.split.shared_identities:
        found.append(_shared(split))
    if split.groups is not None:
        found.append(_groups(config, split))
    return found + ([_cameras(config, split)] if config.data.degrade.is_active else [])


def _counts(split: FederatedSplit, source: ImageSource) -> ResultTable:
    counts = describe_split(split, source.name)
    rows = [(k.replace("_", " "), v) for k, v in counts.items() if not isinstance(v, dict)]
    return ResultTable(
        "The split", ("count",), tuple((name, (Cell(_number(value)),)) for name, value in rows)
    )


def _spread(config: Config, split: FederatedSplit) -> ResultTable:
    clients, by = split.clients, config.data.split.skew_by
    images = clients.sizes / np.maximum(clients.identity_counts, 1)
    rows = {
        "people": clients.identity_counts,
        "training images": clients.sizes,
        "training images per person": images,
        "verification images": clients.verification_counts,
    }
    if split.groups is not None:
        rows["groups of people, effective"] = effective_groups(
            split.groups, clients.entry_clients, len(clients)
        )
    if split.attribute is not None:
        rows[f"people's {by}, mean"] = (
            np.add.reduceat(split.attribute, clients.offsets[:-1]) / clients.entry_counts
        )
    largest = np.sort(clients.sizes)[::-1]
    share = largest[: max(1, len(largest) // 10)].sum() / max(largest.sum(), 1)
    return _quantiles(
        "How the clients differ",
        rows,
        f"The tenth of the clients with most training images has {100 * share:.0f} % of them.",
    )


def _shared(split: FederatedSplit) -> ResultTable:
    """Who is at several clients, and with how many others a client has people in common."""
    clients = split.clients
    of = np.flatnonzero(clients.sites > 1)
    per_client = np.bincount(clients.entry_clients[of], minlength=len(clients))
    rows = {
        "shared people": per_client,
        "share of all people": per_client / clients.entry_counts,
        "clients per shared person": clients.sites[of],
        "training images of one": clients.training_counts[of],
    }
    if clients.sites[of].sum() <= _MOST_PAIRS:
        rows["clients that share some"] = _neighbours(clients)
    people = len(np.unique(clients.identities[of]))
    return _quantiles(
        "People at several clients",
        rows,
        f"{people:,} people are at several clients, in {len(of):,} places; no image is at two.",
    )


def _neighbours(clients: Clients) -> np.ndarray:
    """(N,) how many other clients have some of a client's people; there are shared people."""
    of = np.flatnonzero(clients.sites > 1)
    order = of[np.argsort(clients.identities[of], kind="stable")]
    person, client = clients.identities[order], clients.entry_clients[order]
    found = []
    for step in range(1, int(clients.sites.max())):
        same = person[step:] == person[:-step]
        found.append(client[:-step][same] * len(clients) + client[step:][same])
        found.append(client[step:][same] * len(clients) + client[:-step][same])
    return np.bincount(np.unique(np.concatenate(found)) // len(clients), minlength=len(clients))


def _groups(config: Config, split: FederatedSplit) -> ResultTable:
    """Each client's people by group, the most frequent group first."""
    assert split.groups is not None
    settings, clients = config.data.split, split.clients
    shown = min(len(clients), _SHOWN)
    end = clients.offsets[shown]
    owner = clients.entry_clients[:end]
    effective = effective_groups(split.groups[:end], owner, shown)
    rows = []
    for client, counts in enumerate(group_counts(split.groups[:end], owner, shown)):
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        some = ", ".join(f"{group}: {counts[group]}" for group in order[:_MOST_OF_A_CLIENT])
        more = ", …" if len(order) > _MOST_OF_A_CLIENT else ""
        cells = (Cell(f"{counts.sum()}"), Cell(f"{effective[client]:.1f}"), Cell(some + more))
        rows.append((f"client {client}", cells))
    everybody = np.zeros(len(split.groups), np.int64)
    together = effective_groups(split.groups, everybody, 1)[0]
    left_out = (
        f" {len(clients) - shown:,} more clients are not shown." if shown < len(clients) else ""
    )
    kind = "Clusters" if settings.skew_by == "cluster" else f"Quantiles of {settings.skew_by}"
    return ResultTable(
        f"{kind}: each client's people by group",
        ("people", "effective groups", "group: people"),
        tuple(rows),
        (
            f"The effective number is e to the entropy of a client's shares; of all clients' "
            f"people together it is {together:.1f}.{left_out}",
        ),
    )


def _cameras(config: Config, split: FederatedSplit) -> ResultTable:
    settings, seed = config.data.degrade, config.data.seed
    count = min(len(split.clients), _CAMERAS)
    cameras = [camera_of(settings, seed, client) for client in range(count)]
    used = [name for name in DEGRADATIONS if getattr(settings, name) > 0]
    rows = {name: np.array([getattr(c, name) for c in cameras]) for name in used}
    others = "with the strengths as set" if settings.public else "undegraded"
    return _quantiles(
        "The clients' cameras: strengths",
        rows,
        f"From 0 to 1, of {count} clients. Public and held-out people are {others}.",
    )


def _quantiles(title: str, rows: dict[str, np.ndarray], note: str) -> ResultTable:
    return ResultTable(
        title,
        ("lowest", "10 %", "median", "90 %", "highest"),
        tuple(
            (name, tuple(Cell(_number(v)) for v in np.quantile(values, _QUANTILES)))
            for name, values in rows.items()
        ),
        (note,),
    )


def _number(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}"
