"""Random keys of what happens to messages, apart from those of local training."""

from __future__ import annotations

import jax

# What a key is for. The run's key is folded with one of these first; training folds it with the
# number of a round, which never is as large.
ATTACK, LATE, NOISE, QUANTIZE, SERVER_NOISE, SERVER_COUNT, BUCKETS, MASKS, TREE_NOISE = range(
    0x4D000000, 0x4D000009
)


def message_key(key: jax.Array, purpose: int, round_index, client=None) -> jax.Array:
    """The key for one purpose, round and, if given, client."""
    key = jax.random.fold_in(jax.random.fold_in(key, purpose), round_index)
    return key if client is None else jax.random.fold_in(key, client)
