"""The arguments by which commands name a model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fedfr_jax.errors import InputError

if TYPE_CHECKING:
    from fedfr_jax.evaluation.face_model import FaceModel


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of a command that :func:`open_model` reads."""
    add = parser.add_argument
    add("--model", required=True, help="an exported model, the work directory of a run, or weights")
    add("--client", type=int, help="of a work directory: whose own model; else the global one")
    add("--variant", help="of a work directory: another of its models, see docs/export.md")
    add("--batch-size", type=int, default=64, help="images at a time (64)")
    add("--workers", type=int, default=0, help="decoding threads; 0 = all cores")


def check_model_arguments(given: argparse.Namespace) -> None:
    """Raises InputError for numbers out of range."""
    if given.batch_size < 1:
        raise InputError(f"--batch-size is {given.batch_size}; it must be at least 1")
    if given.workers < 0:
        raise InputError(f"--workers is {given.workers}; use 0 for one thread per core")


def open_model(given: argparse.Namespace) -> FaceModel:
    """The model that the arguments of a command name.

    Raises:
      InputError: it cannot be read.
    """
    import fedfr_jax  # noqa: PLC0415 - what it loads is heavy

    return fedfr_jax.load_model(given.model, client=given.client, variant=given.variant)
