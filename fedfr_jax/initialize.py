"""From a split and a pretrained backbone to the state before the first round."""
from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax import engine, fedfr
from fedfr_jax.data.types import FederatedSplit, ImageSource
from fedfr_jax.state import FederatedData, Heads, ServerState
from fedfr_jax.transforms import TRANSFORMS

PyTree = Any


@dataclasses.dataclass(frozen=True)
class VerificationData:
    """Held-out images of all clients' identities, for the personalized protocols.

    Attributes:
      images: (V, S, S, 3) uint8.
      labels: (V,) int64 identity, numbered through over clients: client ``i``'s local
        label ``k`` is ``first_identity[i] + k``.
      clients: (V,) int64, whose identity it is.
      first_identity: (C + 1,) int64.
    """

    images: np.ndarray
    labels: np.ndarray
    clients: np.ndarray
    first_identity: np.ndarray


def federated_data(source: ImageSource, split: FederatedSplit) -> FederatedData:
    """Reads the training images of everybody into one table.

    Args:
      source: where images come from.
      split: who holds which of them.
    """
    sizes = np.array([len(c.train_images) for c in split.clients])
    columns = np.arange(sizes.max())
    first_row = len(split.public_images) + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    # Padding repeats the client's last row: it must point somewhere, and is never used.
    rows = first_row[:, None] + np.minimum(columns, sizes[:, None] - 1)
    labels = np.zeros(rows.shape, np.int32)
    for i, client in enumerate(split.clients):
        labels[i, :sizes[i]] = client.train_labels
    identities = [len(c.identities) for c in split.clients]
    numbers = np.concatenate([split.public_images, *(c.train_images for c in split.clients)])
    return FederatedData(
        images=jnp.asarray(source.read(numbers)),
        public_labels=jnp.asarray(split.public_labels, jnp.int32),
        client_rows=jnp.asarray(rows, jnp.int32), client_labels=jnp.asarray(labels),
        client_sizes=jnp.asarray(sizes, jnp.int32),
        client_identities=jnp.asarray(identities, jnp.int32),
        public_identities=len(split.public_identities), most_identities=max(identities))


def verification_data(source: ImageSource, split: FederatedSplit) -> VerificationData:
    """Reads the verification images of all clients."""
    first = np.concatenate([[0], np.cumsum([len(c.identities) for c in split.clients])])
    labels = [f + c.verification_labels for f, c in zip(first[:-1], split.clients, strict=True)]
    numbers = np.concatenate([c.verification_images for c in split.clients])
    owner = np.repeat(np.arange(len(split.clients)), [len(l) for l in labels])
    return VerificationData(source.read(numbers), np.concatenate(labels), owner, first)


def initial_state(method: fedfr.Method, layout: fedfr.Layout, backbone: PyTree,
                  public_embeddings: jax.Array | None, data: FederatedData,
                  key: jax.Array) -> tuple[ServerState, Heads]:
    """Server and heads before the first round (FedFR, section 3.4).

    A class embedding starts as the mean of its identity's features, not normalized;
    the binary classifiers start as copies of them, and the transform as the identity.

    Args:
      method, layout: static.
      backbone: pretrained variables.
      public_embeddings: (K_0, d) rows of the pretrained classifier, or None for means.
      data: training images of everybody.
      key: for the random options.
    """
    return jax.jit(functools.partial(_initial_state, method, layout))(
        backbone, public_embeddings, data, key)


def _initial_state(method, layout, backbone, public_embeddings, data, key):
    features = engine.map_blocks(lambda v, x: fedfr.features(method.backbone, v, x), backbone,
                                 data.images, mesh=layout.mesh, block=layout.feature_batch)
    public = data.public_labels.shape[0]
    if public_embeddings is None:
        public_embeddings = _class_means(features[:public], data.public_labels,
                                         jnp.ones(public, bool), data.public_identities)
    heads = _initial_heads(method, backbone, features, data, key)
    return ServerState(jnp.int32(0), backbone, jnp.asarray(public_embeddings)), heads


def state_shapes(method: fedfr.Method, layout: fedfr.Layout,
                 data: FederatedData) -> tuple[ServerState, Heads]:
    """Shapes and types of :func:`initial_state`, without computing anything."""
    def start(data, key):
        return initial_state(method, layout, method.backbone.init(key), None, data, key)

    return jax.eval_shape(start, data, jax.random.key(0))


def _class_means(features, labels, mask, classes):
    """(classes, d) mean feature of each label; zero for a label without images."""
    chosen = jax.nn.one_hot(labels, classes) * mask[:, None]
    return (chosen.T @ features) / jnp.maximum(chosen.sum(0), 1)[:, None]


def _initial_heads(method, backbone, features, data, key) -> Heads:
    clients = data.client_rows.shape[0]
    most = data.most_identities
    embedding_key, transform_key = jax.random.split(key)
    exists = jnp.arange(most) < data.client_identities[:, None]
    if method.fed.class_embedding_init == "random":
        d = features.shape[1]
        embeddings = 0.01 * jax.random.normal(embedding_key, (clients, most, d))
        embeddings = embeddings * exists[..., None]
    else:
        columns = jnp.arange(data.client_rows.shape[1])
        embeddings = jax.lax.map(
            lambda c: _class_means(features[c[0]], c[1], columns < c[2], most),
            (data.client_rows, data.client_labels, data.client_sizes))
    transform = jax.vmap(lambda k: TRANSFORMS[method.fed.transform].init(k, features.shape[1]))(
        jax.random.split(transform_key, clients))
    return Heads(
        class_embeddings=embeddings, transform=transform, binary_weight=jnp.copy(embeddings),
        binary_bias=jnp.zeros((clients, most)),
        previous=jax.tree.map(lambda v: jnp.tile(v, (clients,) + (1,) * v.ndim), backbone),
        has_trained=jnp.zeros(clients, bool))
