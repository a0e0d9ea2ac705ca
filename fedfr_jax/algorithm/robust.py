"""Robust aggregation: one vector from many, of which some may be anything.

Every rule is a pure function of (n, P) messages and an (n,) mask of those that are there; the
others are ignored, whatever they hold, as long as it is finite. Each is traceable with any number
of messages in the mask.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedfr_jax.settings import FedConfig

_ITERATIONS = 32  # of Weiszfeld's algorithm
_SMOOTHING = 1e-6  # least distance in it, in mean lengths of a message


def mean(messages: jax.Array, there: jax.Array) -> jax.Array:
    """(P,) the plain average."""
    return jnp.where(there[:, None], messages, 0).sum(0) / jnp.maximum(there.sum(), 1)


def assumed(there: jax.Array, share: float) -> jax.Array:
    """f, the hostile messages that a rule withstands: a share of those there, rounded down."""
    # A little more, so that 0.2 of 10 is 2 in float32.
    return jnp.floor(share * there.sum() + 1e-4).astype(int)


def _sorted(messages, there):
    return jnp.sort(jnp.where(there[:, None], messages, jnp.inf), axis=0)


def trimmed_mean(messages: jax.Array, there: jax.Array, share: float) -> jax.Array:
    """(P,) each coordinate's mean without the f largest and f smallest (Yin et al., 2018)."""
    count, f = there.sum(), assumed(there, share)
    rank = jnp.arange(len(messages))
    kept = (rank >= f) & (rank < count - f)
    ordered = _sorted(messages, there)
    return jnp.where(kept[:, None], ordered, 0).sum(0) / jnp.maximum(kept.sum(), 1)


def median(messages: jax.Array, there: jax.Array) -> jax.Array:
    """(P,) the median in each coordinate; of an even number, the mean of the middle two."""
    count, ordered = there.sum(), _sorted(messages, there)
    low, high = ordered[jnp.maximum(count - 1, 0) // 2], ordered[count // 2]
    return jnp.where(count > 0, (low + high) / 2, 0)


def _squared_distances(messages, there):
    """(n, n), infinite where one is not there; exact zeros on the diagonal are kept."""

    def row(one):
        return jnp.sum((messages - one) ** 2, axis=1)

    both = there[:, None] & there
    return jnp.where(both, jax.lax.map(row, messages), jnp.inf)


def krum_scores(messages: jax.Array, there: jax.Array, share: float) -> jax.Array:
    """(n,) sum of squared distances to the n - f - 2 nearest others (Blanchard et al., 2017)."""
    count, f = there.sum(), assumed(there, share)
    found = _squared_distances(messages, there)
    found = jnp.where(jnp.eye(len(messages), dtype=bool), jnp.inf, found)
    rank = jnp.arange(len(messages))
    near = rank < jnp.maximum(count - f - 2, 1)
    ordered = jnp.sort(found, axis=1)
    total = jnp.where(near & jnp.isfinite(ordered), ordered, 0).sum(1)
    return jnp.where(there, total, jnp.inf)


def krum(messages: jax.Array, there: jax.Array, share: float) -> jax.Array:
    """(P,) the message with the lowest score."""
    return jnp.where(there.any(), messages[jnp.argmin(krum_scores(messages, there, share))], 0)


def multi_krum(messages: jax.Array, there: jax.Array, share: float) -> jax.Array:
    """(P,) the mean of the n - f messages with the lowest scores."""
    order = jnp.argsort(krum_scores(messages, there, share))
    chosen = jnp.arange(len(messages)) < there.sum() - assumed(there, share)
    return mean(messages[order], chosen)


def geometric_median(
    messages: jax.Array,
    there: jax.Array,
    iterations: int = _ITERATIONS,
    smoothing: jax.Array | float | None = None,
) -> jax.Array:
    """(P,) the point with the least sum of distances (Pillutla et al., 2022): smoothed Weiszfeld.

    Args:
      iterations: how many, from the mean.
      smoothing: the least distance that is divided by; None: a millionth of the mean length.
    """
    start = mean(messages, there)
    if smoothing is None:
        lengths = jnp.where(there, jnp.linalg.norm(messages, axis=1), 0)
        smoothing = _SMOOTHING * lengths.sum() / jnp.maximum(there.sum(), 1) + 1e-30

    def step(_, point):
        far = jnp.maximum(jnp.linalg.norm(messages - point, axis=1), smoothing)
        weights = jnp.where(there, 1 / far, 0)
        return weights @ messages / jnp.maximum(weights.sum(), 1e-30)

    return jax.lax.fori_loop(0, iterations, step, start)


def clipped_mean(
    messages: jax.Array, there: jax.Array, radius: float, center: jax.Array | float = 0.0
) -> jax.Array:
    """(P,) ``center`` and the mean of what the messages differ from it, clipped to ``radius``.

    With ``center`` 0 this is norm clipping (Sun et al., 2019), with the last aggregate it is
    centered clipping (Karimireddy et al., ICML 2021) with one iteration.
    """
    apart = messages - center
    length = jnp.linalg.norm(apart, axis=1, keepdims=True)
    near = apart * jnp.minimum(1.0, radius / jnp.maximum(length, jnp.finfo(apart.dtype).tiny))
    return center + mean(near, there)


def bucket(
    messages: jax.Array, there: jax.Array, size: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Means of random groups of ``size`` messages (Karimireddy et al., ICLR 2022).

    Returns:
      ((ceil(n / size), P), which of them hold a message). The last group may be smaller.
    """
    count = len(messages)
    draws = jnp.where(there, jax.random.uniform(key, (count,)), 2.0)
    rank = jnp.argsort(jnp.argsort(draws))
    group, groups = rank // size, -(-count // size)
    total = jax.ops.segment_sum(jnp.where(there[:, None], messages, 0), group, groups)
    members = jax.ops.segment_sum(there.astype(messages.dtype), group, groups)
    return total / jnp.maximum(members, 1)[:, None], members > 0


def aggregate(
    fed: FedConfig,
    messages: jax.Array,
    there: jax.Array,
    key: jax.Array,
    center: jax.Array | float = 0.0,
) -> jax.Array:
    """(P,) the aggregate that ``fed.aggregator`` and ``fed.bucketing`` ask for.

    Args:
      messages: (n, P), finite; there: (n,) bool. Without any message the result is 0.
      key: of the buckets.
      center: (P,) the last aggregate, for centered_clip.
    """
    if fed.bucketing > 1:
        messages, there = bucket(messages, there, fed.bucketing, key)
    share = fed.assumed_hostile
    rules = {
        "mean": lambda: mean(messages, there),
        "norm_clip": lambda: clipped_mean(messages, there, fed.clip_radius),
        "centered_clip": lambda: clipped_mean(messages, there, fed.clip_radius, center),
        "median": lambda: median(messages, there),
        "trimmed_mean": lambda: trimmed_mean(messages, there, share),
        "krum": lambda: krum(messages, there, share),
        "multi_krum": lambda: multi_krum(messages, there, share),
        "geometric_median": lambda: geometric_median(messages, there),
    }
    return rules[fed.aggregator]()
