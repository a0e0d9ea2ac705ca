"""What the server makes of the messages of a round: the average, robust, secure or private."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedfr_jax.algorithm import hostile, robust, tree_noise
from fedfr_jax.algorithm.features import Shared
from fedfr_jax.algorithm.keys import BUCKETS, MASKS, SERVER_COUNT, SERVER_NOISE, message_key
from fedfr_jax.algorithm.messages import (
    Parts,
    add_noise,
    clip_bound,
    difference,
    flatten,
    remembered,
    unflatten,
    with_difference,
)
from fedfr_jax.algorithm.secure import secure_sum
from fedfr_jax.algorithm.spec import MessageSpec, RoundSpec
from fedfr_jax.algorithm.state import ServerState
from fedfr_jax.population.cohort_data import CohortData

PyTree = Any
Metrics = dict[str, jax.Array]


def combine(
    spec: RoundSpec,
    shared: Shared,
    cohort: CohortData,
    average: PyTree,
    weight: jax.Array,
    metrics: Metrics,
) -> tuple[ServerState, PyTree, jax.Array, Metrics]:
    """What the server takes for the average of a round.

    Args:
      average, weight: the running average of what was sent, and its total weight.
      metrics: (C,) arrays, and the (C, P) ``message`` where the aggregation needs all of them.

    Returns:
      (the server with what it remembers of messages, average, weight, metrics as (C,) arrays).
    """
    server = shared.server
    if not spec.looks_at_messages:
        return server, average, weight, metrics
    like = jax.eval_shape(lambda: difference(spec, server, average))
    if spec.stacks_messages:
        flat, weight, metrics = _of_all(spec, shared, cohort, metrics)
        parts = unflatten(flat, like)
    else:
        # Without any client the average is zero, and its difference means nothing.
        parts = [jnp.where(weight > 0, p, 0) for p in difference(spec, server, average)]
    server, metrics = _remember(spec, shared, cohort, parts, weight, metrics)
    parts = private_average(spec, shared, parts, weight)
    return server, _valid(with_difference(spec, server, average, parts)), weight, metrics


def _arrived(cohort: CohortData, metrics: Metrics) -> jax.Array:
    """(C,) bool, the clients whose messages the server has and takes."""
    arrived = (cohort.clients >= 0) & ~metrics["quarantined"] & ~metrics["late"]
    return arrived & ~metrics["missed"] if "missed" in metrics else arrived


def _of_all(spec: RoundSpec, shared: Shared, cohort: CohortData, metrics: Metrics):
    """((P,) the aggregate of the stacked messages, how many there were, metrics)."""
    invited = cohort.clients >= 0
    metrics = dict(metrics)
    messages = metrics.pop("message")
    arrived = _arrived(cohort, metrics)
    bound = clip_bound(spec, shared.server)
    if spec.message.hostile_clients:
        bad = hostile.is_hostile(spec, cohort.clients) & arrived
        messages = hostile.collude(spec.message.hostile, messages, bad, arrived & ~bad)
        # What they made passes the server's checks, too.
        length = jnp.linalg.norm(messages, axis=1)
        if spec.fed.quarantine_norm:
            too_long = bad & (length > spec.fed.quarantine_norm)
            metrics["quarantined"] |= too_long
            arrived &= ~too_long
            messages = jnp.where(too_long[:, None], 0, messages)
        if spec.message.privacy.clip_norm and not spec.message.privacy.local_noise:
            short = jnp.minimum(1.0, bound / jnp.maximum(length, 1e-30))
            messages = jnp.where(bad[:, None], messages * short[:, None], messages)

    def key(purpose):
        return message_key(shared.key, purpose, shared.server.round)

    if spec.message.privacy.secure_aggregation:
        total = secure_sum(messages, invited, arrived, key(MASKS), bound)
        flat = total / jnp.maximum(arrived.sum(), 1)
    else:
        center = remembered(shared.server).get("center", 0.0)
        flat = robust.aggregate(spec.fed, messages, arrived, key(BUCKETS), center)
    return flat, arrived.sum().astype(flat.dtype), metrics


def _remember(spec: RoundSpec, shared: Shared, cohort: CohortData, parts, weight, metrics):
    """(the server with its memory after this round, metrics with the bound of this round)."""
    server, memory = shared.server, remembered(shared.server)
    privacy = spec.message.privacy
    if spec.fed.aggregator == "centered_clip":
        memory["center"] = jnp.where(weight > 0, flatten(parts), memory["center"])
    if privacy.clip_norm:
        bound = jnp.asarray(clip_bound(spec, server), jnp.float32)
        metrics = metrics | {"clip_norm": jnp.broadcast_to(bound, cohort.clients.shape)}
    if privacy.clip_quantile:
        arrived = _arrived(cohort, metrics)
        within = jnp.where(arrived, jnp.where(metrics["clipped"], -0.5, 0.5), 0).sum()
        key = message_key(shared.key, SERVER_COUNT, server.round)
        within += count_noise(spec.message) * jax.random.normal(key)
        memory["clip_norm"] = next_clip_norm(spec.message, memory["clip_norm"], within)
    if spec.message.shares_noise:
        taken = spec.takes_average(server.round, weight)
        memory["noised"] = jnp.where(taken, server.round + 1, memory["noised"])
    return server.replace(message=memory or None), metrics


def next_clip_norm(message: MessageSpec, bound, within):
    """The bound of the next round (Andrew et al., NeurIPS 2021, algorithm 1).

    Args:
      within: sum over the clients of +1/2 (not clipped) and -1/2 (clipped), with noise.
    """
    share = within / message.cohort + 0.5
    return bound * jnp.exp(-message.privacy.clip_lr * (share - message.privacy.clip_quantile))


def count_noise(message: MessageSpec) -> float:
    """Std of the noise on the count of clients within the bound; 0 without private averages."""
    privacy = message.privacy
    if not privacy.noise_multiplier or not privacy.clip_quantile:
        return 0.0
    return privacy.clip_count_noise or message.cohort / 20


def noise_on_sum(message: MessageSpec) -> float:
    """Noise multiplier of the sum: larger where a part of the budget goes to the count.

    Together with the count's it is as private as ``noise_multiplier`` alone: theorem 1 of
    Andrew et al.; the count's sensitivity is 1/2.
    """
    multiplier, count = message.privacy.noise_multiplier, count_noise(message)
    if not count:
        return multiplier
    return (multiplier**-2 - (2 * count) ** -2) ** -0.5


def private_average(spec: RoundSpec, shared: Shared, parts: Parts, weight) -> Parts:
    """The average with a fixed denominator and Gaussian noise; as it is without noise settings.

    The sum of the clipped differences is divided by the *expected* number of clients, so that one
    client changes the result by at most a bound over that number, whoever else is there.
    """
    message = spec.message
    if not message.privacy.noise_multiplier:
        return parts
    cohort = message.privacy.production_cohort or message.cohort
    std = noise_on_sum(message) * clip_bound(spec, shared.server) / cohort
    share = weight / message.cohort
    parts = [p * share.astype(p.dtype) for p in parts]
    done = shared.server.round
    if not message.shares_noise:
        return add_noise(parts, std, message_key(shared.key, SERVER_NOISE, done))
    # Rounds that were not taken since the last one have had no noise: it comes with this one.
    last = remembered(shared.server)["noised"]
    noise = tree_noise.increment(shared.key, done + 1, last, spec.rounds.bit_length(), parts)
    return [p + jnp.asarray(std, p.dtype) * n for p, n in zip(parts, noise, strict=True)]


def _valid(average: PyTree) -> PyTree:
    """Running variances that noise or an attack made negative are 0: no network has others."""

    def one(path, x):
        return jnp.maximum(x, 0) if getattr(path[-1], "key", None) == "var" else x

    stats = average["backbone"].get("batch_stats", {})
    backbone = dict(average["backbone"], batch_stats=jax.tree_util.tree_map_with_path(one, stats))
    return dict(average, backbone=backbone)
