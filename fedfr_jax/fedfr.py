"""FedFR: one round, in the words and the order of the paper.

Liu, Wang, Chien, Lai, "FedFR: Joint Optimization Federated Framework for Generic
and Personalized Face Recognition", AAAI 2022. A round is a pure function of
the server's state, the stacked heads, the data and a random key:

1. the server sends the backbone and the public class embeddings;
2. each client picks the public images that look like its own (hard negatives);
3. each client trains a copy for E epochs on its own images and those;
4. the server averages the copies, weighted by the images they were trained on;
   heads and the backbone as trained stay with the client.

FedAvg is the same round without public data, contrastive and binary terms.
"""
from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from fedfr_jax import engine, losses
from fedfr_jax.config import FedConfig, LossConfig
from fedfr_jax.models import Backbone
from fedfr_jax.state import FederatedData, Heads, ServerState
from fedfr_jax.transforms import TRANSFORMS

PyTree = Any
LOSS_TERMS = ("loss", "cosface", "binary", "contrastive")


@dataclasses.dataclass(frozen=True)
class Method:
    """What is trained and how; static under jit.

    Attributes:
      backbone: see :class:`fedfr_jax.models.Backbone`.
      fed: rounds, local training, averaging.
      loss: weights and constants of the three terms.
    """

    backbone: Backbone
    fed: FedConfig
    loss: LossConfig

    @property
    def uses_public(self) -> bool:
        return self.fed.public_data != "off"

    @property
    def uses_contrastive(self) -> bool:
        return self.loss.contrastive_weight > 0

    @property
    def uses_binary(self) -> bool:
        return self.loss.binary_weight > 0


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a round is laid out on the hardware; it does not change the result.

    Attributes:
      mesh: one axis of devices, from :func:`fedfr_jax.engine.make_mesh`.
      lanes: clients side by side on a device.
      feature_batch: images per forward pass of a frozen backbone.
    """

    mesh: Mesh
    lanes: int
    feature_batch: int


@struct.dataclass
class Batch:
    """A mini-batch of one client.

    Attributes:
      images: (B, S, S, 3) uint8, mirrored where the augmentation said so.
      labels: (B,) int32: local label, or K + public label.
      global_features: (B, d) under the incoming backbone, or None.
      previous_features: (B, d) under the client's previous backbone, or None.
    """

    images: jax.Array
    labels: jax.Array
    global_features: jax.Array | None = None
    previous_features: jax.Array | None = None


@struct.dataclass
class LocalState:
    """A client in training: what the optimizer moves, and what follows.

    Attributes:
      trained: dict of trained tensors.
      batch_stats: running statistics of the backbone.
      momentum: velocities, like ``trained``.
      loss_sum: (4,) sums over steps of ``LOSS_TERMS``.
    """

    trained: PyTree
    batch_stats: PyTree
    momentum: PyTree
    loss_sum: jax.Array


def to_input(images):
    """uint8 RGB -> float32 in [-1, 1], ``(x / 255 - 0.5) / 0.5``."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def mirror(images):
    """Flips (..., H, W, 3) images horizontally."""
    return images[..., ::-1, :]


def features(backbone: Backbone, variables: PyTree, images) -> jax.Array:
    """(B, d) features of uint8 images under a frozen backbone."""
    return backbone.apply(variables, to_input(images), False)[0]


def frozen_features(method: Method, variables: PyTree, images) -> jax.Array:
    """Features of images and, where training mirrors them, of their mirrors.

    Args:
      images: (B, S, S, 3) uint8.

    Returns:
      (B, V, d), V = 2 with mirrors and 1 without.
    """
    views = [images, mirror(images)] if method.uses_contrastive and method.fed.mirror else [images]
    return jnp.stack([features(method.backbone, variables, v) for v in views], axis=1)


def hard_negatives(local_features, local_mask, public_features, *, threshold: float,
                   block: int = 4096):
    """Public images that any local image resembles (FedFR, section 3.2).

    Args:
      local_features: (M, d), local_mask: (M,) bool, False for padding.
      public_features: (N_0, d).
      threshold: cosine above which a public image is kept.
      block: public images compared at once; bounds memory.

    Returns:
      (N_0,) bool.
    """
    local = losses.normalize(local_features)

    def resembles(public):
        return jnp.any((local @ public > threshold) & local_mask)

    return jax.lax.map(resembles, losses.normalize(public_features), batch_size=block)


def epochs_of_round(fed: FedConfig, round_index) -> tuple[jax.Array, jax.Array]:
    """(E, epoch from which the learning rate is decayed) of a round (FedFR, section 4.1)."""
    epochs = jnp.asarray(fed.local_epochs)[
        jnp.minimum(round_index, len(fed.local_epochs) - 1)]
    later = jnp.maximum(1, (0.75 * epochs).astype(int))
    first = jnp.asarray((*fed.lr_decay_epochs, 0))[
        jnp.minimum(round_index, len(fed.lr_decay_epochs))]
    return epochs, jnp.where(round_index < len(fed.lr_decay_epochs), first, later)


def initial_trained(method: Method, server: ServerState, head: Heads) -> PyTree:
    """The tensors that a client trains; parts that are switched off are not decayed either."""
    trained = {"backbone": server.backbone["params"], "class_embeddings": head.class_embeddings}
    if method.uses_public:
        trained["public_embeddings"] = server.public_embeddings
    if method.uses_binary:
        trained.update(transform=head.transform, binary_weight=head.binary_weight,
                       binary_bias=head.binary_bias)
    return trained


def local_loss(method: Method, trained: PyTree, batch_stats: PyTree, batch: Batch,
               local_mask, has_previous):
    """``L = L_cos + mu L_con + beta L_bin`` of one mini-batch (FedFR, equation 6).

    Args:
      trained: from :func:`initial_trained`, or later.
      batch_stats: running statistics.
      local_mask: (K,) bool, which head rows exist.
      has_previous: bool scalar; False switches the contrastive term off.

    Returns:
      (loss, (terms (4,) as in ``LOSS_TERMS``, new batch_stats)).
    """
    loss = method.loss
    variables = {"params": trained["backbone"], "batch_stats": batch_stats}
    f, new_stats = method.backbone.apply(variables, to_input(batch.images), True)
    classes, mask = trained["class_embeddings"], local_mask
    if method.uses_public:
        classes = jnp.concatenate([classes, trained["public_embeddings"]])
        mask = jnp.concatenate([mask, jnp.ones(len(classes) - len(mask), bool)])
    cosface = losses.cosface_loss(f, classes, batch.labels, scale=loss.scale,
                                  margin=loss.margin, class_mask=mask)
    contrastive = binary = jnp.float32(0)
    if method.uses_contrastive:
        contrastive = has_previous * losses.contrastive_loss(
            f, batch.global_features, batch.previous_features, temperature=loss.temperature)
    if method.uses_binary:
        source = jax.lax.stop_gradient(f) if loss.binary_detached else f
        personal = TRANSFORMS[method.fed.transform].apply(trained["transform"], source)
        binary = losses.binary_loss(
            personal, trained["binary_weight"], trained["binary_bias"], batch.labels,
            scale=loss.binary_scale, margin=loss.binary_margin, balance=loss.binary_balance,
            power=loss.binary_power, class_mask=local_mask)
    total = cosface + loss.contrastive_weight * contrastive + loss.binary_weight * binary
    return total, (jnp.stack([total, cosface, binary, contrastive]), new_stats)


def local_step(method: Method, state: LocalState, batch: Batch, lr, local_mask,
               has_previous) -> LocalState:
    """One SGD step: weight decay is added to the gradient, then momentum, then the rate."""
    gradient, (terms, batch_stats) = jax.grad(
        lambda t: local_loss(method, t, state.batch_stats, batch, local_mask, has_previous),
        has_aux=True)(state.trained)
    fed = method.fed
    optimizer = optax.chain(optax.add_decayed_weights(fed.weight_decay),
                            optax.trace(fed.momentum))
    # The rate is applied here and not in the chain: it changes within the round, and
    # PyTorch's SGD, like this, keeps it out of the velocity.
    velocity, (_, trace) = optimizer.update(
        gradient, (optax.EmptyState(), optax.TraceState(state.momentum)), state.trained)
    trained = jax.tree.map(lambda p, v: p - lr * v, state.trained, velocity)
    return LocalState(trained, batch_stats, trace.trace, state.loss_sum + terms)


@struct.dataclass
class _Shared:
    """What every client reads in a round."""

    server: ServerState
    data: FederatedData
    global_features: jax.Array | None  # (N, V, d)
    key: jax.Array


@struct.dataclass
class _Client:
    """One client's row of everything."""

    index: jax.Array
    head: Heads
    rows: jax.Array
    labels: jax.Array
    size: jax.Array
    identities: jax.Array
    kept_public: jax.Array  # (N_0,) bool, or (0,) without public data


def epoch_order(key, valid):
    """A random order of the valid entries of the pool; the invalid ones come last.

    Args:
      valid: (P,) bool.

    Returns:
      (P,) int32 positions.
    """
    return jnp.argsort(jnp.where(valid, jax.random.uniform(key, valid.shape), jnp.inf))


def _pool(shared: _Shared, client: _Client):
    """Rows, labels and validity of a client's own images and all public ones, (P,) each."""
    public = client.kept_public.shape[0]
    own = jnp.arange(client.rows.shape[0]) < client.size
    offset = client.head.class_embeddings.shape[0]
    return (jnp.concatenate([client.rows, jnp.arange(public, dtype=client.rows.dtype)]),
            jnp.concatenate([client.labels, offset + shared.data.public_labels[:public]]),
            jnp.concatenate([own, client.kept_public]))


def _previous_features(method: Method, layout: Layout, lane, shared: _Shared, client: _Client,
                       rows, valid):
    """(P, V, d) features of the pool under the client's previous backbone, once per round."""
    block = min(layout.feature_batch, valid.shape[0])
    first = jnp.argsort(~valid)  # stable: the valid positions, in order, come first
    blocks = jnp.where(client.head.has_trained, -(-valid.sum() // block), 0)

    def one_block(i, table):
        positions = jax.lax.dynamic_slice_in_dim(first, i * block, block)
        images = shared.data.images[rows[positions]]
        return table.at[positions].set(
            frozen_features(method, client.head.previous, images))

    views, d = shared.global_features.shape[1:]
    return lane.repeat(blocks, one_block, jnp.zeros((valid.shape[0], views, d)))


def local_update(method: Method, layout: Layout, lane, shared: _Shared, client: _Client):
    """Steps 2-4 of a round for one client; the contract is the engine's."""
    fed, head = method.fed, client.head
    rows, labels, valid = _pool(shared, client)
    size = valid.sum()
    previous = (_previous_features(method, layout, lane, shared, client, rows, valid)
                if method.uses_contrastive else None)
    local_mask = jnp.arange(head.class_embeddings.shape[0]) < client.identities
    epochs, decay_epoch = epochs_of_round(fed, shared.server.round)
    steps = size // fed.batch_size
    key = jax.random.fold_in(jax.random.fold_in(shared.key, shared.server.round), client.index)

    def batch_at(order, step, flips):
        chosen = jax.lax.dynamic_slice_in_dim(order, step * fed.batch_size, fed.batch_size)
        flip = flips[chosen]
        images = shared.data.images[rows[chosen]]
        images = jnp.where(flip[:, None, None, None], mirror(images), images)
        if not method.uses_contrastive:
            return Batch(images, labels[chosen])
        return Batch(images, labels[chosen], shared.global_features[rows[chosen], flip.astype(int)],
                     previous[chosen, flip.astype(int)])

    def one_epoch(epoch, state):
        shuffle_key, flip_key = jax.random.split(jax.random.fold_in(key, epoch))
        order = epoch_order(shuffle_key, valid)
        flips = jax.random.bernoulli(flip_key, 0.5 if fed.mirror else 0.0, valid.shape)
        lr = fed.lr * jnp.where(epoch < decay_epoch, 1.0, fed.lr_decay)

        def one_step(step, state):
            return local_step(method, state, batch_at(order, step, flips), lr,
                              local_mask, head.has_trained)

        return lane.repeat(steps, one_step, state)

    trained = initial_trained(method, shared.server, head)
    state = LocalState(trained, shared.server.backbone["batch_stats"],
                       jax.tree.map(jnp.zeros_like, trained), jnp.zeros(len(LOSS_TERMS)))
    state = lane.repeat(epochs, one_epoch, state)
    return _upload(method, shared, client, state, size, epochs * steps)


def _upload(method: Method, shared: _Shared, client: _Client, state: LocalState, size, steps):
    """Divides a trained client into what is averaged, its weight, and what it keeps."""
    head, trained = client.head, state.trained
    backbone = {"params": trained["backbone"], "batch_stats": state.batch_stats}
    sent = {"backbone": backbone,
            "public_embeddings": trained.get("public_embeddings",
                                             shared.server.public_embeddings)}
    kept = Heads(
        class_embeddings=trained["class_embeddings"],
        transform=trained.get("transform", head.transform),
        binary_weight=trained.get("binary_weight", head.binary_weight),
        binary_bias=trained.get("binary_bias", head.binary_bias),
        previous=backbone, has_trained=jnp.array(True))
    metrics = dict(zip(LOSS_TERMS, state.loss_sum / jnp.maximum(steps, 1), strict=True),
                   hard_negatives=client.kept_public.sum(), images=size, steps=steps)
    weight = size if method.fed.aggregation == "images" else jnp.ones_like(size)
    return sent, weight, (kept, metrics)


def _kept_public(method: Method, layout: Layout, data: FederatedData, global_features):
    """(C, N_0) bool: the public images that each client trains on this round."""
    clients, public = data.client_rows.shape[0], data.public_labels.shape[0]
    if not method.uses_public:
        return jnp.zeros((clients, 0), bool)
    if method.fed.public_data == "all":
        return jnp.ones((clients, public), bool)
    unflipped = global_features[:, 0]

    def one_client(table, client):
        rows, size = client
        mask = jnp.arange(rows.shape[1]) < size[:, None]
        return jax.vmap(lambda r, m: hard_negatives(
            table[r], m, table[:public], threshold=method.fed.hard_threshold))(rows, mask)

    return engine.map_blocks(one_client, unflipped, (data.client_rows, data.client_sizes),
                             mesh=layout.mesh, block=1)


def run_round(method: Method, layout: Layout, server: ServerState, heads: Heads,
              data: FederatedData, key) -> tuple[ServerState, Heads, PyTree]:
    """One federated round with all clients (FedFR, algorithm 1).

    Args:
      method, layout: static; close over them before ``jax.jit``.
      server, heads: current state; donate both.
      data: who holds what.
      key: the run's key; round, client and epoch are folded in here.

    Returns:
      (server state with ``round`` + 1, heads, metrics): metrics are (C,) arrays of
      loss terms (means over the client's steps), ``hard_negatives``, ``images``, ``steps``.
    """
    needs_table = method.uses_contrastive or method.fed.public_data == "hard"
    table = engine.map_blocks(
        lambda variables, images: frozen_features(method, variables, images),
        server.backbone, data.images, mesh=layout.mesh,
        block=layout.feature_batch) if needs_table else None
    kept_public = _kept_public(method, layout, data, table)
    count = data.client_rows.shape[0]
    clients = _Client(index=jnp.arange(count), head=heads, rows=data.client_rows,
                      labels=data.client_labels, size=data.client_sizes,
                      identities=data.client_identities, kept_public=kept_public)
    work = (data.client_sizes + kept_public.sum(1)) // method.fed.batch_size
    average, _, (new_heads, metrics) = engine.for_each_client(
        lambda lane, shared, client: local_update(method, layout, lane, shared, client),
        _Shared(server, data, table, key), clients, work, mesh=layout.mesh, lanes=layout.lanes)
    server = ServerState(server.round + 1, average["backbone"], average["public_embeddings"])
    return server, new_heads, metrics


def personal_features(method: Method, previous: PyTree, transform: PyTree, images) -> jax.Array:
    """Features under a client's personalized model, transform after its own backbone.

    Args:
      previous: variables of the client's backbone, as trained and not averaged.
      transform: the client's DFC transform.
      images: (B, S, S, 3) uint8.

    Returns:
      (B, d).
    """
    f = features(method.backbone, previous, images)
    return TRANSFORMS[method.fed.transform].apply(transform, f) if method.uses_binary else f
