"""A round whose clients train part after part: the pieces of :func:`run_round` for a part of them.

It is for cohorts and public images that do not fit on the devices together. The host calls, in
this order (see :mod:`fedfr_jax.runtime.parts`):

1. :func:`features_of_block` for every block of the public images;
2. for each part of the clients :func:`search`, then :func:`train_part` with those public images
   that one of them keeps;
3. :func:`end_round` with the sum of what all parts sent.

The results are those of the whole round, but for the order in which numbers are added up: every
client draws the same random numbers, in whatever part it is.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from fedfr_jax import engine
from fedfr_jax.algorithm.aggregate import combine
from fedfr_jax.algorithm.features import Images, Shared, features, unmirrored, where_images_are
from fedfr_jax.algorithm.initialize import class_means
from fedfr_jax.algorithm.round import hard_negatives, server_average, train_clients
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.algorithm.state import Heads, ServerState
from fedfr_jax.engine.layout import Layout
from fedfr_jax.population.cohort_data import CohortData, PublicData

PyTree = Any


@struct.dataclass
class Sums:
    """What the clients of a round have sent so far.

    Attributes:
      sent: the weighted sum of ``{"backbone", "public_embeddings"}``.
      weight: scalar, the sum of the weights.
    """

    sent: PyTree
    weight: jax.Array


def no_sums(spec: RoundSpec, server: ServerState) -> Sums:
    """Before the first part; tensors that stay with the clients are scalars."""
    dtype = engine.sum_type(server.backbone)
    backbone = jax.tree.map(
        lambda private, v: jnp.zeros(() if private else v.shape, dtype),
        spec.private(server.backbone),
        server.backbone,
    )
    public = jnp.zeros(server.public_embeddings.shape, dtype)
    sent = {"backbone": backbone, "public_embeddings": public}
    return Sums(sent, jnp.zeros((), dtype))


def features_of_block(
    spec: RoundSpec,
    layout: Layout,
    variables: PyTree,
    table: Float[Array, "N_0 d"],
    positions: Int[Array, " B"],
    images: Images,
) -> Float[Array, "N_0 d"]:
    """The table of the public images' features with those of a block written into it.

    Args:
      table: donate it.
      positions: (B,) of the images among all public ones; beyond N_0 where they fill up the block.
      images: (B, ...) divided over the devices.
    """
    found = engine.on_each_device(
        lambda variables, images: features(spec.backbone, variables, unmirrored(images)),
        variables,
        images,
        mesh=layout.mesh,
    )
    return table.at[positions].set(found, mode="drop")


def public_means(
    everybody: Float[Array, "N_0 d"], labels: Int[Array, " N_0"], identities: int
) -> Float[Array, "K_0 d"]:
    """The public class embeddings where none were learned: each identity's mean feature."""
    return class_means(everybody, labels, jnp.ones(len(labels), bool), identities)


def search(
    spec: RoundSpec,
    layout: Layout,
    server: ServerState,
    everybody: Float[Array, "N_0 d"],
    cohort: CohortData,
) -> Bool[Array, "C N_0"]:
    """The hard negatives of a part's clients, among all public images."""
    shared, device = where_images_are(server, None, cohort, None)
    return hard_negatives(spec, layout, shared, device, cohort, everybody)


def train_part(
    spec: RoundSpec,
    layout: Layout,
    server: ServerState,
    heads: Heads,
    public: PublicData,
    cohort: CohortData,
    kept_public: Bool[Array, "C N"],
    sums: Sums,
    key: jax.Array,
) -> tuple[Sums, Heads, dict[str, jax.Array]]:
    """Local training of a part of the clients.

    Args:
      server: before the round.
      heads, sums: donate both.
      public: the public images that some of these clients keep, with ``numbers`` and ``count``.
      cohort: the part, with as many columns M as the round's.
      kept_public: which of the images in ``public`` each client keeps; (C, 0) without public data.
      key: the run's.

    Returns:
      (the sums with what these clients sent, their heads, their metrics).
    """
    shared, device = where_images_are(server, public, cohort, key)
    average, weight, heads, metrics = train_clients(
        spec, layout, shared, device, cohort, heads, kept_public
    )
    sent = jax.tree.map(lambda total, a: total + weight * a, sums.sent, average)
    return Sums(sent, sums.weight + weight), heads, metrics


def end_round(
    spec: RoundSpec,
    server: ServerState,
    sums: Sums,
    clients: Int[Array, " C"],
    metrics: dict[str, jax.Array],
    key: jax.Array,
) -> tuple[ServerState, dict[str, jax.Array]]:
    """The server after all parts, and the metrics.

    Args:
      server: donate it.
      clients: (C,) all clients of the round, -1 for an empty slot; metrics: theirs.
    """
    average = jax.tree.map(
        lambda total: total / jnp.where(sums.weight > 0, sums.weight, 1), sums.sent
    )
    shared = Shared(server, None, None, key)
    server, average, weight, metrics = combine(
        spec, shared, _only(clients), average, sums.weight, metrics
    )
    return server_average(spec, server, average, weight), metrics


def _only(clients: Int[Array, " C"]) -> CohortData:
    """A cohort of which nothing is known but who is in it: all that an aggregation looks at."""
    nothing = dict.fromkeys(("images", "table_rows", "used", "rows", "labels", "sizes"))
    return CohortData(**nothing, identities=None, clients=clients)
