"""FedJAX: its own federated averaging, on one of its backends."""

from __future__ import annotations

import fedjax
import haiku as hk
import jax
import numpy as np

from benchmarks.peers import child
from benchmarks.peers.work import (
    ADAM,
    from_channels_last,
    to_channels_last,
    user_images,
    weights_of,
)

# FedJAX 0.0.17 is of 2023. Its jit backend misses this name alone in today's JAX; its pmap backend
# also needs the arrays that pmap gave in older versions, and fails.
jax.tree_map = jax.tree_util.tree_map

_LAYERS = {"conv1": "conv2_d", "conv2": "conv2_d_1", "fc1": "linear", "fc2": "linear_1"}


def model(job: child.Job) -> fedjax.Model:
    """FedJAX's EMNIST CNN with the channels and classes of the work."""
    work, rates = job.work, job.rates

    def forward(batch):
        x = batch["x"]
        for filters in work.filters:
            x = jax.nn.relu(hk.Conv2D(filters, 3, padding="VALID")(x))
        x = hk.MaxPool((1, 2, 2, 1), (1, 2, 2, 1), "VALID")(x)
        x = hk.Flatten()(hk.dropout(hk.next_rng_key(), rates[0], x) if rates[0] else x)
        x = jax.nn.relu(hk.Linear(work.hidden)(x))
        x = hk.dropout(hk.next_rng_key(), rates[1], x) if rates[1] else x
        return hk.Linear(work.classes)(x)

    sample = {"x": np.zeros((1, work.size, work.size, work.channels), np.float32)}
    sample["y"] = np.zeros(1, np.int32)
    return fedjax.create_model_from_haiku(
        hk.transform(forward),
        sample,
        lambda batch, logits: fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], logits),
    )


def _named(work, params, weights=None):
    """Weights as Haiku's parameters, or the other way with ``weights`` None."""
    paths = {}
    for layer, theirs in _LAYERS.items():
        [path] = [p for p in params if p.rsplit("/", 1)[-1] == theirs]
        paths[layer] = path
    if weights is None:
        return {
            f"{layer}.{kind}": np.asarray(params[path]["w" if kind == "weight" else "b"])
            for layer, path in paths.items()
            for kind in ("weight", "bias")
        }
    return {
        path: {"w": weights[f"{layer}.weight"], "b": weights[f"{layer}.bias"]}
        for layer, path in paths.items()
    }


def run(job: child.Job):
    work, problem = job.work, job.problem
    backend = job.options.get("backend", "jit")
    fedjax.set_for_each_client_backend(backend)
    net = model(job)
    server = (
        fedjax.optimizers.adam(work.server_lr, **ADAM)
        if work.server == "adam"
        else fedjax.optimizers.sgd(work.server_lr)
    )
    batches = fedjax.ShuffleRepeatBatchHParams(
        work.batch, num_epochs=work.epochs, skip_shuffle=True
    )
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        fedjax.model_grad(net), fedjax.optimizers.sgd(work.lr), server, batches
    )
    params = net.init(jax.random.PRNGKey(0))
    state = algorithm.init(_named(work, params, to_channels_last(work, weights_of(problem))))
    for r, cohort in enumerate(problem["cohorts"][: job.rounds]):
        keys = jax.random.split(jax.random.PRNGKey(r), work.cohort)
        clients = []
        for user, key in zip(cohort, keys, strict=True):
            images, labels = user_images(problem, user)
            clients.append((int(user), fedjax.ClientDataset({"x": images, "y": labels}), key))
        state, _ = algorithm.apply(state, clients)
        jax.block_until_ready(state.params)
        job.mark()
    note = f"backend {backend}, {len(jax.devices())} device(s)"
    return from_channels_last(work, _named(work, state.params)), note


if __name__ == "__main__":
    child.main(run, ["fedjax", "jax", "dm-haiku"])
