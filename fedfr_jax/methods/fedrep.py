"""FedRep: as FedPer, but first the head is trained, then the body under it.

Collins et al., "Exploiting Shared Representations for Personalized Federated Learning",
ICML 2021, algorithm 1.
"""

import dataclasses

import jax.numpy as jnp

from fedfr_jax.methods.recipe import Recipe, in_output_layer


@dataclasses.dataclass(frozen=True)
class Options:
    body_epochs: int = 1  # last local epochs of a round, which train the body


RECIPE = Recipe(
    title="FedRep",
    source="Collins et al., ICML 2021, algorithm 1",
    options=Options,
    private=lambda o, backbone, variables: in_output_layer(backbone, variables),
    heads_turn=lambda o, epoch, epochs: epoch < jnp.maximum(epochs - o.body_epochs, 0),
)
