"""Noise of sums over rounds by tree aggregation: correlated between rounds, small in every sum.

Kairouz et al., "Practical and Private (Deep) Learning Without Sampling or Shuffling", ICML 2021;
the tree is that of Dwork et al. (STOC 2010) and Chan et al. (2011). Rounds 1, 2, ... are the leaves
of binary trees. Node (j, k) stands for the rounds k 2^j + 1 to (k + 1) 2^j and has its own noise.
The sum of the first t rounds is made of one node for each bit of t that is set, so that its noise
is that of popcount(t) nodes, where independent noise in each round would add up t times.

Nothing is remembered but the last round whose noise is in the model: a node's noise is drawn again
from its place in the tree.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedfr_jax.algorithm.keys import TREE_NOISE, message_key

Parts = list[jax.Array]


def node_noise(key: jax.Array, level, place, like: Parts) -> Parts:
    """Standard normal numbers of node (``level``, ``place``), shaped like the parts of a message.

    Args:
      key: the run's.
    """
    key = message_key(key, TREE_NOISE, level, place)
    return [
        jax.random.normal(jax.random.fold_in(key, i), p.shape, p.dtype) for i, p in enumerate(like)
    ]


def increment(key: jax.Array, done, last, levels: int, like: Parts) -> Parts:
    """The noise of the sum over ``done`` rounds less that over ``last`` rounds, of unit nodes.

    Args:
      key: the run's.
      done, last: int scalars, below ``2 ** levels``.
      levels: of the tree; static.
      like: parts of a message, for shapes and types.
    """

    def one_level(level, total):
        def with_node(total, rounds, other, sign):
            has = (rounds >> level) & 1
            # A node in both sums is not drawn: it would cancel, up to rounding.
            in_both = (rounds >> level) == (other >> level)

            def add(total):
                noise = node_noise(key, level, (rounds >> level) - 1, like)
                return [t + sign * n for t, n in zip(total, noise, strict=True)]

            return jax.lax.cond((has == 1) & ~in_both, add, lambda total: total, total)

        return with_node(with_node(total, done, last, 1), last, done, -1)

    start = [jnp.zeros(p.shape, p.dtype) for p in like]
    return jax.lax.fori_loop(0, levels, one_level, start)
