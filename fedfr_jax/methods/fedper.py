"""FedPer: the last layer of the backbone stays with the client, the layers before are averaged.

Arivazhagan et al., "Federated Learning with Personalization Layers", arXiv 1912.00818,
algorithms 1 and 2. Class embeddings are private in every method; here the last layer, which
computes the embedding, is private too. The server's copy of that layer stays as pretrained.
"""

from fedfr_jax.methods.recipe import Recipe, in_output_layer

RECIPE = Recipe(
    title="FedPer",
    source="Arivazhagan et al., 2019, algorithms 1 and 2",
    private=lambda o, backbone, variables: in_output_layer(backbone, variables),
)
