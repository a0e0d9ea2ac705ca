"""A client in training: its state at the start, which tensors train, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from fedfr_jax.algorithm.features import type_of
from fedfr_jax.algorithm.pool import Client
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.algorithm.state import Heads, ServerState
from fedfr_jax.settings import FedConfig

PyTree = Any
LOSS_TERMS = ("loss", "identification", "binary", "contrastive")


@struct.dataclass
class LocalState:
    """A client in training: trained tensors, and state that is updated along with them.

    Attributes:
      trained: dict of trained tensors.
      batch_stats: running statistics of the backbone.
      optimizer: state of :func:`local_optimizer`.
      losses: sums over steps, a dict with the keys ``LOSS_TERMS``.
    """

    trained: PyTree
    batch_stats: PyTree
    optimizer: PyTree
    losses: dict[str, jax.Array]


def local_optimizer(fed: FedConfig) -> optax.GradientTransformation:
    """SGD with weight decay and momentum, without the learning rate.

    The learning rate changes within the round, so it is applied in the step. It is not part of
    the velocity, as in PyTorch's SGD.
    """
    return optax.chain(optax.add_decayed_weights(fed.weight_decay), optax.trace(fed.momentum))


def against_received(
    spec: RoundSpec, server: ServerState, penalty: Callable[..., jax.Array] | None
) -> Callable[..., Any] | None:
    """A method's penalty as a function of all that a client trains; None if it has none."""
    if penalty is None:
        return None
    received = {"backbone": server.backbone["params"]}
    if spec.uses_public:
        received["public_embeddings"] = server.public_embeddings
    return lambda trained: penalty(
        spec.options, {name: trained[name] for name in received}, received
    )


def starting_backbone(spec: RoundSpec, server: ServerState, head: Heads) -> PyTree:
    """Variables at the start of a round: the server's, and the client's own private tensors."""

    def choose(private, received, own):
        if not private:
            return received
        return jnp.where(head.has_trained, own.astype(received.dtype), received)

    if spec.recipe.private is None:
        return server.backbone
    return jax.tree.map(choose, spec.private(server.backbone), server.backbone, head.previous)


def start_training(spec: RoundSpec, trained: PyTree, batch_stats: PyTree) -> LocalState:
    """A client before its first step."""
    return LocalState(
        trained,
        batch_stats,
        local_optimizer(spec.fed).init(trained),
        {term: jnp.zeros((), type_of(trained)) for term in LOSS_TERMS},
    )


def initial_state(spec: RoundSpec, server: ServerState, head: Heads) -> LocalState:
    """A client before its first step of a round.

    Parts of the method that are switched off are not trained, so they are not decayed either.
    """
    backbone = starting_backbone(spec, server, head)
    trained = {"backbone": backbone["params"], "class_embeddings": head.class_embeddings}
    if spec.uses_public:
        trained["public_embeddings"] = server.public_embeddings
    if spec.uses_binary:
        trained.update(
            transform=head.transform, binary_weight=head.binary_weight, binary_bias=head.binary_bias
        )
    return start_training(spec, trained, backbone["batch_stats"])


def initial_copy(spec: RoundSpec, server: ServerState, head: Heads) -> LocalState:
    """The personal copy before its first step: its last state (``Recipe.copy_penalty``)."""
    own = jax.tree.map(
        lambda v, s: jnp.where(head.has_trained, v.astype(s.dtype), s),
        head.previous,
        server.backbone,
    )
    return initial_state(
        spec, server.replace(backbone=own), head.replace(class_embeddings=head.copy_embeddings)
    )


def take_turns(spec: RoundSpec, epoch, epochs, old: LocalState, new: LocalState) -> LocalState:
    """Undoes a step for the tensors not trained in this epoch (``Recipe.heads_turn``)."""
    if spec.recipe.heads_turn is None:
        return new
    heads_turn = spec.recipe.heads_turn(spec.options, epoch, epochs)
    private = spec.private({"params": old.trained["backbone"], "batch_stats": old.batch_stats})
    is_head = {
        k: jax.tree.map(lambda _, k=k: k != "public_embeddings", v) for k, v in old.trained.items()
    } | {"backbone": private["params"]}
    # The optimizer's state has one leaf per trained tensor and no others.
    is_head_state = optax.tree_utils.tree_map_params(
        local_optimizer(spec.fed), lambda _, head: head, old.optimizer, is_head
    )

    def choose(head, new, old):
        return jnp.where(heads_turn == head, new, old)

    return LocalState(
        jax.tree.map(choose, is_head, new.trained, old.trained),
        jax.tree.map(choose, private["batch_stats"], new.batch_stats, old.batch_stats),
        jax.tree.map(choose, is_head_state, new.optimizer, old.optimizer),
        new.losses,
    )


def hand_back(
    spec: RoundSpec,
    server: ServerState,
    client: Client,
    head: Heads,
    state: LocalState,
    copy: LocalState | None,
    images,
    steps,
):
    """Splits a trained client into what is averaged, its weight, and what it keeps.

    In what is sent, a scalar zero replaces each private tensor.
    """
    trained = state.trained
    backbone = {"params": trained["backbone"], "batch_stats": state.batch_stats}
    sent = {
        "backbone": jax.tree.map(
            lambda private, v: jnp.zeros((), v.dtype) if private else v,
            spec.private(backbone),
            backbone,
        ),
        "public_embeddings": trained.get("public_embeddings", server.public_embeddings),
    }
    previous = head.previous
    if previous is not None:
        own = (
            backbone
            if copy is None
            else {"params": copy.trained["backbone"], "batch_stats": copy.batch_stats}
        )
        previous = jax.tree.map(lambda new, old: new.astype(old.dtype), own, previous)
    kept = Heads(
        class_embeddings=trained["class_embeddings"],
        copy_embeddings=None if copy is None else copy.trained["class_embeddings"],
        transform=trained.get("transform", head.transform),
        binary_weight=trained.get("binary_weight", head.binary_weight),
        binary_bias=trained.get("binary_bias", head.binary_bias),
        previous=previous,
        has_trained=jnp.array(True),
        unsent=head.unsent,
    )
    means = {term: total / jnp.maximum(steps, 1) for term, total in state.losses.items()}
    metrics = means | dict(hard_negatives=client.kept_public.sum(), images=images, steps=steps)
    weight = images if spec.fed.aggregation == "images" else jnp.ones_like(images)
    return sent, weight, kept, metrics
