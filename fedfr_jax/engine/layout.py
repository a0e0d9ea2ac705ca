"""How a round is laid out on the hardware."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a round is laid out on the hardware; it does not change the result.

    Attributes:
      mesh: one axis of devices, from :func:`fedfr_jax.engine.make_mesh`.
      lanes: clients side by side on a device.
      feature_batch: images per forward pass of a frozen backbone.
      gradient_batch: images per gradient pass; a larger mini-batch is taken in parts and
        the gradients are averaged. 0: the whole mini-batch at once.
      cache_features: the features of the contrastive term are computed once per image and
        mirror and looked up in every epoch; False computes them in every step, as published.
      unroll: a step of several lanes is a copy for each, see ``engine.for_each_client``.
    """

    mesh: Mesh
    lanes: int
    feature_batch: int
    gradient_batch: int = 0
    cache_features: bool = True
    unroll: bool = False
