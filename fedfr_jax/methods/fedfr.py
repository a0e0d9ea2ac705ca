"""FedFR: hard negatives, a contrastive term, and a personal branch for every client.

Liu, Wang, Chien, Lai, "FedFR: Joint Optimization Federated Framework for Generic and
Personalized Face Recognition", AAAI 2022: the local loss is equation 6. Its switches are the
settings ``fed.public_data``, ``fed.hard_threshold``, ``fed.transform``,
``fed.class_embedding_init`` and the group ``loss``.
"""
from fedfr_jax.methods.recipe import Recipe, Terms

RECIPE = Recipe(
    title="FedFR", source="Liu et al., AAAI 2022, equation 6", public_data="hard",
    terms=lambda o, loss: Terms(loss.contrastive_weight, loss.temperature, loss.binary_weight))
