"""Image sources by name, and everything that turns files into arrays and splits.

A source is a module with a function ``open_source(config) -> ImageSource`` and one
line in :data:`SOURCES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from fedfr_jax.data.array_source import array_source
from fedfr_jax.data.tfds_source import open_tfds
from fedfr_jax.data.types import Client, FederatedSplit, ImageSource, VerificationSet
from fedfr_jax.errors import InputError
from fedfr_jax.settings import DataConfig

__all__ = [
    "SOURCES",
    "Client",
    "FederatedSplit",
    "ImageSource",
    "VerificationSet",
    "array_source",
    "open_source",
    "open_tfds",
]


def _from_module(module: str) -> Callable[[DataConfig], ImageSource]:
    """Defers the import: each source has its own, partly slow, dependencies."""

    def opener(config: DataConfig) -> ImageSource:
        return importlib.import_module(f"fedfr_jax.data.{module}").open_source(config)

    return opener


SOURCES: dict[str, Callable[[DataConfig], ImageSource]] = {
    "generated": _from_module("faces.generated"),
    "recordio": _from_module("recordio"),
    "folder": _from_module("folder"),
    "tfds": _from_module("tfds_source"),
    "prepared": _from_module("prepared"),
}


def open_source(config: DataConfig) -> ImageSource:
    """Opens the image source that ``data.source`` names.

    Args:
      config: the ``data`` settings.

    Returns:
      The source; images are read on demand.

    Raises:
      InputError: the name is unknown, or the source cannot be used.
    """
    if config.source not in SOURCES:
        known = ", ".join(SOURCES)
        raise InputError(f"data.source: unknown source {config.source!r}; choose one of: {known}")
    return SOURCES[config.source](config)
