"""A network divided at a layer: the layers below are frozen, those above are trained.

The frozen part is the same for all clients and in all rounds, so its activations are
computed once per image. The upper part is itself a :class:`fedfr_jax.models.Backbone` whose
inputs are those activations: every method trains it like a whole network.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedfr_jax.errors import ConfigError
from fedfr_jax.models import Backbone, build
from fedfr_jax.models.layers import apply_module
from fedfr_jax.settings import ModelConfig

PyTree = Any
ALL = "all"


@dataclasses.dataclass(frozen=True)
class Parts:
    """A network in two parts.

    Attributes:
      lower: ``(variables of the whole network, images (N, S, S, 3) in [-1, 1]) -> (N, ...)``
        activations below the first trained layer, in the parameters' type.
      upper: the rest, a network that takes these activations.
      frozen: names of the layers below.
    """

    lower: Callable[[PyTree, jax.Array], jax.Array]
    upper: Backbone
    frozen: tuple[str, ...]

    def trained(self, variables: PyTree) -> PyTree:
        """Selects the variables of the upper part from those of the whole network."""
        return _without(variables, self.frozen)

    def joined(self, variables: PyTree, upper: PyTree) -> PyTree:
        """The whole network's variables with these ones in its upper part."""
        return {kind: variables[kind] | upper[kind] for kind in variables}


def divide(backbone: Backbone, trainable: str) -> Parts | None:
    """Divides a network at the layer that ``fed.trainable`` names.

    Args:
      backbone: the whole network.
      trainable: "all", "last_stage", "embedding" (the layers after the last feature map), or a
        regular expression: the first layer whose name matches is trained, and all after it.

    Returns:
      The parts, or None where everything is trained.

    Raises:
      ConfigError: the network has no such layer, or cannot be divided.
    """
    first = _first_trained(backbone, trainable)
    if first == 0:
        return None
    module, layers = backbone.module, backbone.module.layers
    frozen = layers[:first]

    def lower(variables: PyTree, images: jax.Array) -> jax.Array:
        x, _ = apply_module(module, variables, images, False, slice(0, first))
        return x.astype(images.dtype)

    def apply(variables: PyTree, activations: jax.Array, train: bool) -> tuple[jax.Array, PyTree]:
        return apply_module(module, variables, activations, train, slice(first, None))

    variables = jax.eval_shape(backbone.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *backbone.input_shape), jnp.float32)
    upper = dataclasses.replace(
        backbone,
        init=lambda key: _without(backbone.init(key), frozen),
        apply=apply,
        input_shape=jax.eval_shape(lower, variables, image).shape[1:],
        published=None,
    )
    return Parts(lower, upper, frozen)


def trained_part(backbone: Backbone, trainable: str) -> Backbone:
    """The upper part if a network is divided, else the whole network."""
    parts = divide(backbone, trainable)
    return backbone if parts is None else parts.upper


@functools.cache
def is_divided(model: ModelConfig, image_size: int, trainable: str) -> bool:
    """Whether ``fed.trainable`` leaves a part of this network as it is."""
    some = dataclasses.replace(model, dtype="float32")  # not "auto", which is decided later
    return _first_trained(build(some, image_size, "grouped"), trainable) > 0


def activation_bytes(upper: Backbone, mirrored: bool) -> int:
    """Bytes of the activations of one image, and of its mirror image."""
    variables = jax.eval_shape(upper.init, jax.random.key(0))
    size = jax.tree.leaves(variables)[0].dtype.itemsize
    return (1 + mirrored) * math.prod(upper.input_shape) * size


def _first_trained(backbone: Backbone, trainable: str) -> int:
    """Position of the first layer that trains."""
    if trainable == ALL:
        return 0
    layers = getattr(backbone.module, "layers", ())
    if not layers:
        raise ConfigError(
            f"fed.trainable is {trainable!r}, but {backbone.name} does not say what its layers "
            "are; use 'all', or see fedfr_jax/models/__init__.py"
        )
    names = {"last_stage": backbone.module.last_stage, "embedding": backbone.output_layers[0]}
    if trainable in names:
        return layers.index(names[trainable])
    try:
        pattern = re.compile(trainable)
    except re.error as error:
        raise ConfigError(
            f"fed.trainable={trainable!r} is no regular expression: {error}"
        ) from None
    found = [k for k, name in enumerate(layers) if pattern.fullmatch(name)]
    if not found:
        raise ConfigError(
            f"fed.trainable={trainable!r} is no layer of {backbone.name}; use 'all', 'last_stage', "
            f"'embedding', or the first that trains of: {', '.join(layers)}"
        )
    return found[0]


def _without(variables: PyTree, modules: tuple[str, ...]) -> PyTree:
    """The variables but for those of some top-level modules."""
    return {
        kind: {name: value for name, value in tree.items() if name not in modules}
        for kind, tree in variables.items()
    }
