"""Secure aggregation, simulated: the server learns the sum of messages, and no single one.

Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017,
without its key agreement and secret sharing: every pair of clients shares a random mask of
integers modulo 2^32, which one adds to its message and the other subtracts. In the sum the masks
of pairs that arrived cancel exactly. Those of a client that was lost on the way remain, and are
taken out as the protocol does it: the others reveal the seeds that they shared with it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_RANGE = 2**30  # of the sum of all integers; half of what int32 holds, so that rounding fits, too


def scale_of(count: int, bound: jax.Array | float) -> jax.Array:
    """Integers per unit: the sum of ``count`` numbers of magnitude ``bound`` still fits."""
    return jnp.asarray(_RANGE / count, jnp.float32) / jnp.asarray(bound, jnp.float32)


def to_integers(messages: jax.Array, scale: jax.Array) -> jax.Array:
    """Numbers as uint32 integers modulo 2^32, rounded to the nearest."""
    whole = jnp.round(messages * scale.astype(messages.dtype)).astype(jnp.int32)
    return jax.lax.bitcast_convert_type(whole, jnp.uint32)


def to_numbers(integers: jax.Array, scale: jax.Array, dtype) -> jax.Array:
    """The inverse of :func:`to_integers`, for a message or a sum."""
    return jax.lax.bitcast_convert_type(integers, jnp.int32).astype(dtype) / scale.astype(dtype)


def _mask_of_pair(key, i, j, size):
    """(P,) what client i adds for its pair with j: the negative of what j adds for it."""
    pair = jax.random.fold_in(jax.random.fold_in(key, jnp.minimum(i, j)), jnp.maximum(i, j))
    mask = jax.random.bits(pair, (size,), jnp.uint32)
    return jnp.where(i < j, mask, -mask)


def _sum_of_masks(key, i, others, size):
    """(P,) the masks of client i with the (n,) other clients in a mask, itself left out."""

    def add(j, total):
        wanted = others[j] & (j != i)
        return total + jnp.where(wanted, _mask_of_pair(key, i, j, size), jnp.uint32(0))

    return jax.lax.fori_loop(0, len(others), add, jnp.zeros(size, jnp.uint32))


def masked(integers: jax.Array, invited: jax.Array, key: jax.Array) -> jax.Array:
    """(n, P) uint32, what the invited clients send; each row alone is uniformly random.

    Args:
      integers: (n, P) uint32, their messages.
      invited: (n,) bool, those who agreed on masks.
    """

    def one(i):
        return integers[i] + _sum_of_masks(key, i, invited, integers.shape[1])

    return jax.lax.map(one, jnp.arange(len(integers)))


def unmask(sent: jax.Array, invited: jax.Array, arrived: jax.Array, key: jax.Array) -> jax.Array:
    """(P,) uint32, the sum of the messages that arrived, from what was sent.

    Args:
      sent: (n, P) uint32, from :func:`masked`.
      invited, arrived: (n,) bool.
      key: the seeds of pairs with a lost client are read from it, and no others.
    """
    lost = invited & ~arrived

    def add(i, total):
        alone = sent[i] - _sum_of_masks(key, i, lost, sent.shape[1])
        return total + jnp.where(arrived[i], alone, jnp.uint32(0))

    return jax.lax.fori_loop(0, len(sent), add, jnp.zeros(sent.shape[1], jnp.uint32))


def secure_sum(
    messages: jax.Array,
    invited: jax.Array,
    arrived: jax.Array,
    key: jax.Array,
    bound: jax.Array | float,
) -> jax.Array:
    """(P,) the sum of the messages that arrived, up to n / 2^31 bounds per message by rounding.

    Args:
      messages: (n, P) numbers of magnitude at most ``bound``.
      invited, arrived: (n,) bool; those who arrived were invited.
      key: of the round.
    """
    scale = scale_of(len(messages), bound)
    sent = masked(to_integers(messages, scale), invited, key)
    return to_numbers(unmask(sent, invited, arrived, key), scale, messages.dtype)
