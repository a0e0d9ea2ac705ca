"""FedFR: hard negatives, a contrastive term, and a personal branch for every client.

Liu, Wang, Chien, Lai, "FedFR: Joint Optimization Federated Framework for Generic and
Personalized Face Recognition", AAAI 2022: the local loss is equation 6,
``L_cos + contrastive_weight L_con + binary_weight L_bin``. Other methods can also use the
settings ``fed.public_data``, ``fed.hard_threshold`` and ``fed.class_embedding_init``.
"""

import dataclasses

from fedfr_jax.methods.recipe import Recipe, Terms


@dataclasses.dataclass(frozen=True)
class Options(Terms):
    contrastive_weight: float = 5.0
    binary_weight: float = 10.0
    transform: str = "linear"


RECIPE = Recipe(
    title="FedFR",
    source="Liu et al., AAAI 2022, equation 6",
    options=Options,
    public_data="hard",
    terms=lambda o: o,
)
