"""Models to use: opened from an export or from a run, with one way to compute features."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedfr_jax.data.batches import by_batches
from fedfr_jax.data.types import as_images
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.streaming import unit_rows
from fedfr_jax.evaluation.verification import embed_with_mirror
from fedfr_jax.export.card import CARD, ONNX, PROGRAM, WEIGHTS, architecture_of, card_of, read_card
from fedfr_jax.export.folder import read_file, read_weights
from fedfr_jax.export.network import Architecture, PyTree, nested
from fedfr_jax.export.program import card_of_program, open_program
from fedfr_jax.export.published import is_weights, open_published
from fedfr_jax.export.saved import open_saved
from fedfr_jax.runtime import workdir


@dataclasses.dataclass(frozen=True)
class FaceModel:
    """A face model: aligned face -> unit vector. Made by :func:`load_model`.

    Attributes:
      image_size: side S of the images, in pixels.
      embedding: size d of a feature.
      card: what the model is; see docs/export.md.
      features: ``(B, S, S, 3) uint8 RGB images -> (B, d)`` features, not normalized; compiled
        anew for every B.
    """

    image_size: int
    embedding: int
    card: dict[str, Any]
    features: Callable[[np.ndarray], np.ndarray] = dataclasses.field(repr=False)

    def embed(self, images: np.ndarray, *, batch_size: int = 64, mirror: bool = True) -> np.ndarray:
        """Features of face images.

        Args:
          images: (n, S, S, 3) uint8 RGB, aligned as in training; n > 0.
          batch_size: images per call; the last batch is filled up, so that the network is
            compiled once.
          mirror: add the features of an image and of its mirror image, as the generic protocol
            does; False: of the image alone, as the personalized protocols do.

        Returns:
          (n, d) float32 of length one.

        Raises:
          InputError: the images have the wrong type or size, or a feature is not finite.
        """
        images = as_images(images, self.image_size)
        if not (isinstance(batch_size, (int, np.integer)) and batch_size >= 1):
            raise InputError(f"batch_size is {batch_size!r}; it must be a positive whole number")
        if mirror:
            return embed_with_mirror(self.features, images, batch_size)
        return unit_rows(by_batches(self.features, images, batch_size), "image features")


def load_model(
    path: str | os.PathLike, *, client: int | None = None, variant: str | None = None
) -> FaceModel:
    """Opens a model that ``fedfr_jax.export`` wrote, one of a run, or published weights.

    Args:
      path: an exported folder (or the weights in it), a ``.jaxexport`` file, the work directory of
        a run, or a file of published weights (``.npz``, ``.safetensors``, ``.pth``). For the last,
        what its network expects as input is printed, and whether that is recorded or assumed.
      client: of a work directory: whose personalized model; None: the global one.
      variant: of a work directory: another of a client's models, see docs/export.md.

    Raises:
      InputError: there is no model, or it cannot be used; the message says why.
      DamagedError: it is not as it was written.
    """
    path = pathlib.Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path} is not there; give an exported model or a run's work directory")
    if path.is_dir() and not (path / CARD).exists() and (path / workdir.CONFIG).exists():
        with open_saved(path) as run:
            weights = run.weights(client, variant)
            card = card_of(run, weights)
        return of_weights(weights.architecture, nested(weights.arrays), card)
    if client is not None or variant is not None:
        raise InputError(
            f"{path} is one exported model; client and variant choose among those of a run's "
            "work directory"
        )
    if is_weights(path) and not (path.parent / CARD).exists():
        published = open_published(path)
        print("\n".join(f"{path.name}: {line}" for line in published.said), flush=True)
        weights = published.weights
        return of_weights(weights.architecture, nested(weights.arrays), card_of(published, weights))
    return _exported(path)


def _exported(path: pathlib.Path) -> FaceModel:
    if path.suffix == ".onnx":
        raise InputError(f"{path} is for onnxruntime; export the model with --format=folder")
    if path.name == WEIGHTS:
        path = path.parent
    folder = path if path.is_dir() else path.parent
    card = read_card(folder) if (folder / CARD).exists() else None
    if path.is_file():
        if card is None or path.name not in card["files"]:
            return _of_program(path, path.read_bytes(), None)
        return _of_program(path, read_file(folder, path.name, card), card)
    if card is None:
        program = folder / PROGRAM
        if not program.is_file():
            raise InputError(
                f"{path} holds no {CARD}, no {PROGRAM} and no run; give an exported model or a "
                "run's work directory"
            )
        return _of_program(program, program.read_bytes(), None)
    if WEIGHTS in card["files"]:
        return of_weights(architecture_of(card, path), read_weights(folder, card), card)
    if PROGRAM in card["files"]:
        return _of_program(folder / PROGRAM, read_file(folder, PROGRAM, card), card)
    kinds = f"only {ONNX}, for onnxruntime" if ONNX in card["files"] else "no model"
    raise InputError(f"{path} holds {kinds}; export it with --format=folder")


def _of_program(path: pathlib.Path, content: bytes, card: dict[str, Any] | None) -> FaceModel:
    size, embedding, features = open_program(path, content)
    card = card_of_program(size, embedding) if card is None else card
    of_card = card["architecture"]["image_size"], card["architecture"]["embedding"]
    if of_card != (size, embedding):
        raise InputError(
            f"{path} maps images of {size} pixels to {embedding} numbers, its {CARD} says "
            f"{of_card[0]} and {of_card[1]}; export it again"
        )
    return FaceModel(size, embedding, card, features)


def of_weights(architecture: Architecture, weights: PyTree, card: dict[str, Any]) -> FaceModel:
    """A model of weights in memory."""
    apply = jax.jit(architecture.function())
    weights = jax.device_put(weights)
    return FaceModel(
        architecture.image_size,
        architecture.embedding,
        card,
        lambda images: np.asarray(apply(weights, images), np.float32),
    )
