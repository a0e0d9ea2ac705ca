"""LG-FedAvg: each client's own representation under a last layer that is averaged.

Liang et al., "Think Locally, Act Globally: Federated Learning with Local and Global
Representations", arXiv 2001.01523, algorithm 1. FedPer the other way round.
"""

import jax

from fedfr_jax.methods.recipe import Recipe, in_output_layer


def _before_output(options, backbone, variables):
    return jax.tree.map(lambda last: not last, in_output_layer(backbone, variables))


RECIPE = Recipe(title="LG-FedAvg", source="Liang et al., 2020, algorithm 1", private=_before_output)
