"""MOON: pulls features towards those of the global model, away from those of the last local one.

Li, He, Song, "Model-Contrastive Federated Learning", CVPR 2021, equation 3.
"""

import dataclasses

from fedfr_jax.methods.recipe import Recipe, Terms


@dataclasses.dataclass(frozen=True)
class Options:
    weight: float = 1.0  # mu
    temperature: float = 0.5  # tau


RECIPE = Recipe(
    title="MOON",
    source="Li et al., CVPR 2021, equation 3",
    options=Options,
    terms=lambda o: Terms(contrastive_weight=o.weight, temperature=o.temperature),
)
