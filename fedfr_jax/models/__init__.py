"""Backbones: face image -> embedding, behind plain ``init`` and ``apply`` functions.

A new backbone is one line in ``MODELS`` and one file with a function
``build(config, image_size, conv)``. The function returns a Flax module, called as
``module(images, train)`` and with the names of its last layers in ``output_layers``, and the
description of its published weights (or None). To support ``fed.trainable``, the module also needs
``layers`` (the names of its top-level modules in forward order), ``last_stage`` (where the last
stage begins) and a third argument ``part`` (the slice of the layers to run).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedfr_jax.errors import ConfigError
from fedfr_jax.models import iresnet, mobilefacenet, mobilefacenet_arcface, spherenet
from fedfr_jax.models.layers import MIN_IMAGE_SIZE, apply_module, parameter_count
from fedfr_jax.models.projection import Projected
from fedfr_jax.models.weights import Published, from_torch, load_weights, to_torch
from fedfr_jax.settings import ModelConfig

__all__ = [
    "MODELS",
    "Backbone",
    "build",
    "from_torch",
    "load_weights",
    "parameter_count",
    "register_backbone",
    "to_torch",
]

MODELS: dict[str, Callable[[ModelConfig, int, str], tuple[nn.Module, Published | None]]] = {
    "spherenet": spherenet.build,
    "mobilefacenet": mobilefacenet.build,
    "mobilefacenet_arcface": mobilefacenet_arcface.build,
    "mobilefacenet_arcface_large": mobilefacenet_arcface.build_large,
    "iresnet": iresnet.build,
    "iresnet_adaface": iresnet.build_adaface,
}


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network as two pure functions on a pytree of variables.

    Attributes:
      init: ``key -> {"params": ..., "batch_stats": ...}``, in float32, or float64
        with that ``model.dtype``. ``batch_stats`` is an empty dict for a network without
        batch norm.
      apply: ``(variables, images, train) -> (features, batch_stats)`` with images
        (N, S, S, 3) in [-1, 1], features (N, embedding) in the parameters' type, not
        normalized, and ``train`` a Python bool: True normalizes with the statistics of the
        batch and returns updated running ones, False uses the running ones and returns them
        as they are.
      embedding: size of a feature.
      image_size: side S of the images, in pixels.
      name: key in ``MODELS``.
      output_layers: names of the top-level modules that compute the embedding from the last
        feature map; personalized methods call them the head of the network.
      input_shape: of one input, (S, S, 3), or of one activation if this is only the upper part
        of a network; see :mod:`fedfr_jax.models.parts`.
      module: the Flax module that ``init`` and ``apply`` are made of.
      batch_statistics: whether local training normalizes with the statistics of the mini-batch
        (``train`` = True), or with the running ones as they are.
      published: names and layouts of its published weights, if there are any.
      base: the network without its projection head, whose weights can be loaded; None: it has none.
    """

    init: Callable[[jax.Array], dict[str, Any]]
    apply: Callable[..., tuple[jax.Array, Any]]
    embedding: int
    image_size: int
    name: str
    output_layers: tuple[str, ...] = ()
    batch_statistics: bool = True
    published: Published | None = None
    input_shape: tuple[int, ...] = ()
    module: Any = None
    base: Backbone | None = None


def build(config: ModelConfig, image_size: int, conv: str = "auto") -> Backbone:
    """Builds the backbone that the settings describe.

    Args:
      config: the ``model`` settings.
      image_size: side of the images, in pixels.
      conv: convolution strategy, passed on to :func:`fedfr_jax.engine.convolutions.conv2d`.

    Raises:
      ConfigError: for an unknown network, or settings that it does not support.
    """
    if config.name not in MODELS:
        raise ConfigError(f"model.name is {config.name!r}; use one of {', '.join(MODELS)}")
    if image_size < MIN_IMAGE_SIZE:
        raise ConfigError(
            f"data.image_size is {image_size}; {config.name} halves images four "
            f"times and needs at least {MIN_IMAGE_SIZE}"
        )
    if config.embedding < 1:
        raise ConfigError(f"model.embedding is {config.embedding}; it must be positive")
    module, published = MODELS[config.name](config, image_size, conv)
    if config.projection:
        base = build(dataclasses.replace(config, projection=False), image_size, conv)
        module, published = Projected(module), None
    else:
        base = None
    return Backbone(
        init=_init_function(module, image_size, config.dtype),
        apply=_apply_function(module, image_size),
        embedding=config.embedding,
        image_size=image_size,
        name=config.name,
        output_layers=module.output_layers,
        batch_statistics=config.batch_norm == "batch",
        published=published,
        input_shape=(image_size, image_size, 3),
        module=module,
        base=base,
    )


def register_backbone(
    name: str, build: Callable[[ModelConfig, int, str], tuple[nn.Module, Published | None]]
) -> None:
    """Adds a network, which ``model.name`` can then select; may be called at any time.

    Args:
      name: of the network; the last registration of a name counts.
      build: ``(ModelConfig, image_size, conv) -> (module, published weights or None)``, as in the
        files of this folder. It reads ``depth``, ``widths``, ``embedding`` and ``dtype``.

    Raises:
      ValueError: ``build`` cannot be called.
    """
    if not callable(build):
        raise ValueError(f"the backbone {name!r} needs a function that builds it, not {build!r}")
    MODELS[name] = build


def _init_function(
    module: nn.Module, image_size: int, dtype: str
) -> Callable[[jax.Array], dict[str, Any]]:
    kind = jnp.float64 if dtype == "float64" else jnp.float32  # of the parameters

    # Under jit the forward pass in Flax's init is unused and removed.
    @jax.jit
    def init(key: jax.Array) -> dict[str, Any]:
        images = jnp.zeros((1, image_size, image_size, 3), kind)
        variables = module.init(key, images, train=False)
        found = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
        return jax.tree.map(lambda v: v.astype(kind), found)

    return init


def _apply_function(module: nn.Module, image_size: int) -> Callable[..., tuple[jax.Array, Any]]:
    def apply(variables: dict[str, Any], images: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        if images.ndim != 4 or images.shape[1:] != (image_size, image_size, 3):
            raise ValueError(
                f"images have shape {images.shape}, this backbone takes "
                f"(N, {image_size}, {image_size}, 3)"
            )
        return apply_module(module, variables, images, train)

    return apply
