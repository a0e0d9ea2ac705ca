"""What a protocol needs of a model: features of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from fedfr_jax.data.batches import equal_batches
from fedfr_jax.errors import InputError


class FaceModel(Protocol):
    """A network for faces, such as :func:`fedfr_jax.load_model` returns.

    Attributes:
      image_size: side S of its images, in pixels.
      embedding: size d of a feature.
      card: where it comes from, how it was trained, what it scored.
    """

    @property
    def image_size(self) -> int: ...

    @property
    def embedding(self) -> int: ...

    @property
    def card(self) -> Mapping[str, Any]: ...

    def embed(self, images: np.ndarray, *, batch_size: int = 64, mirror: bool = True) -> np.ndarray:
        """(n, S, S, 3) uint8 RGB to (n, d) float32 unit features.

        With ``mirror`` they are those of the sum of an image's and its mirror image's features.
        """
        ...

    @property
    def features(self) -> Callable[[np.ndarray], np.ndarray]:
        """``(B, S, S, 3) uint8 -> (B, d)`` without mirror and norm; may be compiled for each B."""
        ...


def image_and_mirror(model: FaceModel, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Features of images and of their mirror images, not normalized.

    Args:
      model: see :class:`FaceModel`.
      images: (n, S, S, 3) uint8 RGB.
      batch_size: images per call; the last batch is filled up.

    Returns:
      (n, 2, d) float32.

    Raises:
      InputError: a feature is not finite, or of another size than the model says.
    """
    out = np.empty((len(images), 2, model.embedding), np.float32)
    start = 0
    for count, batch in equal_batches(images, batch_size):
        for side, seen in enumerate((batch, batch[:, :, ::-1])):
            found = checked_features(model.features(seen), batch_size, model)
            out[start : start + count, side] = found[:count]
        start += count
    return out


def checked_features(features: Any, count: int, model: FaceModel) -> np.ndarray:
    """Features as float32, if there are ``count`` of the model's size and all are finite.

    Raises:
      InputError: there are not.
    """
    features = np.asarray(features, np.float32)
    if features.shape != (count, model.embedding):
        raise InputError(
            f"the model gave features of shape {features.shape} for {count} images, expected "
            f"{(count, model.embedding)}"
        )
    if not np.isfinite(features).all():
        raise InputError("the model gave features that are not finite; its weights are unusable")
    return features
