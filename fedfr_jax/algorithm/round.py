"""FedFR on one page, in the words and the order of the paper.

Liu, Wang, Chien, Lai, "FedFR: Joint Optimization Federated Framework for Generic and Personalized
Face Recognition", AAAI 2022. A round is a pure function of server, heads, data and a random key:

1. the server sends the backbone and the public class embeddings;
2. each client picks the public images that look like its own (hard negatives);
3. each client trains a copy for E epochs on its own images and those;
4. the server averages the copies, weighted by the images they were trained on;
   the heads and the trained backbone stay with the client.

Other methods are this round with parts changed by their :class:`fedfr_jax.methods.Recipe`;
FedAvg is this round without public data, contrastive term and binary term.
"""
from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fedfr_jax import engine
from fedfr_jax.algorithm import local_state, losses
from fedfr_jax.algorithm.aggregate import combine
from fedfr_jax.algorithm.arrivals import arrivals
from fedfr_jax.algorithm.directions import contrastive_directions
from fedfr_jax.algorithm.features import Device, Shared, to_input, type_of, where_images_are
from fedfr_jax.algorithm.gradient import gradient_in_parts
from fedfr_jax.algorithm.hard_negatives import all_or_nothing, by_blocks, compare_with_public
from fedfr_jax.algorithm.local_state import LocalState, hand_back, local_optimizer
from fedfr_jax.algorithm.messages import protect
from fedfr_jax.algorithm.pool import Batch, Client, clients_of, make_pool
from fedfr_jax.algorithm.server import embeddings_at_server, server_step
from fedfr_jax.algorithm.spec import RoundSpec, epochs_of_round
from fedfr_jax.algorithm.state import Heads, ServerState
from fedfr_jax.algorithm.transforms import TRANSFORMS
from fedfr_jax.engine.layout import Layout
from fedfr_jax.population.cohort_data import CohortData, PublicData

PyTree = Any


def run_round(spec: RoundSpec, layout: Layout, server: ServerState, heads: Heads,
              public: PublicData, cohort: CohortData, key
              ) -> tuple[ServerState, Heads, dict[str, jax.Array]]:
    """One federated round (FedFR, algorithm 1).

    Args:
      spec, layout: static; close over them before ``jax.jit``.
      server, heads: current state; donate both. ``heads`` are those of the cohort.
      public, cohort: the public images, and the images of each client.
      key: the run's key; round, client and epoch are folded in here.

    Returns:
      (server state with ``round`` + 1, heads, metrics): metrics are (C,) arrays of loss terms
      (means over the client's steps), ``hard_negatives``, ``images``, ``steps``, and of
      ``arrivals``; zero for an empty slot. Without clients the server's model does not change.
    """
    shared, device = where_images_are(server, public, cohort, key)
    kept_public = hard_negatives(spec, layout, shared, device, cohort)
    average, weight, heads, metrics = train_clients(
        spec, layout, shared, device, cohort, heads, kept_public)
    heads = embeddings_at_server(spec, heads, cohort)
    server, average, weight, metrics = combine(spec, shared, cohort, average, weight, metrics)
    return server_average(spec, server, average, weight), heads, metrics


def train_clients(spec: RoundSpec, layout: Layout, shared: Shared, device: Device,
                  cohort: CohortData, heads: Heads, kept_public: jax.Array) -> tuple:
    """(average, its weight, heads, metrics) of a cohort, or of a part of one (``parts.py``)."""
    steps = spec.steps(cohort.sizes + kept_public.sum(1))
    in_time, times = arrivals(spec, shared, cohort, kept_public, steps)
    average, weight, heads, metrics = engine.for_each_client(
        functools.partial(local_update, spec, layout), shared, device,
        clients_of(spec, cohort, kept_public, in_time), heads, steps, cohort.clients >= 0,
        mesh=layout.mesh, lanes=layout.lanes, unroll=layout.unroll)
    return average, weight, heads, metrics | times


def hard_negatives(spec: RoundSpec, layout: Layout, shared: Shared, device: Device,
                   cohort: CohortData, everybody=None) -> jax.Array:
    """(C, N_0) bool: the public images that each client trains on (FedFR, section 3.2).

    Those that are similar to one of the client's own images: the cosine of their features under
    the global backbone, ``everybody`` of the public images, is above the threshold.
    """
    def resembled(own, exists, public):  # (M, d), (M,) bool, (N_0, d) -> (N_0,) bool
        own = losses.normalize(own)
        return by_blocks(lambda image: jnp.any(
            (own @ losses.normalize(image) > spec.fed.hard_threshold) & exists), public)
    if spec.fed.public_data != "hard":
        return all_or_nothing(spec, shared, cohort)
    return compare_with_public(resembled, spec, layout, shared, device, cohort, everybody)


def local_update(spec: RoundSpec, layout: Layout, lane: engine.Lane, shared: Shared,
                 device: Device, client: Client, head: Heads):
    """E epochs of one client (FedFR, section 3.4); see the engine for arguments and results."""
    fed, server = spec.fed, shared.server
    pool = make_pool(spec, shared, device, client, head.class_embeddings.shape[0])
    is_own = jnp.arange(head.class_embeddings.shape[0]) < client.identities
    epochs, decay_epoch = epochs_of_round(spec, server.round)
    steps = spec.steps(pool.size)
    directions = contrastive_directions(spec, layout, lane, shared, head, pool, epochs)

    def train(start: LocalState, penalty) -> LocalState:
        penalty = local_state.against_received(spec, server, penalty)
        def one_epoch(epoch, state):
            order, flips = pool.order(epoch), pool.flips(epoch)
            lr = fed.lr * jnp.where(epoch < decay_epoch, 1.0, fed.lr_decay)

            def one_step(step, state):
                at = pool.at(order, step)
                images = pool.views(at, flips[at])
                batch = Batch(images, pool.labels[at], directions(at, flips[at], images),
                              pool.weights_of(at, step), pool.present(step))
                new = local_step(spec, state, batch, lr, is_own, head.has_trained,
                                 layout.gradient_batch, penalty)
                return local_state.take_turns(spec, epoch, epochs, state, new)
            return lane.repeat(steps, one_step, state)
        return lane.repeat(epochs, one_epoch, start)

    state, copy = train(local_state.initial_state(spec, server, head), spec.recipe.penalty), None
    if spec.recipe.copy_penalty is not None:
        copy = train(local_state.initial_copy(spec, server, head), spec.recipe.copy_penalty)
    results = hand_back(spec, server, client, head, state, copy, pool.size, epochs * steps)
    return protect(spec, shared, client, head, *results)  # what leaves the client


def local_step(spec: RoundSpec, state: LocalState, batch: Batch, lr, is_own, has_previous,
               part: int = 0, penalty=None) -> LocalState:
    """One step of SGD: weight decay is added to the gradient, then momentum, then the rate."""
    def loss(trained, batch):
        return local_loss(spec, trained, state.batch_stats, batch, is_own, has_previous, penalty)

    gradient, (terms, batch_stats) = gradient_in_parts(loss, state.trained, batch, part)
    velocity, optimizer = local_optimizer(spec.fed).update(
        gradient, state.optimizer, state.trained)
    trained = jax.tree.map(lambda p, v: p - lr * v, state.trained, velocity)
    return LocalState(trained, batch_stats, optimizer,
                      jax.tree.map(jnp.add, state.losses, terms))


def local_loss(spec: RoundSpec, trained: PyTree, batch_stats: PyTree, batch: Batch,
               is_own, has_previous, penalty=None):
    """``L = L_cos + mu L_con + beta L_bin`` of one mini-batch (FedFR, equation 6).

    Args:
      trained, batch_stats: as in :class:`LocalState`.
      is_own: (K,) bool, which class embeddings of the head exist.
      has_previous: bool scalar; False switches the contrastive term off.
      penalty: maps ``trained`` to a scalar that some methods add, or None.

    Returns:
      (loss, (dict of the terms ``LOSS_TERMS``, new batch_stats)).
    """
    loss, terms = spec.loss, spec.terms
    variables = {"params": trained["backbone"], "batch_stats": batch_stats}
    f, new_stats = spec.trained_features(variables, to_input(batch.images, type_of(trained)))
    classes, exists = trained["class_embeddings"], is_own
    if spec.uses_public:
        classes = jnp.concatenate([classes, trained["public_embeddings"]])
        exists = jnp.concatenate([is_own, jnp.ones(len(classes) - len(is_own), bool)])
    identification = losses.margin_loss(  # equation 1 with a margin, over own and public classes
        f, classes, batch.labels, kind=loss.identification, scale=loss.scale, margin=loss.margin,
        class_mask=exists, weights=batch.weights, positive_margin=terms.positive_margin,
        repeats=loss.repeated_negatives, is_own=is_own)
    contrastive = binary = jnp.zeros_like(identification)
    if spec.uses_contrastive:  # equation 2
        contrastive = has_previous * losses.contrastive_loss(
            f, batch.direction, temperature=terms.temperature, weights=batch.present)
    if spec.uses_binary:  # equations 4 and 5
        source = jax.lax.stop_gradient(f) if terms.binary_detached else f
        personal = TRANSFORMS[terms.transform].apply(trained["transform"], source)
        binary = losses.binary_loss(
            personal, trained["binary_weight"], trained["binary_bias"], batch.labels,
            scale=terms.binary_scale, margin=terms.binary_margin, balance=terms.binary_balance,
            power=terms.binary_power, class_mask=is_own, weights=batch.present)
    total = identification + terms.contrastive_weight * contrastive + terms.binary_weight * binary
    if penalty is not None:
        total += penalty(trained)
    return total, ({"loss": total, "identification": identification, "binary": binary,
                    "contrastive": contrastive}, new_stats)


def server_average(spec: RoundSpec, server: ServerState, average: PyTree, weight) -> ServerState:
    """The server after a round (FedFR, equation 1; with an optimizer, Reddi et al., ICLR 2021).

    Args:
      average: ``{"backbone", "public_embeddings"}``, averaged over clients.
      weight: scalar; 0 if there were no clients, and then the model does not change.
    """
    takes = spec.takes_average(server.round, weight)
    backbone = jax.tree.map(lambda private, a, old: old if private else a,
                            spec.private(server.backbone), average["backbone"], server.backbone)
    backbone, public, state = server_step(spec.fed, server, backbone, average["public_embeddings"])
    new = server.replace(backbone=backbone, public_embeddings=public, optimizer=state)
    new = jax.tree.map(lambda n, o: jnp.where(takes, n, o), new, server)
    return new.replace(round=server.round + 1)
