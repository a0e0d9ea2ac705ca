"""What one federated method does differently from the others.

The round (:mod:`fedfr_jax.algorithm.round`) is the same for all methods. A :class:`Recipe` states
where a method differs from the simplest form, federated averaging with private class
embeddings: every client trains the whole backbone with the identification loss on its own
images, and the server averages the backbones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Settings of a method that has none of its own."""


@dataclasses.dataclass(frozen=True)
class Terms:
    """The terms beside identification in the local loss: FedFR, equations 2 to 6.

    A method that exposes all of them as settings inherits its options from here.
    """

    contrastive_weight: float = 0.0  # mu; 0 leaves the term out
    temperature: float = 0.5  # tau of the contrastive term
    binary_weight: float = 0.0  # beta; 0 leaves the binary term and its branch (DFC) out
    binary_scale: float = 30.0  # r
    binary_margin: float = 0.4  # m
    binary_balance: float = 0.7  # lambda
    binary_power: float = 3.0  # t
    binary_detached: bool = False  # True: the binary term does not reach the backbone
    transform: str = "none"  # of the branch: linear | bottleneck | none
    # With one identity and no public data, a client's softmax has one class and the loss is 0.
    # Then use max(0, positive_margin - cosine)^2 (FedAwS, Yu et al., ICML 2020); 0: no loss.
    positive_margin: float = 0.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A method, as pure functions and constants; ``o`` denotes its options.

    Attributes:
      title: its name in tables.
      source: paper and equation.
      options: frozen dataclass of its own settings, ``config.method.<name>``.
      public_data: what ``fed.public_data`` = auto means: hard | all | off.
      terms: ``o -> Terms``, the terms of the loss beside identification.
      penalty: ``(o, params, received) -> scalar`` added to the local loss. ``received`` is what
        the server sent, ``params`` the trained tensors: dicts with "backbone" (parameters)
        and, if public images are used, "public_embeddings".
      private: ``(o, Backbone, variables) -> pytree of bool`` like ``variables``: the tensors of
        the backbone that a client keeps; they are neither sent nor averaged. None: no tensor.
      heads_turn: ``(o, epoch, epochs) -> bool scalar``: True trains only what stays with the
        client (head and tensors of ``private``) in this epoch, False only the rest.
        None: everything is trained together.
      extra_rounds: rounds beyond ``fed.rounds``, such as one of fine-tuning. The argument
        ``rounds`` of the functions here includes them.
      epochs: ``(o, round, rounds, epochs) -> epochs`` of a round, all int scalars that may be
        traced; None: as ``fed.local_epochs`` says.
      averages: ``(o, round, rounds) -> bool scalar``: whether the server adopts this round's
        average. None: always.
      copy_penalty: ``(o, params, received) -> scalar``: every client trains a second, personal
        backbone, which continues from its own last state, with this penalty. None: no copy.
      server_embeddings: ``(o, embeddings (N, d), exists (N,) bool) -> embeddings``: update of
        the class embeddings of all clients of a round on the server, so clients send them.
        None: they stay with the clients.
      union: one client holds the training images of all clients.
      isolated: nothing at all is shared; ``private`` keeps the whole backbone.
      trains: False: no rounds.
    """

    title: str
    source: str
    options: type = NoOptions
    public_data: str = "off"
    terms: Callable[[Any], Terms] = lambda o: Terms()
    penalty: Callable[..., jax.Array] | None = None
    private: Callable[..., PyTree] | None = None
    heads_turn: Callable[..., jax.Array] | None = None
    extra_rounds: int = 0
    epochs: Callable[..., jax.Array] | None = None
    averages: Callable[..., jax.Array] | None = None
    copy_penalty: Callable[..., jax.Array] | None = None
    server_embeddings: Callable[..., jax.Array] | None = None
    union: bool = False
    isolated: bool = False
    trains: bool = True


def half_squared_distance(params: PyTree, received: PyTree) -> jax.Array:
    """``1/2 ||w - w^t||^2`` over all tensors of two like pytrees."""
    return 0.5 * jnp.asarray(
        sum(
            jnp.sum((a - b) ** 2)
            for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(received), strict=True)
        )
    )


def in_output_layer(backbone, variables: PyTree) -> PyTree:
    """Pytree of bool: True for the tensors of the last layer, which computes the embedding."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[1].key in backbone.output_layers, variables
    )
