"""Random numbers that depend only on a key, not on the options of JAX.

`jax.random.split`, `bits` and `uniform` depend on ``jax_threefry_partitionable``, and `uniform`
also on ``jax_enable_x64``. `jax.random.fold_in` depends on neither, so only it is used.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def population_key(seed) -> jax.Array:
    """Key of a population; names its generator, because the default one can be changed."""
    return jax.random.key(seed, impl="threefry2x32")


def random_bits(key, count: int) -> jax.Array:
    """Draws random bits; the first ones do not depend on how many are asked for.

    Args:
      key: a key of `population_key` or folded from one.
      count: how many numbers n, static.

    Returns:
      (n,) uint32.
    """
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    # A folded key is 64 bits of the generator's output; both halves are combined into 32 bits.
    words = jax.random.key_data(fold(key, jnp.arange(count, dtype=jnp.uint32)))
    return words[:, 0] ^ words[:, 1]


def uniform(key, count: int) -> jax.Array:
    """Draws numbers in [0, 1), multiples of 2**-23, so that none is rounded up to 1.

    Args:
      key, count: as for `random_bits`.

    Returns:
      (n,) float32.
    """
    return (random_bits(key, count) >> 9).astype(jnp.float32) * jnp.float32(2.0**-23)
