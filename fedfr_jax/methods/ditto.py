"""Ditto: besides FedAvg, every client trains a personal backbone kept close to the global one.

Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
equation 2 and algorithm 1: ``v_i`` minimizes ``F_i(v) + weight / 2 ||v - w^t||^2`` and continues
from its own last state; ``w`` does not depend on it. It doubles the cost of local training.
"""

import dataclasses

from fedfr_jax.methods.recipe import Recipe, half_squared_distance


@dataclasses.dataclass(frozen=True)
class Options:
    weight: float = 0.1  # lambda of the paper, which tries 0.05 to 2


RECIPE = Recipe(
    title="Ditto",
    source="Li et al., ICML 2021, equation 2",
    options=Options,
    copy_penalty=lambda o, params, received: o.weight * half_squared_distance(params, received),
)
