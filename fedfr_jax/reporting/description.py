"""What a configuration makes of its data, before anything is trained: ``train --describe``."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedfr_jax.config import Config
from fedfr_jax.data import open_source
from fedfr_jax.data.degrade import camera_of
from fedfr_jax.data.split_file import describe_split
from fedfr_jax.data.types import FederatedSplit, ImageSource
from fedfr_jax.reporting.result_table import Cell, ResultTable
from fedfr_jax.runtime.simulation import split_of
from fedfr_jax.settings import DEGRADATIONS

_QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
_CAMERAS = 10_000  # most clients whose cameras are looked at


def describe(config: Config, source: ImageSource | None = None) -> list[ResultTable]:
    """Who has what: counts of the split, how the clients differ, their cameras.

    Only labels are read, no images.

    Args:
      source: the image source of ``config.data``, if it is already open.

    Raises:
      InputError: the data cannot be split as asked.
    """
    source = open_source(config.data) if source is None else source
    split = split_of(config, source)
    found = [_counts(split, source), _spread(split)]
    return found + ([_cameras(config, split)] if config.data.degrade.is_active else [])


def _counts(split: FederatedSplit, source: ImageSource) -> ResultTable:
    counts = describe_split(split, source.name)
    rows = [(k.replace("_", " "), v) for k, v in counts.items() if not isinstance(v, dict)]
    return ResultTable(
        "The split", ("count",), tuple((name, (Cell(_number(value)),)) for name, value in rows)
    )


def _spread(split: FederatedSplit) -> ResultTable:
    clients = split.clients
    images = clients.sizes / np.maximum(clients.identity_counts, 1)
    rows = {
        "people": clients.identity_counts,
        "training images": clients.sizes,
        "training images per person": images,
        "verification images": clients.verification_counts,
    }
    largest = np.sort(clients.sizes)[::-1]
    share = largest[: max(1, len(largest) // 10)].sum() / max(largest.sum(), 1)
    return _quantiles(
        "How the clients differ",
        rows,
        f"The tenth of the clients with most training images has {100 * share:.0f} % of them.",
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
