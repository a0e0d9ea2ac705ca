"""Which messages of a round the server waits for, by the clients' simulated durations."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedfr_jax.algorithm.features import Shared
from fedfr_jax.algorithm.messages import is_lost
from fedfr_jax.algorithm.spec import RoundSpec, epochs_of_round
from fedfr_jax.population.cohort_data import CohortData

_NEVER = jnp.inf


def arrivals(
    spec: RoundSpec, shared: Shared, cohort: CohortData, kept_public: jax.Array, steps: jax.Array
) -> tuple[jax.Array | None, dict[str, jax.Array]]:
    """Whose message comes in time, and how long everything takes.

    It is known before anything is trained: a client's duration depends on how many images it
    trains on, and not on what it learns.

    Args:
      kept_public: (C, N_0) bool, the public images of each client; or (C, 0).
      steps: (C,) mini-batches of an epoch.

    Returns:
      ((C,) bool, None where every message is waited for; metrics). Metrics are (C,) float32:
      ``simulated_seconds`` of each client, and ``round_seconds`` of the round, the same for all;
      none where the cohort has no pace.
    """
    if cohort.pace is None:
        return None, {}
    there, server = cohort.clients >= 0, shared.server
    images = _trained_images(spec, server.round, cohort.sizes + kept_public.sum(1), steps)
    seconds = images * cohort.pace.image + _upload(spec, server.round, cohort.pace.upload)
    seconds = jnp.where(there, seconds, 0)
    slowest = seconds.max(initial=0)
    message = spec.message
    if not message.may_come_late:
        return None, _times(seconds, slowest)
    in_time = there
    if message.late_dropout:  # they never arrive, so nobody waits for them as one of the first
        in_time &= ~jax.vmap(lambda c: is_lost(spec, shared.key, server.round, c))(cohort.clients)
    until = slowest
    if message.deadline:
        in_time &= seconds <= message.deadline
        until = jnp.minimum(until, message.deadline)
    if message.first:
        in_time, until = _first(message.first, in_time, seconds, cohort.clients, until)
    return in_time, _times(seconds, until)


def _trained_images(spec: RoundSpec, round_index, sizes, steps) -> jax.Array:
    """(C,) float32 images in all steps; a personal copy is trained as long as the model."""
    epochs, _ = epochs_of_round(spec, round_index)
    images = sizes if spec.fed.partial_batch else steps * spec.fed.batch_size
    copies = 2 if spec.recipe.copy_penalty is not None else 1
    return (images * epochs * copies).astype(jnp.float32)


def _upload(spec: RoundSpec, round_index, seconds: jax.Array) -> jax.Array:
    """(C,) seconds of sending; none in rounds in which nothing is sent."""
    if spec.recipe.averages is None:
        return seconds
    return jnp.where(spec.recipe.averages(spec.options, round_index, spec.rounds), seconds, 0)


def _first(count: int, in_time, seconds, clients, until):
    """(the first so many of those in time, when the server has them all).

    Of two that arrive at the same moment the lower number is the first, wherever they are placed.
    """
    order = jnp.lexsort((clients, jnp.where(in_time, seconds, _NEVER)))
    place = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
    taken = in_time & (place < count)
    last = jnp.where(taken, seconds, 0).max(initial=0)
    return taken, jnp.where(taken.sum() == count, last, until)


def _times(seconds: jax.Array, until: jax.Array) -> dict[str, jax.Array]:
    return {
        "simulated_seconds": seconds,
        "round_seconds": jnp.broadcast_to(until.astype(seconds.dtype), seconds.shape),
    }
