"""The network of an exported model: its settings, the shapes of its weights, its function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax.algorithm.features import features, type_of
from fedfr_jax.algorithm.transforms import TRANSFORMS
from fedfr_jax.engine.convolutions import default_strategy
from fedfr_jax.models import Backbone, build
from fedfr_jax.settings import ModelConfig

PyTree = Any
SEPARATOR = "/"  # in names of arrays; Flax allows it in no name of a module
TRANSFORM = "transform"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a model's function and the shapes of its weights follow from.

    Attributes:
      name, depth, widths, embedding, dtype, batch_norm, projection: as in
        :class:`fedfr_jax.settings.ModelConfig`.
      image_size: side S of the images, in pixels.
      transform: key of :data:`fedfr_jax.algorithm.transforms.TRANSFORMS`, applied to the
        backbone's features.
    """

    name: str
    depth: int
    widths: tuple[int, ...]
    embedding: int
    dtype: str
    batch_norm: str
    image_size: int
    transform: str = "none"
    projection: bool = False

    @classmethod
    def of(cls, model: ModelConfig, image_size: int, transform: str = "none") -> Architecture:
        """From a run's settings."""
        same = {
            field.name: getattr(model, field.name)
            for field in dataclasses.fields(cls)
            if hasattr(model, field.name)
        }
        return cls(**same, image_size=image_size, transform=transform)

    def backbone(self, conv: str | None = None) -> Backbone:
        """The network without transform.

        Args:
          conv: convolution strategy; None: the one for shared weights on this machine.

        Raises:
          ConfigError: the network is unknown, or does not have these settings.
        """
        model = ModelConfig(
            name=self.name,
            depth=self.depth,
            widths=self.widths,
            embedding=self.embedding,
            dtype=self.dtype,
            batch_norm=self.batch_norm,
            projection=self.projection,
        )
        return build(model, self.image_size, default_strategy() if conv is None else conv)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Name -> shape and type of every array of the weights; computes nothing."""

        def all_weights(key: jax.Array) -> PyTree:
            variables = self.backbone("grouped").init(key)
            transform = TRANSFORMS[self.transform].init(key, self.embedding, type_of(variables))
            return {**variables, TRANSFORM: transform}

        return flat(jax.eval_shape(all_weights, jax.random.key(0)))

    def function(self, conv: str | None = None) -> Callable[[PyTree, jax.Array], jax.Array]:
        """``(weights, images (N, S, S, 3) in 0 to 255) -> (N, d)`` features, not normalized.

        Running statistics of batch norm are used as they are.

        Args:
          conv: as for :meth:`backbone`.
        """
        backbone, transform = self.backbone(conv), TRANSFORMS[self.transform]

        def apply(weights: PyTree, images: jax.Array) -> jax.Array:
            variables = {kind: weights.get(kind, {}) for kind in ("params", "batch_stats")}
            if images.dtype != jnp.uint8:
                images = images.astype(type_of(variables)) / 127.5 - 1.0
            found = features(backbone, variables, images)
            return transform.apply(weights.get(TRANSFORM, {}), found)

        return apply


def flat(tree: PyTree) -> dict[str, Any]:
    """Nested dictionaries as one, with names such as ``params/conv1/kernel``, sorted."""
    return dict(sorted(_leaves(tree)))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}{SEPARATOR}")
        else:
            yield prefix + name, value


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`flat`, up to empty dictionaries."""
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        *parents, leaf = name.split(SEPARATOR)
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return tree


def on_host(weights: PyTree) -> dict[str, np.ndarray]:
    """Weights as NumPy arrays by name."""
    return {name: np.asarray(value) for name, value in flat(jax.device_get(weights)).items()}
