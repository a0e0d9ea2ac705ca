"""Small networks, images and random variables for tests of the backbones."""

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax.models import build
from fedfr_jax.settings import ModelConfig

SMALL = {
    "spherenet": ModelConfig(name="spherenet", depth=10, widths=(4, 6, 8, 10), embedding=12),
    "iresnet": ModelConfig(name="iresnet", depth=18, widths=(4, 4, 6, 8), embedding=12),
}


def small(name, size=16, conv="auto", **changes):
    fields = {**vars(SMALL[name]), **changes}
    return build(ModelConfig(**fields), size, conv)


def images(n, size, seed=0):
    return np.random.RandomState(seed).uniform(-1, 1, (n, size, size, 3)).astype(np.float32)


def draw(backbone, seed=0, gain=1.0):
    """Random variables, none at its initial 0 or 1 (and nothing to compile).

    Args:
      gain: variance of a kernel's entries times its inputs.
    """
    rng = np.random.RandomState(seed)

    def leaf(path, value):
        shape = value.shape
        if path[-1].key == "kernel":
            x = rng.standard_normal(shape) * np.sqrt(gain / np.prod(shape[:-1]))
        elif path[-1].key in ("scale", "var"):
            x = rng.uniform(0.5, 1.5, shape)
        else:
            x = rng.uniform(-0.3, 0.3, shape)
        return jnp.asarray(x, jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(backbone.init, jax.random.key(0)))
