"""The pretrained backbone as it is, without any round: the baseline to improve on."""

from fedfr_jax.methods.recipe import Recipe

RECIPE = Recipe(title="pretrained", source="lower reference", trains=False)
