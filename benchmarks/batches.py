"""The mini-batches that all competitors train on: those of the library's first round."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problem import Case
from fedfr_jax.algorithm.pool import epoch_order

KEY = 7


def schedule(case: Case) -> dict[str, np.ndarray]:
    """Positions in a client's pool and mirror flags of every batch, (C, steps, B) each.

    The pool is the client's own images, then the public ones. These are the batches that the
    round below draws in round 0 with ``KEY``.
    """
    size = case.images + case.public
    per_epoch = size // case.batch

    def epoch(key, index):
        shuffle_key, flip_key = jax.random.split(jax.random.fold_in(key, index))
        order = epoch_order(shuffle_key, jnp.ones(size, bool))
        flips = jax.random.bernoulli(flip_key, 0.5, (size,))
        chosen = order[: per_epoch * case.batch].reshape(per_epoch, case.batch)
        return chosen, flips[chosen]

    def client(index):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(KEY), 0), index)
        return jax.vmap(lambda e: epoch(key, e))(jnp.arange(case.epochs))

    chosen, flips = jax.jit(jax.vmap(client))(jnp.arange(case.clients))
    shape = (case.clients, case.steps, case.batch)
    return {
        "positions": np.asarray(chosen).reshape(shape),
        "flips": np.asarray(flips).reshape(shape),
    }
