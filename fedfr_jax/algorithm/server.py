"""What the server does with an average, and with class embeddings sent by the clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.algorithm.state import Heads, ServerState
from fedfr_jax.population.cohort_data import CohortData
from fedfr_jax.settings import FedConfig

PyTree = Any


def server_optimizer(fed: FedConfig) -> optax.GradientTransformation | None:
    """Turns the average into a step of the server; None: the average is used as it is."""
    if fed.server_optimizer == "momentum":
        return optax.sgd(fed.server_lr or 1.0, momentum=fed.server_momentum)
    if fed.server_optimizer in SECOND_MOMENTS:
        return adaptive(fed)
    return None


# The update of the second moment ``v`` by the squared difference (Reddi et al., algorithm 2).
SECOND_MOMENTS: dict[str, Callable[..., jax.Array]] = {
    "adagrad": lambda v, square, beta2: v + square,
    "yogi": lambda v, square, beta2: v - (1 - beta2) * square * jnp.sign(v - square),
    "adam": lambda v, square, beta2: beta2 * v + (1 - beta2) * square,
}


def adaptive(fed: FedConfig) -> optax.GradientTransformation:
    """FedAdagrad, FedYogi or FedAdam (Reddi et al., ICLR 2021, algorithm 2).

    Unlike in ``optax.adam`` there is no correction of the bias, and the second moment starts at
    the square of tau, which is ``fed.server_epsilon``.
    """
    moment, tau, beta1 = (
        SECOND_MOMENTS[fed.server_optimizer],
        fed.server_epsilon,
        fed.server_momentum,
    )
    lr = fed.server_lr or 1e-3

    def init(params):
        return {
            "first": jax.tree.map(jnp.zeros_like, params),
            "second": jax.tree.map(lambda p: jnp.full_like(p, tau**2), params),
        }

    def update(difference, state, params=None):
        del params
        first = jax.tree.map(lambda m, d: beta1 * m + (1 - beta1) * d, state["first"], difference)
        second = jax.tree.map(
            lambda v, d: moment(v, d * d, fed.server_beta2), state["second"], difference
        )
        step = jax.tree.map(lambda m, v: -lr * m / (jnp.sqrt(v) + tau), first, second)
        return step, {"first": first, "second": second}

    return optax.GradientTransformation(init, update)


def server_trained(backbone: PyTree, public_embeddings) -> PyTree:
    """The tensors that a server optimizer updates; running statistics are averaged."""
    return {"params": backbone["params"], "public_embeddings": public_embeddings}


def server_step(fed: FedConfig, server: ServerState, backbone: PyTree, public_embeddings):
    """(backbone, public embeddings, optimizer's state) from averaged ones."""
    optimizer = server_optimizer(fed)
    if optimizer is None:
        return backbone, public_embeddings, server.optimizer
    old = server_trained(server.backbone, server.public_embeddings)
    difference = jax.tree.map(jnp.subtract, old, server_trained(backbone, public_embeddings))
    step, state = optimizer.update(difference, server.optimizer, old)
    moved = optax.apply_updates(old, step)
    return dict(backbone, params=moved["params"]), moved["public_embeddings"], state


def embeddings_at_server(spec: RoundSpec, heads: Heads, cohort: CohortData) -> Heads:
    """The heads after the server has seen all class embeddings (``Recipe.server_embeddings``)."""
    if spec.recipe.server_embeddings is None:
        return heads
    embeddings = heads.class_embeddings
    exists = jnp.arange(embeddings.shape[1]) < cohort.identities[:, None]
    rows = spec.recipe.server_embeddings(
        spec.options, embeddings.reshape(-1, embeddings.shape[-1]), exists.reshape(-1)
    )
    return heads.replace(
        class_embeddings=jnp.where(exists[..., None], rows.reshape(embeddings.shape), embeddings)
    )
