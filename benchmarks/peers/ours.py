"""fedfr_jax's engine as a library: the same rounds, and nothing of face recognition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers import child
from benchmarks.peers.work import ADAM, from_channels_last, to_channels_last, weights_of
from fedfr_jax import engine, population


def logits(params, images, key, rates, strategy):
    """(N, classes) of images (N, H, W, C)."""
    x = engine.conv2d(images, params["conv1.weight"], padding=0, strategy=strategy)
    x = jax.nn.relu(x + params["conv1.bias"])
    x = engine.conv2d(x, params["conv2.weight"], padding=0, strategy=strategy)
    # Bias and ReLU keep the order of values, so they may follow the maxima: a quarter of the work.
    x = jax.nn.relu(engine.max_pool(x) + params["conv2.bias"])
    x = engine.dropout(x, rates[0], jax.random.fold_in(key, 0)).reshape(len(x), -1)
    x = jax.nn.relu(engine.matmul(x, params["fc1.weight"]) + params["fc1.bias"])
    x = engine.dropout(x, rates[1], jax.random.fold_in(key, 1))
    return x @ params["fc2.weight"] + params["fc2.bias"]


def compile_round(job: child.Job, mesh, lanes: int = 1):
    """(model, memory of the server's optimizer), clients, key -> the next (model, memory)."""
    work, rates, strategy = job.work, job.rates, engine.default_strategy(lanes)
    local, server = optax.sgd(work.lr), server_optimizer(work)

    def losses(params, examples, key):
        found = logits(params, examples["images"] / np.float32(255), key, rates, strategy)
        return optax.softmax_cross_entropy_with_integer_labels(found, examples["labels"])

    def update(lane, shared, device, client, state):
        model, key = shared
        key = jax.random.fold_in(key, client.id)
        own = client.examples, client.size
        trained, _ = engine.train_locally(
            lane, losses, model, *own, local, batch=work.batch, key=key, epochs=work.epochs,
            shuffle=False,
        )  # fmt: skip
        return trained, client.size if work.weighted else 1.0, (), ()

    def run(model, memory, clients, key):
        average = engine.for_each_client(
            update, (model, key), clients=clients, work=clients.size, taken=clients.taken,
            mesh=mesh, lanes=lanes,
        ).average  # fmt: skip
        return engine.server_step(server, model, memory, average)

    return jax.jit(run, donate_argnums=(0, 1))


def server_optimizer(work) -> optax.GradientTransformation:
    if work.server == "adam":
        return optax.adam(work.server_lr, **ADAM)
    return optax.sgd(work.server_lr)


def run(job: child.Job):
    engine.use_cpu_devices(job.options.get("devices", 0))
    mesh, work, problem = engine.make_mesh(), job.work, job.problem
    lanes = job.options.get("lanes", 1)
    shares = [
        np.arange(*pair) for pair in zip(problem["first"], problem["first"][1:], strict=False)
    ]

    def read(numbers):
        return {"images": problem["images"][numbers], "labels": problem["labels"][numbers]}

    def cohort(r):
        found = population.pack_ragged(
            read, shares, problem["cohorts"][r], devices=mesh.size, most=work.sizes[1]
        )
        return engine.spread(found, mesh)

    model = jax.tree.map(jnp.asarray, to_channels_last(work, weights_of(problem)))
    state = engine.replicate((model, server_optimizer(work).init(model)), mesh)
    key = engine.replicate(jax.random.key(0), mesh)
    step, clients = compile_round(job, mesh, lanes), cohort(0)
    for r in range(job.rounds):
        state = step(*state, clients, jax.random.fold_in(key, r))
        if r + 1 < job.rounds:
            clients = cohort(r + 1)  # while the devices compute
        jax.block_until_ready(state)
        job.mark()
    note = f"{mesh.size} device(s), {lanes} lane(s)"
    return from_channels_last(work, jax.device_get(state[0])), note


if __name__ == "__main__":
    child.main(run, ["fedfr_jax", "jax"])
