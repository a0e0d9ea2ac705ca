"""FedFR: one round, in the words and the order of the paper.

Liu, Wang, Chien, Lai, "FedFR: Joint Optimization Federated Framework for Generic
and Personalized Face Recognition", AAAI 2022. A round is a pure function of
the server's state, the stacked heads, the data and a random key:

1. the server sends the backbone and the public class embeddings;
2. each client picks the public images that look like its own (hard negatives);
3. each client trains a copy for E epochs on its own images and those;
4. the server averages the copies, weighted by the images they were trained on;
   heads and the backbone as trained stay with the client.

Other methods are the same round with one part or another changed, as their
:class:`fedfr_jax.methods.Recipe` says; FedAvg is the one without public data, contrastive
and binary terms.
"""
from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from fedfr_jax import engine, losses
from fedfr_jax.algorithm.state import Heads, ServerState
from fedfr_jax.algorithm.transforms import TRANSFORMS
from fedfr_jax.config import FedConfig, LossConfig
from fedfr_jax.methods import METHODS, Recipe, Terms
from fedfr_jax.models import Backbone
from fedfr_jax.population.cohort_data import CohortData, PublicData

PyTree = Any
LOSS_TERMS = ("loss", "identification", "binary", "contrastive")


@dataclasses.dataclass(frozen=True)
class Method:
    """What is trained and how; static under jit.

    Attributes:
      backbone: see :class:`fedfr_jax.models.Backbone`.
      fed: rounds, local training, averaging.
      loss: weights and constants of the three terms.
      recipe: where the method differs from federated averaging.
      options: of the recipe.
    """

    backbone: Backbone
    fed: FedConfig
    loss: LossConfig
    recipe: Recipe = METHODS["fedfr"]
    options: Any = None

    @property
    def terms(self) -> Terms:
        return self.recipe.terms(self.options, self.loss)

    @property
    def uses_public(self) -> bool:
        return self.fed.public_data != "off"

    @property
    def uses_contrastive(self) -> bool:
        return self.terms.contrastive > 0

    @property
    def uses_binary(self) -> bool:
        return self.terms.binary > 0

    def stays(self, variables: PyTree) -> PyTree:
        """Pytree of bool like the backbone's variables: what a client keeps to itself."""
        if self.recipe.stays is None:
            return jax.tree.map(lambda _: False, variables)
        return self.recipe.stays(self.options, self.backbone, variables)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a round is laid out on the hardware; it does not change the result.

    Attributes:
      mesh: one axis of devices, from :func:`fedfr_jax.engine.make_mesh`.
      lanes: clients side by side on a device.
      feature_batch: images per forward pass of a frozen backbone.
      gradient_batch: images per gradient pass; a larger mini-batch is taken in parts and
        the gradients are averaged. 0: the whole mini-batch at once.
      cache_features: the features of the contrastive term are computed once per image and
        mirror and looked up in every epoch; False computes them in every step, as published.
    """

    mesh: Mesh
    lanes: int
    feature_batch: int
    gradient_batch: int = 0
    cache_features: bool = True


@struct.dataclass
class Batch:
    """A mini-batch of one client.

    Attributes:
      images: (B, S, S, 3) uint8, mirrored where the augmentation said so.
      labels: (B,) int32: local label, or K + public label.
      direction: (B, d) from :func:`fedfr_jax.losses.contrastive_direction` of the features
        under the incoming and the client's previous backbone, or None.
      weights: (B,) of the images in the identification loss, or None where all are 1.
    """

    images: jax.Array
    labels: jax.Array
    direction: jax.Array | None = None
    weights: jax.Array | None = None


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


def epochs_of_round(method: Method, round_index) -> tuple[jax.Array, jax.Array]:
    """(E, epoch from which the learning rate is decayed) of a round (FedFR, section 4.1).

    Where head and body take turns there is no decay: it would fall on the last turn alone.
    """
    fed = method.fed
    epochs = jnp.asarray(fed.local_epochs)[
        jnp.minimum(round_index, len(fed.local_epochs) - 1)]
    if method.recipe.epochs is not None:
        epochs = method.recipe.epochs(method.options, round_index, fed.rounds, epochs)
    if method.recipe.heads_turn is not None:
        return epochs, epochs
    later = jnp.maximum(1, (0.75 * epochs).astype(int))
    first = jnp.asarray((*fed.lr_decay_epochs, 0))[
        jnp.minimum(round_index, len(fed.lr_decay_epochs))]
    return epochs, jnp.where(round_index < len(fed.lr_decay_epochs), first, later)


def starting_backbone(method: Method, server: ServerState, head: Heads) -> PyTree:
    """Variables that a client starts a round with: the server's, and its own where they stay."""
    def choose(stays, received, own):
        return jnp.where(head.has_trained, own.astype(jnp.float32), received) if stays else received

    if method.recipe.stays is None:
        return server.backbone
    return jax.tree.map(choose, method.stays(server.backbone), server.backbone, head.previous)


def initial_trained(method: Method, server: ServerState, head: Heads) -> PyTree:
    """The tensors that a client trains; parts that are switched off are not decayed either."""
    trained = {"backbone": starting_backbone(method, server, head)["params"],
               "class_embeddings": head.class_embeddings}
    if method.uses_public:
        trained["public_embeddings"] = server.public_embeddings
    if method.uses_binary:
        trained.update(transform=head.transform, binary_weight=head.binary_weight,
                       binary_bias=head.binary_bias)
    return trained


def local_loss(method: Method, trained: PyTree, batch_stats: PyTree, batch: Batch,
               local_mask, has_previous, penalty=None):
    """``L = L_cos + mu L_con + beta L_bin`` of one mini-batch (FedFR, equation 6).

    Args:
      trained: from :func:`initial_trained`, or later.
      batch_stats: running statistics.
      local_mask: (K,) bool, which head rows exist.
      has_previous: bool scalar; False switches the contrastive term off.
      penalty: maps the backbone's parameters to a scalar that some methods add, or None.

    Returns:
      (loss, (terms (4,) as in ``LOSS_TERMS``, new batch_stats)).
    """
    loss, terms = method.loss, method.terms
    variables = {"params": trained["backbone"], "batch_stats": batch_stats}
    f, new_stats = method.backbone.apply(variables, to_input(batch.images), True)
    classes, mask = trained["class_embeddings"], local_mask
    if method.uses_public:
        classes = jnp.concatenate([classes, trained["public_embeddings"]])
        mask = jnp.concatenate([mask, jnp.ones(len(classes) - len(mask), bool)])
    identification = losses.margin_loss(
        f, classes, batch.labels, kind=loss.identification, scale=loss.scale, margin=loss.margin,
        class_mask=mask, weights=batch.weights)
    contrastive = binary = jnp.float32(0)
    if method.uses_contrastive:
        contrastive = has_previous * losses.contrastive_loss(
            f, batch.direction, temperature=terms.temperature)
    if method.uses_binary:
        source = jax.lax.stop_gradient(f) if loss.binary_detached else f
        personal = TRANSFORMS[method.fed.transform].apply(trained["transform"], source)
        binary = losses.binary_loss(
            personal, trained["binary_weight"], trained["binary_bias"], batch.labels,
            scale=loss.binary_scale, margin=loss.binary_margin, balance=loss.binary_balance,
            power=loss.binary_power, class_mask=local_mask)
    total = identification + terms.contrastive * contrastive + terms.binary * binary
    if penalty is not None:
        total += penalty(trained["backbone"])
    return total, (jnp.stack([total, identification, binary, contrastive]), new_stats)


def local_gradient(method: Method, trained: PyTree, batch_stats: PyTree, batch: Batch,
                   local_mask, has_previous, part: int = 0, penalty=None):
    """(gradient, (terms, new batch_stats)) of :func:`local_loss`.

    Args:
      part: images per pass, a divisor of the mini-batch, for networks without batch norm:
        the loss is a mean over images, so the parts' gradients are averaged. 0: all at once.
      Others as in :func:`local_loss`.
    """
    def one_part(batch):
        return jax.grad(lambda t: local_loss(method, t, batch_stats, batch, local_mask,
                                             has_previous, penalty), has_aux=True)(trained)

    parts = len(batch.labels) // part if part else 1
    if parts <= 1:
        return one_part(batch)

    def fold(x):
        return x.reshape(parts, -1, *x.shape[1:])

    def add(i, total):
        gradient, (terms, _) = one_part(jax.tree.map(lambda x: x[i], folded))
        return jax.tree.map(jnp.add, total, (gradient, terms))

    folded = jax.tree.map(fold, batch)
    zero = jax.tree.map(jnp.zeros_like, (trained, jnp.zeros(len(LOSS_TERMS))))
    gradient, terms = jax.tree.map(lambda x: x / parts, jax.lax.fori_loop(0, parts, add, zero))
    return gradient, (terms, batch_stats)


def local_step(method: Method, state: LocalState, batch: Batch, lr, local_mask,
               has_previous, part: int = 0, penalty=None) -> LocalState:
    """One SGD step: weight decay is added to the gradient, then momentum, then the rate."""
    gradient, (terms, batch_stats) = local_gradient(
        method, state.trained, state.batch_stats, batch, local_mask, has_previous, part, penalty)
    fed = method.fed
    optimizer = optax.chain(optax.add_decayed_weights(fed.weight_decay),
                            optax.trace(fed.momentum))
    # The rate is applied here and not in the chain: it changes within the round, and
    # PyTorch's SGD, like this, keeps it out of the velocity.
    velocity, (_, trace) = optimizer.update(
        gradient, (optax.EmptyState(), optax.TraceState(state.momentum)), state.trained)
    trained = jax.tree.map(lambda p, v: p - lr * v, state.trained, velocity)
    return LocalState(trained, batch_stats, trace.trace, state.loss_sum + terms)


def freeze(method: Method, heads_turn, old: LocalState, new: LocalState) -> LocalState:
    """Undoes a step for the tensors whose turn it is not (``Recipe.heads_turn``).

    Args:
      heads_turn: bool scalar; True trains the head, False the shared part.
    """
    stays = method.stays({"params": old.trained["backbone"], "batch_stats": old.batch_stats})
    is_head = {k: k != "public_embeddings" for k in old.trained} | {"backbone": stays["params"]}

    def choose(head, new, old):
        return jax.tree.map(lambda n, o: jnp.where(heads_turn == head, n, o), new, old)

    return LocalState(
        jax.tree.map(choose, is_head, new.trained, old.trained),
        jax.tree.map(choose, stays["batch_stats"], new.batch_stats, old.batch_stats),
        jax.tree.map(choose, is_head, new.momentum, old.momentum), new.loss_sum)


@struct.dataclass
class _Shared:
    """What every client reads in a round."""

    server: ServerState
    public: PublicData
    table: jax.Array | None  # training images, where they lie on every device
    key: jax.Array


@struct.dataclass
class _Device:
    """The list of a device's training images: themselves, or their rows in the table."""

    images: jax.Array | None
    table_rows: jax.Array | None


@struct.dataclass
class _Client:
    """One client's row of the cohort."""

    number: jax.Array  # in the population
    rows: jax.Array
    labels: jax.Array
    size: jax.Array
    identities: jax.Array
    kept_public: jax.Array  # (N_0,) bool, or (0,) without public data


@struct.dataclass
class Pool:
    """A client's own images and all public ones, P = M + N_0 entries, many not for use.

    Attributes:
      labels: (P,) int32: local label, or K + public label.
      valid: (P,) bool, which entries the client trains on.
      images: maps (B,) positions in the pool to (B, S, S, 3) uint8 images.
    """

    labels: jax.Array
    valid: jax.Array
    images: Any = struct.field(pytree_node=False)


def _own_images(shared: _Shared, device: _Device, positions):
    if shared.table is not None:
        return shared.table[device.table_rows[positions]]
    return device.images[positions]


def _pool(shared: _Shared, device: _Device, client: _Client, most_identities: int) -> Pool:
    own, public = client.rows.shape[0], client.kept_public.shape[0]

    def images(positions):
        local = _own_images(shared, device, client.rows[jnp.minimum(positions, own - 1)])
        if not public:
            return local
        other = shared.public.images[jnp.maximum(positions - own, 0)]
        return jnp.where((positions < own)[:, None, None, None], local, other)

    labels = jnp.concatenate([client.labels, most_identities + shared.public.labels[:public]])
    valid = jnp.concatenate([jnp.arange(own) < client.size, client.kept_public])
    return Pool(labels, valid, images)


def epoch_order(key, valid):
    """A random order of the valid entries of the pool; the invalid ones come last.

    Args:
      valid: (P,) bool.

    Returns:
      (P,) int32 positions.
    """
    return jnp.argsort(jnp.where(valid, jax.random.uniform(key, valid.shape), jnp.inf))


def _direction(method: Method, server: ServerState, head: Heads, images):
    """(B, d) direction of the contrastive term for uint8 images."""
    previous = jax.tree.map(lambda v: v.astype(jnp.float32), head.previous)
    return losses.contrastive_direction(features(method.backbone, server.backbone, images),
                                        features(method.backbone, previous, images))


def _directions(method: Method, layout: Layout, lane, shared: _Shared, head: Heads,
                pool: Pool, flips, epochs):
    """(V, P, d): :func:`_direction` of the views that some epoch will show, once per round.

    Args:
      flips: maps an epoch to (P,) bool, which images it mirrors.

    V = 2 with mirrors and 1 without.
    """
    count, views = len(pool.labels), 2 if method.fed.mirror else 1

    def see(epoch, seen):
        flip = flips(epoch)
        return seen | jnp.stack([~flip, flip])[:views]

    seen = jax.lax.fori_loop(0, epochs, see, jnp.zeros((views, count), bool)) & pool.valid
    block = min(layout.feature_batch, views * count)
    first = jnp.argsort(~seen.reshape(-1))  # stable: what is needed comes first, in order
    first = jnp.pad(first, (0, -len(first) % block), mode="edge")
    blocks = jnp.where(head.has_trained, -(-seen.sum() // block), 0)

    def one_block(i, table):
        entries = jax.lax.dynamic_slice_in_dim(first, i * block, block)
        images = pool.images(entries % count)
        images = jnp.where((entries >= count)[:, None, None, None], mirror(images), images)
        return table.at[entries].set(_direction(method, shared.server, head, images))

    table = jnp.zeros((views * count, method.backbone.embedding))
    return lane.repeat(blocks, one_block, table).reshape(views, count, -1)


def local_update(method: Method, layout: Layout, lane, shared: _Shared, device: _Device,
                 client: _Client, head: Heads):
    """Steps 2-4 of a round for one client; the contract is the engine's."""
    fed = method.fed
    pool = _pool(shared, device, client, head.class_embeddings.shape[0])
    size = pool.valid.sum()
    local_mask = jnp.arange(head.class_embeddings.shape[0]) < client.identities
    epochs, decay_epoch = epochs_of_round(method, shared.server.round)
    steps = size // fed.batch_size
    key = jax.random.fold_in(jax.random.fold_in(shared.key, shared.server.round), client.number)

    def keys(epoch):
        return jax.random.split(jax.random.fold_in(key, epoch))

    def flips(epoch):
        return jax.random.bernoulli(keys(epoch)[1], 0.5 if fed.mirror else 0.0, pool.valid.shape)

    directions = (_directions(method, layout, lane, shared, head, pool, flips, epochs)
                  if method.uses_contrastive and layout.cache_features else None)

    classes = head.class_embeddings.shape[0] + shared.public.identities
    weights = (losses.class_weights(pool.labels, pool.valid, classes)
               if method.loss.balanced else None)

    def batch_at(order, flip, step):
        chosen = jax.lax.dynamic_slice_in_dim(order, step * fed.batch_size, fed.batch_size)
        flip = flip[chosen]
        images = pool.images(chosen)
        images = jnp.where(flip[:, None, None, None], mirror(images), images)
        direction = None
        if directions is not None:
            direction = directions[flip.astype(int) if fed.mirror else 0, chosen]
        elif method.uses_contrastive:
            direction = _direction(method, shared.server, head, images)
        return Batch(images, pool.labels[chosen], direction,
                     None if weights is None else weights[chosen])

    def train(start: LocalState, penalty) -> LocalState:
        if penalty is not None:
            penalty = functools.partial(penalty, method.options,
                                        received=shared.server.backbone["params"])

        def one_epoch(epoch, state):
            order, flip = epoch_order(keys(epoch)[0], pool.valid), flips(epoch)
            lr = fed.lr * jnp.where(epoch < decay_epoch, 1.0, fed.lr_decay)

            def one_step(step, state):
                new = local_step(method, state, batch_at(order, flip, step), lr, local_mask,
                                 head.has_trained, layout.gradient_batch, penalty)
                if method.recipe.heads_turn is None:
                    return new
                turn = method.recipe.heads_turn(method.options, epoch, epochs)
                return freeze(method, turn, state, new)

            return lane.repeat(steps, one_step, state)

        return lane.repeat(epochs, one_epoch, start)

    state = train(initial_state(method, shared.server, head), method.recipe.penalty)
    copy = None
    if method.recipe.copy_penalty is not None:
        copy = train(initial_copy(method, shared.server, head), method.recipe.copy_penalty)
    return _upload(method, shared, client, head, state, copy, size, epochs * steps)


def initial_state(method: Method, server: ServerState, head: Heads) -> LocalState:
    """A client before its first step of a round."""
    trained = initial_trained(method, server, head)
    return LocalState(trained, starting_backbone(method, server, head)["batch_stats"],
                      jax.tree.map(jnp.zeros_like, trained), jnp.zeros(len(LOSS_TERMS)))


def initial_copy(method: Method, server: ServerState, head: Heads) -> LocalState:
    """The personal copy before its first step: as the client left it (``Recipe.copy_penalty``)."""
    own = jax.tree.map(lambda v, s: jnp.where(head.has_trained, v.astype(jnp.float32), s),
                       head.previous, server.backbone)
    return initial_state(method, server.replace(backbone=own),
                         head.replace(class_embeddings=head.copy_embeddings))


def _upload(method: Method, shared: _Shared, client: _Client, head: Heads, state: LocalState,
            copy: LocalState | None, size, steps):
    """Divides a trained client into what is averaged, its weight, and what it keeps.

    What stays with the client is zero in what it sends, of no size.
    """
    trained = state.trained
    backbone = {"params": trained["backbone"], "batch_stats": state.batch_stats}
    sent = {"backbone": jax.tree.map(lambda stays, v: jnp.float32(0) if stays else v,
                                     method.stays(backbone), backbone),
            "public_embeddings": trained.get("public_embeddings",
                                             shared.server.public_embeddings)}
    previous = head.previous
    if previous is not None:
        own = backbone if copy is None else {"params": copy.trained["backbone"],
                                             "batch_stats": copy.batch_stats}
        previous = jax.tree.map(lambda new, old: new.astype(old.dtype), own, previous)
    kept = Heads(
        class_embeddings=trained["class_embeddings"],
        copy_embeddings=None if copy is None else copy.trained["class_embeddings"],
        transform=trained.get("transform", head.transform),
        binary_weight=trained.get("binary_weight", head.binary_weight),
        binary_bias=trained.get("binary_bias", head.binary_bias),
        previous=previous, has_trained=jnp.array(True))
    metrics = dict(zip(LOSS_TERMS, state.loss_sum / jnp.maximum(steps, 1), strict=True),
                   hard_negatives=client.kept_public.sum(), images=size, steps=steps)
    weight = size if method.fed.aggregation == "images" else jnp.ones_like(size)
    return sent, weight, kept, metrics


def list_features(backbone: Backbone, variables: PyTree, shared: _Shared, device: _Device, used,
                  block: int):
    """(R, d) features of a device's list of images; those after ``used`` mean nothing."""
    size = len(device.images if shared.table is None else device.table_rows)
    return engine.loop_blocks(
        lambda p: features(backbone, variables, _own_images(shared, device, p)),
        jnp.arange(size), used, block=block)


def public_features(method: Method, layout: Layout, variables: PyTree, public: PublicData):
    """(N_0, d) features of the public images, computed by all devices together."""
    return engine.map_blocks(
        lambda s, p: features(method.backbone, s[0], s[1][p]), (variables, public.images),
        len(public.labels), mesh=layout.mesh, block=layout.feature_batch)


def _kept_public(method: Method, layout: Layout, shared: _Shared, device: _Device,
                 cohort: CohortData):
    """(C, N_0) bool: the public images that each client trains on this round."""
    slots, public = len(cohort.sizes), len(shared.public.labels)
    exists = cohort.sizes > 0
    if not method.uses_public:
        return jnp.zeros((slots, 0), bool)
    if method.fed.public_data == "all":
        return jnp.broadcast_to(exists[:, None], (slots, public))
    others = public_features(method, layout, shared.server.backbone, shared.public)

    def on_one_device(shared, device):
        shared, others = shared
        device, used, rows, sizes = device
        own = list_features(method.backbone, shared.server.backbone, shared, device, used[0],
                            layout.feature_batch)

        def one_client(client):
            rows, size = client
            return hard_negatives(own[rows], jnp.arange(len(rows)) < size, others,
                                  threshold=method.fed.hard_threshold)

        return jax.lax.map(one_client, (rows, sizes))

    return engine.on_each_device(
        on_one_device, (shared, others),
        (device, cohort.used, cohort.rows, cohort.sizes), mesh=layout.mesh)


def where_images_are(server, public: PublicData, cohort: CohortData, key):
    """(what all devices share, what each device has)."""
    in_table = cohort.table_rows is not None
    return (_Shared(server, public, cohort.images if in_table else None, key),
            _Device(None if in_table else cohort.images, cohort.table_rows))


def run_round(method: Method, layout: Layout, server: ServerState, heads: Heads,
              public: PublicData, cohort: CohortData, key
              ) -> tuple[ServerState, Heads, dict[str, jax.Array]]:
    """One federated round (FedFR, algorithm 1).

    Args:
      method, layout: static; close over them before ``jax.jit``.
      server, heads: current state; donate both. ``heads`` are those of the cohort.
      public, cohort: who trains on what.
      key: the run's key; round, client and epoch are folded in here.

    Returns:
      (server state with ``round`` + 1, heads, metrics): metrics are (C,) arrays of
      loss terms (means over the client's steps), ``hard_negatives``, ``images``, ``steps``;
      zero for an empty slot. Without any client the server's model stays as it is.
    """
    shared, device = where_images_are(server, public, cohort, key)
    kept_public = _kept_public(method, layout, shared, device, cohort)
    clients = _Client(number=cohort.clients, rows=cohort.rows, labels=cohort.labels,
                      size=cohort.sizes, identities=cohort.identities, kept_public=kept_public)
    steps = (cohort.sizes + kept_public.sum(1)) // method.fed.batch_size
    average, weight, new_heads, metrics = engine.for_each_client(
        lambda *args: local_update(method, layout, *args), shared, device, clients, heads,
        steps, cohort.clients >= 0, mesh=layout.mesh, lanes=layout.lanes)
    if method.recipe.server_embeddings is not None:
        new_heads = new_heads.replace(class_embeddings=_embeddings_at_server(
            method, new_heads.class_embeddings, cohort))
    return update_server(method, server, average, weight), new_heads, metrics


def _embeddings_at_server(method: Method, embeddings, cohort: CohortData):
    """(C, K, d) class embeddings after the server has seen them all together."""
    exists = jnp.arange(embeddings.shape[1]) < cohort.identities[:, None]
    rows = method.recipe.server_embeddings(
        method.options, embeddings.reshape(-1, embeddings.shape[-1]), exists.reshape(-1))
    return jnp.where(exists[..., None], rows.reshape(embeddings.shape), embeddings)


def server_optimizer(fed: FedConfig) -> optax.GradientTransformation | None:
    """What turns the average into a step of the server; None: the average is taken as it is."""
    if fed.server_optimizer == "momentum":
        return optax.sgd(fed.server_lr or 1.0, momentum=fed.server_momentum)
    if fed.server_optimizer == "adam":
        return optax.adam(fed.server_lr or 1e-3, fed.server_momentum, fed.server_beta2,
                          fed.server_epsilon)
    return None


def server_trained(backbone: PyTree, public_embeddings) -> PyTree:
    """What a server optimizer moves; running statistics are averaged."""
    return {"params": backbone["params"], "public_embeddings": public_embeddings}


def update_server(method: Method, server: ServerState, average: PyTree, weight) -> ServerState:
    """The server after a round (FedFR, equation 1; with an optimizer, Reddi et al., ICLR 2021).

    Args:
      average: ``{"backbone", "public_embeddings"}``, averaged over clients.
      weight: scalar; 0 if there was no client, and the model stays as it is.
    """
    takes = weight > 0
    if method.recipe.averages is not None:
        takes &= method.recipe.averages(method.options, server.round, method.fed.rounds)
    backbone = jax.tree.map(lambda stays, a, old: old if stays else a,
                            method.stays(server.backbone), average["backbone"], server.backbone)
    public, state = average["public_embeddings"], server.optimizer
    optimizer = server_optimizer(method.fed)
    if optimizer is not None:
        old = server_trained(server.backbone, server.public_embeddings)
        difference = jax.tree.map(jnp.subtract, old, server_trained(backbone, public))
        step, state = optimizer.update(difference, server.optimizer, old)
        moved = optax.apply_updates(old, step)
        backbone, public = dict(backbone, params=moved["params"]), moved["public_embeddings"]
    new = ServerState(server.round, backbone, public, state)
    new = jax.tree.map(lambda n, o: jnp.where(takes, n, o), new, server)
    return new.replace(round=server.round + 1)


def personal_features(method: Method, backbone: PyTree, transform: PyTree, images) -> jax.Array:
    """Features under a client's personalized model, transform after its own backbone.

    Args:
      backbone: variables of the client's backbone, as trained and not averaged.
      transform: the client's DFC transform.
      images: (B, S, S, 3) uint8.

    Returns:
      (B, d).
    """
    f = features(method.backbone, backbone, images)
    return TRANSFORMS[method.fed.transform].apply(transform, f) if method.uses_binary else f
