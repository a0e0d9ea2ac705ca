"""Workloads A and B in JAX: small FedAvg clients that use the engine and its convolutions.

A: two convolutions with max-pooling and two dense layers. B: four strided convolutions with
PReLU, and CosFace with class embeddings that the client keeps.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.problem import MARGIN, SCALE, Built, Workload
from fedfr_jax.algorithm import losses
from fedfr_jax.engine.convolutions import conv2d
from fedfr_jax.engine.layers import matmul, max_pool


def _swap(array):
    """PyTorch's (out, in, h, w) and (out, in) to (h, w, in, out) and (in, out)."""
    return np.transpose(array, {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim])


def _swap_back(array):
    return np.transpose(array, {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim])


def model_of(problem):
    """The initial weights in our layout."""
    return {
        k.removeprefix("model/"): jnp.asarray(_swap(v))
        for k, v in problem.items()
        if k.startswith("model/")
    }


def clients_of(problem):
    """Images, labels and, in B, class embeddings, each with a leading client axis."""
    return {
        k.removeprefix("client/"): jnp.asarray(v)
        for k, v in problem.items()
        if k.startswith("client/")
    }


def pool(x, conv):
    """2×2 max-pooling."""
    if conv == "grouped":  # the naive competitor
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return max_pool(x)


def logits_a(p, x, conv):
    for layer in ("conv1", "conv2"):
        x = conv2d(x, p[f"{layer}.weight"], strategy=conv) + p[f"{layer}.bias"]
        x = pool(jax.nn.relu(x), conv)
    x = jax.nn.relu(_product(x.reshape(len(x), -1), p["fc1.weight"], conv) + p["fc1.bias"])
    return x @ p["fc2.weight"] + p["fc2.bias"]


def _product(x, w, conv):
    return x @ w if conv == "grouped" else matmul(x, w)


def features_b(p, x, conv):
    for i in range(1, 5):
        x = conv2d(x, p[f"conv{i}.weight"], stride=2, strategy=conv) + p[f"conv{i}.bias"]
        x = jnp.where(x > 0, x, p[f"prelu{i}.weight"] * x)
    return _product(x.reshape(len(x), -1), p["fc1.weight"], conv) + p["fc1.bias"]


def loss(workload: Workload, trained, images, labels, conv):
    """Cross-entropy of one batch."""
    if workload.name == "A":
        logits = logits_a(trained["model"], images, conv)
        chosen = jnp.take_along_axis(logits, labels[:, None], -1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, -1) - chosen)
    return losses.margin_loss(
        features_b(trained["model"], images, conv),
        trained["classes"],
        labels,
        scale=SCALE,
        margin=MARGIN,
    )


def step(workload: Workload, conv, state, images, labels):
    """One SGD step; without momentum there is no velocity."""
    trained, velocity = state
    gradient = jax.grad(lambda t: loss(workload, t, images, labels, conv))(trained)
    if workload.decay:
        gradient = jax.tree.map(lambda g, p: g + workload.decay * p, gradient, trained)
    if workload.momentum:
        velocity = gradient = jax.tree.map(
            lambda v, g: workload.momentum * v + g, velocity, gradient
        )
    return jax.tree.map(lambda p, g: p - workload.lr * g, trained, gradient), velocity


def start(workload: Workload, model, client):
    """(trained tensors, velocity) of a client before its first step."""
    trained = {"model": model} | ({"classes": client["classes"]} if "classes" in client else {})
    return trained, jax.tree.map(jnp.zeros_like, trained) if workload.momentum else ()


def client_update(workload: Workload, conv):
    """``(repeat, model, client) -> (model, kept)``; ``repeat(times, body, state)`` is a loop."""

    def update(repeat, model, client):
        def one(i, state):
            images, labels = (
                lax.dynamic_slice_in_dim(client[k], i * workload.batch, workload.batch)
                for k in ("images", "labels")
            )
            return step(workload, conv, state, images, labels)

        trained, _ = repeat(workload.steps, one, start(workload, model, client))
        return trained["model"], {k: v for k, v in trained.items() if k != "model"}

    return update


def built(workload: Workload, run, images: int = 0, note: str = "", expected=None) -> Built:
    """A competitor from a function that returns (average model, kept of all clients)."""
    result = {}

    def once():
        result["all"] = jax.block_until_ready(run())

    def update():
        model, kept = jax.device_get(result["all"])
        return {f"model/{k}": _swap_back(v) for k, v in model.items()} | {
            f"client/{k}": v for k, v in kept.items()
        }

    return Built(once, update, images or workload.trained_images, note=note, expected=expected)


def loop(workload: Workload, problem, *, steps: int = 0) -> Built:
    """A jitted step of one client in a Python loop over clients and steps."""
    model, clients = model_of(problem), clients_of(problem)
    count, batch = workload.clients, workload.batch
    one = jax.jit(functools.partial(step, workload, "grouped"))
    cut = [
        [
            (clients["images"][i, t : t + batch], clients["labels"][i, t : t + batch])
            for t in range(0, (steps or workload.steps) * batch, batch)
        ]
        for i in range(count)
    ]

    def run():
        done = []
        for i in range(count):
            state = start(workload, model, jax.tree.map(lambda x, i=i: x[i], clients))
            for images, labels in cut[i]:
                state = one(state, images, labels)
            done.append(state[0])
        average = jax.tree.map(lambda *x: sum(x) / count, *[t.pop("model") for t in done])
        return average, jax.tree.map(lambda *x: jnp.stack(x), *done)

    return built(workload, run, count * len(cut[0]) * batch)


def naive(workload: Workload, problem, *, steps: int = 2) -> Built:
    """vmap over clients of scan over ``steps`` steps with ordinary convolutions."""
    model, clients, batch = model_of(problem), clients_of(problem), workload.batch

    def one_client(model, client):
        data = tuple(
            client[k][: steps * batch].reshape(steps, batch, *client[k].shape[1:])
            for k in ("images", "labels")
        )
        (trained, _), _ = lax.scan(
            lambda s, b: (step(workload, "grouped", s, *b), None),
            start(workload, model, client),
            data,
        )
        return trained.pop("model"), trained

    @jax.jit
    def compiled(model, clients):
        models, kept = jax.vmap(one_client, (None, 0))(model, clients)
        return jax.tree.map(lambda x: x.mean(0), models), kept

    def expected():
        reference = loop(workload, problem, steps=steps)
        reference.run()
        return reference.update()

    return built(
        workload,
        lambda: compiled(model, clients),
        workload.clients * steps * batch,
        f"{steps} of {workload.steps} steps",
        expected,
    )
