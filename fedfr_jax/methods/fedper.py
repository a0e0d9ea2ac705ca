"""FedPer: the last layer of the backbone stays with the client, the layers before are averaged.

Arivazhagan et al., "Federated Learning with Personalization Layers", arXiv 1912.00818,
algorithms 1 and 2. The class embeddings are the client's own in every method; here the layer
that makes the embedding is, too. The server's own copy of it stays as it was pretrained.
"""

from fedfr_jax.methods.recipe import Recipe, in_output_layer

RECIPE = Recipe(
    title="FedPer",
    source="Arivazhagan et al., 2019, algorithms 1 and 2",
    private=lambda o, backbone, variables: in_output_layer(backbone, variables),
)
