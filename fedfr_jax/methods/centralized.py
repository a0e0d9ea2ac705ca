"""Training on the union of all clients' images and the public ones, in one place.

What there would be to gain if images could be shared. It is a round with one client, which
keeps one device busy.
"""

from fedfr_jax.methods.recipe import Recipe

RECIPE = Recipe(title="centralized", source="upper reference", public_data="all", union=True)
