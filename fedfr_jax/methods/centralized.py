"""Training on the union of all clients' images and the public ones, in one place.

It shows what could be gained if images could be shared. It is a round with one client, which
uses only one device.
"""

from fedfr_jax.methods.recipe import Recipe

RECIPE = Recipe(title="centralized", source="upper reference", public_data="all", union=True)
