"""MOON's projection head: two linear layers after the embedding, as part of the network.

Li, He, Song, "Model-Contrastive Federated Learning", CVPR 2021, section 3.2. As there, the loss
over identities and the contrastive term are both on its output, which is then the embedding.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedfr_jax.models.layers import Dense

NAME = "projection"


class Projection(nn.Module):
    """``W_2 relu(W_1 x + b_1) + b_2`` with 2 d hidden units: (N, d) -> (N, d).

    It starts as the identity, ``relu(x) - relu(-x)``, so that a pretrained network keeps its
    features.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d = x.shape[-1]

        def both_signs(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32):
            del key
            eye = jnp.eye(d, dtype=dtype)
            return jnp.concatenate([eye, -eye], axis=1 if shape[0] == d else 0)

        hidden = nn.relu(Dense(2 * d, init=both_signs, name="hidden")(x))
        return Dense(d, init=both_signs, name="output")(hidden)


class Projected(nn.Module):
    """A network with the head; its variables are those of the network and ``projection``.

    Attributes:
      network: with ``layers``, as :mod:`fedfr_jax.models` describes.
    """

    network: nn.Module

    def setup(self) -> None:
        nn.share_scope(self, self.network)
        self.projection = Projection()

    @property
    def layers(self) -> tuple[str, ...]:
        return (*self.network.layers, NAME)  # type: ignore[attr-defined]

    @property
    def last_stage(self) -> str:
        return self.network.last_stage  # type: ignore[attr-defined]

    @property
    def output_layers(self) -> tuple[str, ...]:
        return (*self.network.output_layers, NAME)  # type: ignore[attr-defined]

    def __call__(self, x: jax.Array, train: bool, part: slice = slice(None)) -> jax.Array:
        chosen = self.layers[part]
        if chosen != (NAME,):
            x = self.network(x, train, part)
        return self.projection(x) if NAME in chosen else x
