"""Local training only: every client keeps training its own backbone, and nothing is averaged.

The server's model stays the pretrained one.
"""

import jax

from fedfr_jax.methods.recipe import Recipe

RECIPE = Recipe(
    title="local only",
    source="no collaboration",
    isolated=True,
    private=lambda o, backbone, variables: jax.tree.map(lambda _: True, variables),
)
