"""The type in which sums are accumulated."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def sum_type(tree: Any) -> jnp.dtype:
    """The widest type of the arrays in a pytree, at least float32.

    So sums of bfloat16 are accumulated in float32, and those of float64 in float64.
    """
    return jnp.result_type(jnp.float32, *(x.dtype for x in jax.tree.leaves(tree)))
