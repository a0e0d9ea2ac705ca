"""The directions that the contrastive term turns features away from (FedFR, equation 2).

They depend only on two frozen backbones, so they are computed once per image and mirror image and
looked up in every epoch, unless the layout says to compute them in every step, as published.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedfr_jax.algorithm import losses
from fedfr_jax.algorithm.features import Images, Shared, features, type_of
from fedfr_jax.algorithm.pool import Pool
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.algorithm.state import Heads, ServerState
from fedfr_jax.engine import Lane
from fedfr_jax.engine.layout import Layout


def direction(
    spec: RoundSpec, server: ServerState, head: Heads, images: Images
) -> Float[Array, "B d"]:
    """(B, d) direction of the contrastive term for images as the network sees them."""
    previous = jax.tree.map(lambda v, own: own.astype(v.dtype), server.backbone, head.previous)
    return losses.contrastive_direction(
        features(spec.backbone, server.backbone, images), features(spec.backbone, previous, images)
    )


def contrastive_directions(
    spec: RoundSpec, layout: Layout, lane: Lane, shared: Shared, head: Heads, pool: Pool, epochs
) -> Callable[..., jax.Array | None]:
    """A function ``(positions (B,), flip (B,), images (B, S, S, 3)) -> (B, d)``, or None."""
    if not spec.uses_contrastive:
        return lambda positions, flip, images: None
    if not layout.cache_features:
        return lambda positions, flip, images: direction(spec, shared.server, head, images)
    table = _table(spec, layout, lane, shared, head, pool, epochs)
    return lambda positions, flip, images: table[
        flip.astype(int) if pool.mirrored else 0, positions
    ]


def _table(
    spec: RoundSpec, layout: Layout, lane: Lane, shared: Shared, head: Heads, pool: Pool, epochs
) -> jax.Array:
    """(V, P, d): :func:`direction` of the views that occur in some epoch, once per round.

    V = 2 with mirrors and 1 without.
    """
    count, views = len(pool.labels), 2 if pool.mirrored else 1

    def see(epoch, seen):
        flip = pool.flips(epoch)
        return seen | jnp.stack([~flip, flip])[:views]

    seen = jax.lax.fori_loop(0, epochs, see, jnp.zeros((views, count), bool)) & pool.valid
    block = min(layout.feature_batch, views * count)
    first = jnp.argsort(~seen.reshape(-1))  # stable: what is needed comes first, in order
    first = jnp.pad(first, (0, -len(first) % block), mode="edge")
    blocks = jnp.where(head.has_trained, -(-seen.sum() // block), 0)

    def one_block(i, table):
        entries = jax.lax.dynamic_slice_in_dim(first, i * block, block)
        images = pool.views(entries % count, entries >= count)
        return table.at[entries].set(direction(spec, shared.server, head, images))

    table = jnp.zeros((views * count, spec.backbone.embedding), type_of(shared.server.backbone))
    return lane.repeat(blocks, one_block, table).reshape(views, count, -1)
