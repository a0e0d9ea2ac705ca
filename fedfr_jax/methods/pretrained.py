"""The pretrained backbone as it is, without any round: what there is to gain upon."""

from fedfr_jax.methods.recipe import Recipe

RECIPE = Recipe(title="pretrained", source="lower reference", trains=False)
