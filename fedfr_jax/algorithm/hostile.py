"""Simulated hostile clients: what they do to their labels or to their message.

An attack on the message replaces the difference that the client's honest training made. What comes
later, such as the server's clipping, holds for hostile clients as well. ``alie`` and
``inner_product`` are made of all honest messages of the round: these attackers know them and work
together.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax.algorithm.keys import ATTACK
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.population.cohort_data import CohortData
from fedfr_jax.settings import HostileConfig

_STREAM = 0x40_57_11_E0  # separates this random stream from others of the same seed


def hostile_clients(settings: HostileConfig, population: int) -> tuple[int, ...]:
    """The numbers of the hostile clients, ascending: those named, or a share, drawn."""
    if settings.clients:
        return tuple(sorted(set(settings.clients)))
    count = round(settings.fraction * population)
    rng = np.random.default_rng([settings.seed, _STREAM])
    return tuple(sorted(rng.choice(population, count, replace=False).tolist()))


def is_hostile(spec: RoundSpec, clients: jax.Array) -> jax.Array:
    """Whether clients of these numbers are hostile, in their shape."""
    numbers = np.array(spec.message.hostile_clients, np.int32)
    return jnp.isin(clients, numbers)


def labels_of(spec: RoundSpec, cohort: CohortData) -> jax.Array:
    """(C, M) the labels that clients train with: those of a label_flip are K_i - 1 - label."""
    if not spec.message.hostile_clients or spec.message.hostile.attack != "label_flip":
        return cohort.labels
    flipped = jnp.maximum(cohort.identities[:, None] - 1 - cohort.labels, 0)
    hostile = is_hostile(spec, cohort.clients)[:, None]
    return jnp.where(hostile, flipped, cohort.labels)


def attacked(
    spec: RoundSpec,
    parts: list[jax.Array],
    client: jax.Array,
    key: Callable[[int], jax.Array],
) -> list[jax.Array]:
    """A client's message: as it is, or as its attack makes it.

    Args:
      parts: the arrays of the honest message.
      client: its number, int scalar.
      key: the key for a purpose.
    """
    attack, strength = spec.message.hostile.attack, spec.message.hostile.strength
    if not spec.message.hostile_clients or attack not in ("sign_flip", "scale", "random", "nan"):
        return parts
    if attack == "random":
        bad = _noise_of_the_same_length(parts, strength, key(ATTACK))
    else:
        factor = {"sign_flip": -strength, "scale": strength, "nan": jnp.nan}[attack]
        bad = [p * factor for p in parts]
    hostile = is_hostile(spec, client)
    return [jnp.where(hostile, b, p) for b, p in zip(bad, parts, strict=True)]


def _noise_of_the_same_length(parts, strength, key):
    drawn = [
        jax.random.normal(jax.random.fold_in(key, i), p.shape, p.dtype) for i, p in enumerate(parts)
    ]

    def square(tree):
        return sum((jnp.sum(x * x) for x in tree), start=jnp.zeros(()))

    factor = strength * jnp.sqrt(square(parts) / jnp.maximum(square(drawn), 1e-30))
    return [d * factor.astype(d.dtype) for d in drawn]


def collude(settings: HostileConfig, messages, hostile, honest) -> jax.Array:
    """The messages with those of an attack that looks at all honest ones.

    ``alie``: mean less ``strength`` standard deviations, in each coordinate (Baruch et al., "A
    little is enough", NeurIPS 2019). ``inner_product``: the mean times ``-strength`` (Xie et al.,
    "Fall of empires", UAI 2019).

    Args:
      messages: (n, P).
      hostile, honest: (n,) bool, those who attack and those who are looked at.
    """
    if settings.attack not in ("alie", "inner_product"):
        return messages
    count = jnp.maximum(honest.sum(), 1)
    mean = jnp.where(honest[:, None], messages, 0).sum(0) / count
    if settings.attack == "inner_product":
        bad = -settings.strength * mean
    else:
        apart = jnp.where(honest[:, None], messages - mean, 0)
        bad = mean - settings.strength * jnp.sqrt((apart * apart).sum(0) / count)
    return jnp.where((hostile & honest.any())[:, None], bad, messages)
