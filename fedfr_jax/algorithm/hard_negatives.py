"""Compares features to find the hard negatives of all clients of a cohort."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fedfr_jax import engine
from fedfr_jax.algorithm.features import Device, Shared, list_features, public_features
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.engine.layout import Layout
from fedfr_jax.population.cohort_data import CohortData

BLOCK = 4096  # public images that are compared with a client's own at a time; bounds memory


def all_or_nothing(spec: RoundSpec, shared: Shared, cohort: CohortData) -> Bool[Array, "C N_0"]:
    """(C, N_0) bool, every public image for every client; (C, 0) without public data."""
    slots = len(cohort.sizes)
    if not spec.uses_public:
        return jnp.zeros((slots, 0), bool)
    return jnp.broadcast_to((cohort.sizes > 0)[:, None], (slots, len(shared.public.labels)))


def by_blocks(
    of_one: Callable[[jax.Array], jax.Array], public: Float[Array, "N_0 d"]
) -> Bool[Array, " N_0"]:
    """``of_one`` of each public image's feature; the table is not copied whole."""
    return engine.loop_blocks(
        lambda at: jax.vmap(of_one)(public[at]), jnp.arange(len(public)), len(public), block=BLOCK
    )


def compare_with_public(
    choose: Callable[..., jax.Array],
    spec: RoundSpec,
    layout: Layout,
    shared: Shared,
    device: Device,
    cohort: CohortData,
    everybody: jax.Array | None = None,
) -> Bool[Array, "C N_0"]:
    """(C, N_0) bool: ``choose`` of each client's features and those of the public images.

    Args:
      choose: ``(own (M, d), exists (M,) bool, public (N_0, d)) -> (N_0,) bool``; all features
        are under the global backbone.
      everybody: (N_0, d) features of the public images, if they are known already.
    """
    if everybody is None:
        everybody = public_features(spec, layout, shared.server.backbone, shared.public)

    def on_one_device(shared, device):
        shared, public = shared
        device, used, rows, sizes = device
        features = list_features(
            spec.backbone, shared.server.backbone, shared, device, used[0], layout.feature_batch
        )

        def one_client(client):
            rows, size = client
            return choose(features[rows], jnp.arange(len(rows)) < size, public)

        return jax.lax.map(one_client, (rows, sizes))

    return engine.on_each_device(
        on_one_device,
        (shared, everybody),
        (device, cohort.used, cohort.rows, cohort.sizes),
        mesh=layout.mesh,
    )
