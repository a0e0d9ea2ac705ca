"""Training with optax: epochs of one client's mini-batches, and the step of the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedfr_jax.engine.cohort import Lane

PyTree = Any


def train_locally(
    lane: Lane,
    losses: Callable[[PyTree, PyTree, jax.Array], jax.Array],
    params: PyTree,
    examples: PyTree,
    size: jax.Array,
    optimizer: optax.GradientTransformation,
    *,
    batch: int,
    key: jax.Array,
    epochs: int | jax.Array = 1,
    shuffle: bool = True,
) -> tuple[PyTree, jax.Array]:
    """Trains ``params`` on the examples of one client; for use in a client update.

    Every epoch has its own order, unless ``shuffle`` is False. Its last mini-batch has the examples
    that are left: it may be smaller, and its mean is taken over those alone. A client without
    examples does not train.

    Args:
      lane: as the client update received it.
      losses: maps (params, a mini-batch of examples (B, ...), key) to the loss of each, (B,).
      params: pytree of float arrays.
      examples: pytree of arrays (M, ...), of which the first ``size`` are the client's, as from
        :func:`fedfr_jax.population.pack_ragged`.
      size: int scalar, may differ between clients.
      optimizer: begins anew with every call.
      batch: B, examples per step.
      key: of this client in this round.
      epochs: passes over the examples, may differ between clients.
      shuffle: False takes the examples as they come in every epoch.

    Returns:
      (trained ``params``, mean loss per example in the steps taken, 0 without any).
    """
    [most] = {len(x) for x in jax.tree.leaves(examples)}
    columns = jnp.arange(most)

    def one_epoch(epoch, carry):
        of_order, of_steps = jax.random.split(jax.random.fold_in(key, epoch))
        order = columns
        if shuffle:
            drawn = jax.random.uniform(of_order, (most,))
            order = jnp.argsort(jnp.where(columns < size, drawn, 2.0))  # padding comes last

        def one_step(step, carry):
            params, optimizer_state, total = carry
            at = step * batch + jnp.arange(batch)
            present = at < size
            chosen = order.at[at].get(mode="clip")
            part = jax.tree.map(lambda x: x[chosen], examples)
            step_key = jax.random.fold_in(of_steps, step)

            def mean(params):
                each = jnp.where(present, losses(params, part, step_key), 0)
                return each.sum() / jnp.maximum(present.sum(), 1)

            loss, gradient = jax.value_and_grad(mean)(params)
            change, optimizer_state = optimizer.update(gradient, optimizer_state, params)
            params = optax.apply_updates(params, change)
            return params, optimizer_state, total + loss.astype(jnp.float32) * present.sum()

        return lane.repeat(-(-size // batch), one_step, carry)

    start = (params, optimizer.init(params), jnp.zeros(()))
    params, _, total = lane.repeat(epochs, one_epoch, start)
    return params, total / jnp.maximum(epochs * size, 1)


def server_step(
    optimizer: optax.GradientTransformation, params: PyTree, state: PyTree, average: PyTree
) -> tuple[PyTree, PyTree]:
    """One step of the server, with the way from the average to ``params`` as its gradient.

    Reddi et al., "Adaptive Federated Optimization" (ICLR 2021). ``optax.sgd(1.0)`` gives the
    average itself.

    Args:
      optimizer: of optax, for instance ``optax.adam(1e-3)``.
      params: the server's, as sent to the clients.
      state: ``optimizer.init(params)`` before the first round.
      average: of the clients' ``params``. A round without clients must not come here: its
        average is zero.

    Returns:
      The next (``params``, ``state``).
    """
    gradient = jax.tree.map(jnp.subtract, params, average)
    change, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, change), state
