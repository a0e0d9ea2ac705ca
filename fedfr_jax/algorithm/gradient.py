"""A gradient taken over parts of a mini-batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def gradient_in_parts(
    loss: Callable[..., tuple[jax.Array, PyTree]], trained: PyTree, batch: PyTree, part: int = 0
) -> tuple[PyTree, PyTree]:
    """(gradient, auxiliary results) of a loss that is a mean over images.

    Args:
      loss: ``(trained, batch) -> (scalar, auxiliary results)``.
      batch: pytree of arrays with a leading axis B.
      part: images per pass, a divisor of B, for networks without batch norm: the parts'
        gradients and auxiliary results are averaged. 0: all at once.
    """

    def one_part(batch):
        return jax.grad(loss, has_aux=True)(trained, batch)

    parts = len(jax.tree.leaves(batch)[0]) // part if part else 1
    if parts <= 1:
        return one_part(batch)
    folded = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)

    def nth(i):
        return one_part(jax.tree.map(lambda x: x[i], folded))

    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(nth, 0))
    total = jax.lax.fori_loop(0, parts, lambda i, t: jax.tree.map(jnp.add, t, nth(i)), zero)
    return jax.tree.map(lambda x: x / parts, total)
