"""Federated averaging of the backbone; class embeddings are private.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, algorithm 1. A client's personal model is its backbone before averaging.
"""

from fedfr_jax.methods.recipe import Recipe

RECIPE = Recipe(title="FedAvg", source="McMahan et al., AISTATS 2017, algorithm 1")
