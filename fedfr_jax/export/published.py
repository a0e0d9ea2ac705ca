"""A file of published weights as a model, without a run."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax

import fedfr_jax
from fedfr_jax.convert.files import read_weights
from fedfr_jax.evaluation.names import PRETRAINED
from fedfr_jax.export.network import Architecture, on_host
from fedfr_jax.export.saved import Weights
from fedfr_jax.models import build
from fedfr_jax.models.weights import weights_of

_KINDS = (".npz", ".safetensors", ".pth", ".pt")


@dataclasses.dataclass(frozen=True)
class PublishedModel:
    """Weights of a file, and what its card says of them.

    Attributes:
      weights: in the form of this program, which takes RGB scaled to ``(x - 127.5) / 127.5``:
        what the published network expects instead is part of its first convolution.
      description: the file and what is known about it.
      said: sentences for the user about what was found and assumed.
    """

    weights: Weights
    description: dict[str, Any]
    said: tuple[str, ...]

    @property
    def metrics(self) -> dict[str, Any]:
        """Nothing was measured."""
        return {}


def is_weights(path: pathlib.Path) -> bool:
    """Whether a file's name is that of weights; those of an exported model belong to its card."""
    return path.is_file() and path.suffix.lower() in _KINDS


def open_published(path: pathlib.Path) -> PublishedModel:
    """Reads a file of weights.

    Raises:
      InputError: it cannot be read, or holds no network that is known.
    """
    found = read_weights(path)
    structure, size = found.structure.config(), found.preprocessing.image_size
    variables = weights_of(found.file, build(structure, size, "grouped"), str(path))
    model = Weights(Architecture.of(structure, size), on_host(variables), None, PRETRAINED)
    description = {
        "name": path.name,
        "source": found.preprocessing.source or "not recorded",
        "input": found.preprocessing.formula(),
        "fedfr_jax": fedfr_jax.__version__,
        "jax": jax.__version__,
    }
    return PublishedModel(model, description, found.said)
