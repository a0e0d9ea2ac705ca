"""Training the backbone on the public identities, before there are any clients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fedfr_jax import engine
from fedfr_jax.algorithm import losses
from fedfr_jax.algorithm.features import to_input, type_of, views
from fedfr_jax.models import Backbone
from fedfr_jax.population.images import StoredImages
from fedfr_jax.settings import PretrainConfig

PyTree = Any


@struct.dataclass
class _State:
    trained: PyTree  # {"backbone", "class_embeddings"}
    batch_stats: PyTree
    optimizer: PyTree


def pretrain(
    backbone: Backbone,
    images,
    labels: np.ndarray,
    config: PretrainConfig,
    *,
    variables: PyTree,
    mesh,
    seed: int,
    augment: bool = True,
    on_epoch: Callable[[dict], None] = lambda row: None,
    on_step: Callable[[int, float], None] = lambda images, loss: None,
) -> tuple[PyTree, jax.Array]:
    """CosFace classification of the public identities with SGD.

    Args:
      backbone: the network; ``variables`` its initial variables.
      images: (N, S, S, 3) uint8, of which the first ``len(labels)`` are used; or as stored.
      labels: (N_0,) int in [0, K_0).
      config: epochs, batch size, learning rate and its schedule.
      mesh: the batch is spread over it.
      seed: order of images, mirroring, first class embeddings.
      on_epoch: called with a dictionary of metrics after every epoch.
      on_step: called with (images since the last call, loss) every few steps.

    Returns:
      (variables, class embeddings (K_0, d)).

    Raises:
      FloatingPointError: the loss is not finite.
    """
    labels = np.asarray(labels)
    batch = min(config.batch_size, len(labels))
    batch = max(mesh.size, batch - batch % mesh.size)  # every device takes an equal part
    per_epoch = len(labels) // batch
    optimizer, rate = _optimizer(config, per_epoch)
    step = _make_step(backbone, config, optimizer, augment)
    state = _initial(backbone, variables, optimizer, int(labels.max()) + 1, seed)
    state = jax.device_put(state, NamedSharding(mesh, P()))
    stored = images if isinstance(images, StoredImages) else None
    table = jax.device_put(images if stored is None else None, NamedSharding(mesh, P()))
    spread = NamedSharding(mesh, P(engine.AXIS))
    rng = np.random.default_rng([seed, 1])
    for epoch in range(config.epochs):
        totals = []
        for i, inputs in enumerate(_batches(labels, batch, rng, stored)):
            state, metrics = step(state, table, *jax.device_put(inputs, spread))
            totals.append(metrics)
            if i % 8 == 7 or i + 1 == per_epoch:
                on_step(batch * (i % 8 + 1), _finite(totals[-1][0], epoch))
        loss, accuracy = np.mean(jax.device_get(totals), axis=0)
        done = (epoch + 1) * per_epoch
        row = {"kind": "pretrain", "epoch": epoch + 1, "step": done, "loss": float(loss)}
        on_epoch(row | {"accuracy": float(accuracy), "lr": float(rate(done))})
    # One device's copy: the round does its own sharding.
    state = jax.device_get(state)
    return (
        {"params": state.trained["backbone"], "batch_stats": state.batch_stats},
        jnp.asarray(state.trained["class_embeddings"]),
    )


def pretraining_step(
    backbone: Backbone,
    config: PretrainConfig,
    public: tuple[int, int],
    batch: int,
    *,
    augment: bool = True,
) -> tuple[Any, ...]:
    """A step of :func:`pretrain` on one device, to be compiled without data.

    Args:
      backbone, config, augment: as for :func:`pretrain`.
      public: (images N_0, identities K_0).
      batch: images of a mini-batch on the device.

    Returns:
      (the jitted step, the shapes of each of its arguments).
    """
    images, identities = public
    optimizer, _ = _optimizer(config, 1)
    array = jax.ShapeDtypeStruct
    state = jax.eval_shape(
        lambda key: _initial(backbone, backbone.init(key), optimizer, identities, 0),
        jax.random.key(0),
    )
    table = array((images, *backbone.input_shape), jnp.uint8)
    rows, flip = array((batch,), jnp.int32), array((batch,), jnp.bool_)
    return _make_step(backbone, config, optimizer, augment), state, table, rows, rows, flip


def _batches(
    labels: np.ndarray, size: int, rng: np.random.Generator, stored: StoredImages | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The batches of an epoch: (positions, labels, whether mirrored), each (size,).

    Of stored images, the images instead of positions: read while the batch before trains.
    """
    order = rng.permutation(len(labels))
    for i in range(len(labels) // size):
        chosen = order[i * size : (i + 1) * size]
        rows = chosen.astype(np.int32) if stored is None else stored[chosen]
        yield rows, labels[chosen].astype(np.int32), rng.random(size) < 0.5


def _optimizer(config: PretrainConfig, steps_per_epoch: int):
    total = max(1, config.epochs * steps_per_epoch)
    warmup = min(int(config.warmup_epochs * steps_per_epoch), total - 1)
    rate = optax.warmup_cosine_decay_schedule(
        config.lr if warmup == 0 else 0.0, config.lr, warmup, total
    )
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay), optax.sgd(rate, momentum=config.momentum)
    ), rate


def _initial(backbone, variables, optimizer, classes, seed) -> _State:
    key = jax.random.fold_in(jax.random.key(seed), 1)
    trained = {
        "backbone": variables["params"],
        "class_embeddings": jax.random.normal(
            key, (classes, backbone.embedding), type_of(variables)
        )
        / math.sqrt(backbone.embedding),
    }  # embeddings of length about 1
    return _State(trained, variables["batch_stats"], optimizer.init(trained))


def _make_step(backbone, config, optimizer, augment):
    def loss_fn(trained, batch_stats, images, labels):
        variables = {"params": trained["backbone"], "batch_stats": batch_stats}
        f, new_stats = backbone.apply(variables, images, True)
        cosine = losses.cosine_logits(f, trained["class_embeddings"])
        logits = losses.cosface_logits(cosine, labels, scale=config.scale, margin=config.margin)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (new_stats, (cosine.argmax(-1) == labels).mean())

    # Positions in the table, or where there is none the images themselves.
    def step(state, table, rows, labels, flip):
        images = rows if table is None else table[rows]
        if augment:
            images = views(images, flip)
        (loss, (stats, accuracy)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
            state.trained, state.batch_stats, to_input(images, type_of(state.trained)), labels
        )
        updates, opt = optimizer.update(gradient, state.optimizer, state.trained)
        return (
            _State(optax.apply_updates(state.trained, updates), stats, opt),
            jnp.stack([loss, accuracy]),
        )

    return jax.jit(step, donate_argnums=0)


def _finite(loss, epoch) -> float:
    loss = float(loss)
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"the pretraining loss is {loss} in epoch {epoch + 1}; lower pretrain.lr or raise "
            "pretrain.warmup_epochs"
        )
    return loss
