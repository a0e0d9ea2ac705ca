"""From a pretrained backbone to the initial state of the server and of the clients."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fedfr_jax import engine
from fedfr_jax.algorithm.features import list_features, public_features, type_of, where_images_are
from fedfr_jax.algorithm.messages import initial_memory, message_size
from fedfr_jax.algorithm.server import server_optimizer, server_trained
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.algorithm.state import Heads, ServerState
from fedfr_jax.algorithm.transforms import TRANSFORMS
from fedfr_jax.engine.layout import Layout
from fedfr_jax.population.cohort_data import CohortData, PublicData

PyTree = Any


def previous_type(setting: str, dtype: jnp.dtype) -> jnp.dtype:
    """Type of a stored previous backbone: ``population.previous``, "full" or "bfloat16"."""
    return jnp.dtype(jnp.bfloat16) if setting == "bfloat16" else dtype


def initial_server(
    spec: RoundSpec,
    layout: Layout,
    backbone: PyTree,
    public_embeddings: jax.Array | None,
    public: PublicData,
) -> ServerState:
    """The server before the first round (FedFR, section 3.4).

    Args:
      spec, layout: static.
      backbone: pretrained variables.
      public_embeddings: (K_0, d) class embeddings of the pretrained classifier, or None for the
        mean feature of each public identity.
      public: the public images.
    """
    if public_embeddings is None:
        public_embeddings = jax.jit(functools.partial(_public_means, spec, layout))(
            backbone, public
        )
    public_embeddings = jnp.asarray(public_embeddings)
    return ServerState(
        jnp.int32(0),
        backbone,
        public_embeddings,
        _optimizer_state(spec, backbone, public_embeddings),
        _memory(spec, backbone, len(public_embeddings)),
    )


def _memory(spec, backbone, public_identities):
    return initial_memory(spec, message_size(spec, public_identities), type_of(backbone))


def _optimizer_state(spec, backbone, public_embeddings):
    optimizer = server_optimizer(spec.fed)
    return (
        None if optimizer is None else optimizer.init(server_trained(backbone, public_embeddings))
    )


def _public_means(spec, layout, backbone, public):
    count = public.labels.shape[0]
    if not count:
        return jnp.zeros((public.identities, spec.backbone.embedding), type_of(backbone))
    features = public_features(spec, layout, backbone, public)
    return class_means(features, public.labels, jnp.ones(count, bool), public.identities)


def class_means(features, labels, mask, classes):
    """(classes, d) mean feature of each label; zero for a label without images."""
    sums = jax.ops.segment_sum(features * mask[:, None], labels, classes)
    counts = jax.ops.segment_sum(mask.astype(features.dtype), labels, classes)
    return sums / jnp.maximum(counts, 1)[:, None]


def initial_heads(
    spec: RoundSpec,
    layout: Layout,
    pretrained: PyTree,
    public: PublicData,
    cohort: CohortData,
    key: jax.Array,
    *,
    most_identities: int,
    previous: str = "full",
) -> Heads:
    """The heads of clients that have not taken part yet (FedFR, section 3.4).

    A class embedding starts as the mean of its identity's features under the pretrained
    backbone, not normalized; the binary classifiers start as copies of them, and the
    transform as the identity map. Traceable; a client's head depends only on its own data and
    number, not on the cohort it is in.

    Args:
      spec, layout: static.
      pretrained: variables.
      public, cohort: as for a round.
      key: for the random options.
      most_identities: K, number of class embeddings in a head.
      previous: type of the previous backbone, "full", "bfloat16" or "off".
    """
    no_embeddings = jnp.zeros((0, spec.backbone.embedding), type_of(pretrained))
    server = ServerState(jnp.int32(0), pretrained, no_embeddings)
    shared, device = where_images_are(server, public, cohort, key)

    def on_one_device(shared, device):
        device, cohort = device
        variables, size = shared.server.backbone, layout.feature_batch
        own = list_features(spec.backbone, variables, shared, device, cohort.used[0], size)
        return jax.lax.map(
            lambda client: _initial_head(spec, own, client, shared.key, most_identities),
            (cohort.rows, cohort.labels, cohort.sizes, cohort.identities, cohort.clients),
        )

    heads = engine.on_each_device(
        on_one_device,
        shared,
        (device, cohort.replace(images=None, table_rows=None)),
        mesh=layout.mesh,
    )
    slots = cohort.sizes.shape[0]
    if spec.message.privacy.top_k:
        size = message_size(spec, public.identities)
        heads = heads.replace(unsent=jnp.zeros((slots, size), type_of(pretrained)))
    if previous == "off":
        return heads
    return heads.replace(
        previous=jax.tree.map(
            lambda v: jnp.broadcast_to(
                v.astype(previous_type(previous, v.dtype)), (slots, *v.shape)
            ),
            pretrained,
        )
    )


def _initial_head(spec, own, client, key, most):
    rows, labels, size, identities, number = client
    embedding_key, transform_key = jax.random.split(jax.random.fold_in(key, number))
    d = spec.backbone.embedding
    if spec.fed.class_embedding_init == "random":
        exists = jnp.arange(most) < identities
        embeddings = 0.01 * jax.random.normal(embedding_key, (most, d), own.dtype) * exists[:, None]
    else:
        embeddings = class_means(own[rows], labels, jnp.arange(len(rows)) < size, most)
    return Heads(
        class_embeddings=embeddings,
        transform=TRANSFORMS[spec.terms.transform].init(transform_key, d, own.dtype),
        binary_weight=embeddings,
        binary_bias=jnp.zeros(most, own.dtype),
        previous=None,
        has_trained=jnp.array(False),
        copy_embeddings=embeddings if spec.recipe.copy_penalty is not None else None,
    )


def fill_in_new(stored: Heads, known: jax.Array, initial: Heads) -> Heads:
    """The stored heads of known clients, initial heads for the others.

    Args:
      stored, initial: with leading axis C.
      known: (C,) bool.
    """
    return jax.tree.map(
        lambda s, i: jnp.where(known.reshape(-1, *[1] * (s.ndim - 1)), s, i), stored, initial
    )


def head_shapes(
    spec: RoundSpec, most_identities: int, previous: str, public_identities: int
) -> Heads:
    """Shapes and types of one client's head, without a leading axis."""
    d, k = spec.backbone.embedding, most_identities
    array = jax.ShapeDtypeStruct
    variables = jax.eval_shape(spec.backbone.init, jax.random.key(0))
    dtype = type_of(variables)
    backbone = (
        None
        if previous == "off"
        else jax.tree.map(lambda v: array(v.shape, previous_type(previous, v.dtype)), variables)
    )
    return Heads(
        class_embeddings=array((k, d), dtype),
        transform=jax.eval_shape(
            lambda key: TRANSFORMS[spec.terms.transform].init(key, d, dtype), jax.random.key(0)
        ),
        binary_weight=array((k, d), dtype),
        binary_bias=array((k,), dtype),
        previous=backbone,
        has_trained=array((), jnp.bool_),
        copy_embeddings=(array((k, d), dtype) if spec.recipe.copy_penalty is not None else None),
        unsent=(
            array((message_size(spec, public_identities),), dtype)
            if spec.message.privacy.top_k
            else None
        ),
    )


def server_shapes(spec: RoundSpec, public_identities: int) -> ServerState:
    """Shapes and types of the server's state."""
    backbone = jax.eval_shape(spec.backbone.init, jax.random.key(0))
    embeddings = jax.ShapeDtypeStruct(
        (public_identities, spec.backbone.embedding), type_of(backbone)
    )
    return ServerState(
        jax.ShapeDtypeStruct((), jnp.int32),
        backbone,
        embeddings,
        jax.eval_shape(functools.partial(_optimizer_state, spec), backbone, embeddings),
        jax.eval_shape(lambda: _memory(spec, backbone, public_identities)),
    )
