"""FedFR's local training in plain JAX, without the engine: the obvious first implementation.

* :func:`loop`: a jitted step of one client, called from Python loops over clients and steps;
* :func:`naive`: ``jax.vmap`` over clients of ``lax.scan`` over steps, ordinary convolutions;
* :func:`dense`: one network at a large batch, an upper bound for clients in parallel.

The first two run the frozen global and previous backbones in every step, as published.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.batches import schedule
from benchmarks.problem import (
    DECAY,
    HEAD,
    MARGIN,
    MOMENTUM,
    SCALE,
    Built,
    Case,
    federation,
    part,
    previous_weights,
)
from fedfr_jax.algorithm import losses
from fedfr_jax.engine import flops
from fedfr_jax.models import build as build_model
from fedfr_jax.models import from_torch, to_torch
from fedfr_jax.models.preprocessing import Preprocessing
from fedfr_jax.settings import ModelConfig

CONTRASTIVE, TEMPERATURE, BINARY, BALANCE, BINARY_SCALE = 5.0, 0.5, 10.0, 0.7, 30.0


@functools.cache
def backbone_of(case: Case, dtype: str = "float32", conv: str = "grouped"):
    """The network of a case, with ordinary convolutions."""
    chosen = dict(depth=case.depth, widths=case.widths) if case.model == "spherenet" else {}
    config = ModelConfig(name=case.model, embedding=case.embedding, dtype=dtype, **chosen)
    backbone = build_model(config, case.size, conv)
    # Images here have our scale; the published one would change the SGD steps.
    ours = dataclasses.replace(backbone.published, preprocessing=Preprocessing())
    return dataclasses.replace(backbone, published=ours)


def variables_of(case: Case, arrays):
    """PyTorch-named arrays to variables."""
    return from_torch(arrays, backbone_of(case))


def arrays_of(case: Case, variables):
    """Variables to PyTorch-named arrays."""
    arrays = to_torch(variables, backbone_of(case))
    return {k: v for k, v in arrays.items() if k not in backbone_of(case).published.ones}


def problem(case: Case, path: str) -> dict[str, int]:
    """Writes the arrays of a case to ``path``; returns its ``macs`` and ``parameters``."""
    backbone = backbone_of(case)
    variables = backbone.init(jax.random.key(0))
    found = federation(case)
    batches = schedule(case)
    pool_rows = np.concatenate(
        [
            found["client/image_rows"],
            np.tile(np.arange(case.public, dtype=np.int32), (case.clients, 1)),
        ],
        axis=1,
    )
    public_labels = np.tile(case.identities + found["public_labels"], (case.clients, 1))
    pool_labels = np.concatenate([found["client/image_labels"], public_labels], axis=1)
    client = np.arange(case.clients)[:, None, None]
    found["client/batch_rows"] = pool_rows[client, batches["positions"]]
    found["client/batch_labels"] = pool_labels[client, batches["positions"]]
    found["client/batch_flips"] = batches["flips"]
    epoch = np.arange(case.steps) // (case.steps // case.epochs)
    found["rates"] = np.where(epoch < case.decay_epoch, case.lr, 0.1 * case.lr).astype(np.float32)
    found |= {f"backbone/{k}": v for k, v in arrays_of(case, variables).items()}
    np.savez(path, **found)
    image = jax.ShapeDtypeStruct((1, case.size, case.size, 3), jnp.float32)
    return {
        "macs": flops.multiply_adds(lambda v, x: backbone.apply(v, x, False)[0], variables, image),
        "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
    }


def _inputs(images, flips):
    images = jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)
    return images.astype(jnp.float32) / 127.5 - 1.0


def local_loss(case: Case, backbone, trained, stats, frozen, batch):
    """(loss, new batch statistics): the three terms of one batch, with frozen forward passes."""
    images, labels, flips = batch
    x = _inputs(images, flips)
    f, stats = backbone.apply({"params": trained["params"], "batch_stats": stats}, x, True)
    classes = jnp.concatenate([trained["class_embeddings"], trained["public_embeddings"]])
    total = losses.margin_loss(f, classes, labels, scale=SCALE, margin=MARGIN)
    if case.contrastive:
        g, p = (backbone.apply(v, x, False)[0] for v in frozen)
        total += CONTRASTIVE * losses.contrastive_loss(
            f, losses.contrastive_direction(g, p), temperature=TEMPERATURE
        )
    if case.binary:
        h = f @ trained["transform_weight"].T + trained["transform_bias"]
        total += BINARY * losses.binary_loss(
            h,
            trained["binary_weight"],
            trained["binary_bias"],
            labels,
            scale=BINARY_SCALE,
            margin=MARGIN,
            balance=BALANCE,
        )
    return total, stats


def local_step(case: Case, backbone, state, frozen, batch, lr):
    """SGD as in PyTorch: weight decay, momentum, learning rate."""
    trained, stats, velocity = state
    gradient, stats = jax.grad(
        lambda t: local_loss(case, backbone, t, stats, frozen, batch), has_aux=True
    )(trained)
    velocity = jax.tree.map(
        lambda v, g, p: MOMENTUM * v + g + DECAY * p, velocity, gradient, trained
    )
    return jax.tree.map(lambda p, v: p - lr * v, trained, velocity), stats, velocity


def _start(case: Case, problem):
    """(global variables, function of a client: its previous variables and its head)."""

    def client(i):
        head = {h: problem[f"client/{h}"][i] for h in (HEAD if case.binary else HEAD[:1])}
        return variables_of(case, previous_weights(problem, i)), head

    return variables_of(case, part(problem, "backbone/")), client


def _state(problem, variables, head):
    trained = {"params": variables["params"], "public_embeddings": problem["public_embeddings"]}
    trained = jax.tree.map(jnp.array, trained | head)  # a copy: the step donates it
    return (
        trained,
        jax.tree.map(jnp.array, variables["batch_stats"]),
        jax.tree.map(jnp.zeros_like, trained),
    )


def _mean(trees):
    return jax.tree.map(lambda *x: sum(x) / len(x), *trees)


def _update(case: Case, shared, kept):
    """Names the averaged tensors and the stacked personal ones as the problem does."""
    found = {f"backbone/{k}": v for k, v in arrays_of(case, shared["backbone"]).items()}
    found |= {f"client/{h}": np.asarray(v) for h, v in kept.items()}
    return found | (
        {"public_embeddings": np.asarray(shared["public_embeddings"])} if case.public else {}
    )


def _split(state):
    """(what is averaged, what the client keeps) of a trained state."""
    trained, stats, _ = state
    shared = {
        "backbone": {"params": trained["params"], "batch_stats": stats},
        "public_embeddings": trained["public_embeddings"],
    }
    return shared, {k: v for k, v in trained.items() if k in HEAD}


def _batch(problem, client, step):
    return (
        problem["images"][problem["client/batch_rows"][client, step]],
        problem["client/batch_labels"][client, step],
        problem["client/batch_flips"][client, step],
    )


def loop(case: Case, problem, *, dtype: str = "float32", steps: int = 0) -> Built:
    """A jitted step in a Python loop. ``steps`` > 0 runs only that many for each client."""
    steps = steps or case.steps
    backbone = backbone_of(case, dtype)
    variables, client = _start(case, problem)
    clients = [client(i) for i in range(case.clients)]
    step = jax.jit(functools.partial(local_step, case, backbone), donate_argnums=0)
    result = {}

    def run():
        uploads, kept = [], []
        for i, (previous, head) in enumerate(clients):
            state = _state(problem, variables, head)
            for t in range(steps):
                state = step(
                    state, (variables, previous), _batch(problem, i, t), problem["rates"][t]
                )
            sent, own = _split(state)
            uploads.append(sent)
            kept.append(own)
        result["all"] = jax.block_until_ready(
            (_mean(uploads), jax.tree.map(lambda *x: jnp.stack(x), *kept))
        )

    return Built(
        run,
        lambda: _update(case, *result["all"]),
        case.clients * steps * case.batch,
        5.0 if case.contrastive else 3.0,
    )


def naive(case: Case, problem, *, dtype: str = "float32", steps: int = 2) -> Built:
    """vmap of scan with ordinary convolutions; runs ``steps`` steps, compared with the loop's.

    At least 2: XLA unrolls a loop of one step, which avoids the slow path.
    """
    backbone = backbone_of(case, dtype)
    variables, client = _start(case, problem)
    clients = jax.tree.map(lambda *x: jnp.stack(x), *[client(i) for i in range(case.clients)])
    batches = jax.tree.map(
        lambda *x: np.stack(x),
        *[
            jax.tree.map(lambda *x: np.stack(x), *[_batch(problem, i, t) for t in range(steps)])
            for i in range(case.clients)
        ],
    )
    rates = problem["rates"][:steps]

    def one_client(variables, client, batches):
        previous, head = client
        state, _ = jax.lax.scan(
            lambda s, b: (local_step(case, backbone, s, (variables, previous), b[0], b[1]), None),
            _state(problem, variables, head),
            (batches, rates),
        )
        return _split(state)

    @jax.jit
    def compiled(variables, clients, batches):
        sent, kept = jax.vmap(one_client, (None, 0, 0))(variables, clients, batches)
        return jax.tree.map(lambda x: x.mean(0), sent), kept

    result = {}

    def run():
        result["all"] = jax.block_until_ready(compiled(variables, clients, batches))

    def expected():
        reference = loop(case, problem, dtype=dtype, steps=steps)
        reference.run()
        return reference.update()

    return Built(
        run,
        lambda: _update(case, *result["all"]),
        case.clients * steps * case.batch,
        5.0 if case.contrastive else 3.0,
        f"{steps} of {case.steps} steps",
        expected,
    )


def dense(case: Case, problem, *, dtype: str = "float32", batch: int, steps: int = 8) -> Built:
    """One network trained with CosFace only, with a batch of ``batch`` images."""
    plain = dataclasses.replace(case, contrastive=False, binary=False)
    backbone = backbone_of(case, dtype)
    variables, client = _start(plain, problem)
    step = jax.jit(functools.partial(local_step, plain, backbone), donate_argnums=0)
    rows = np.arange(batch) % len(problem["images"])
    data = jax.device_put(
        (problem["images"][rows], (rows % case.identities).astype(np.int32), rows % 2 == 0)
    )
    state = [_state(problem, variables, client(0)[1])]

    def run():
        for _ in range(steps):
            state[0] = step(state[0], (), data, np.float32(case.lr))
        jax.block_until_ready(state[0])

    return Built(run, dict, batch * steps, 3.0, f"batch {batch}, CosFace only")
