"""A simulation put together from its settings: data, split, model, compiled round.

A thin shell: everything it calls is a pure function of arrays, usable without it.
"""
from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fedfr_jax import data as data_sources
from fedfr_jax import engine, fedfr
from fedfr_jax.config import Config, ConfigError
from fedfr_jax.data.split import make_split
from fedfr_jax.data.types import FederatedSplit, ImageSource, VerificationSet
from fedfr_jax.data.verification import leave_out, original_labels, read_bin
from fedfr_jax.initialize import (
    VerificationData,
    federated_data,
    verification_data,
)
from fedfr_jax.models import Backbone, build
from fedfr_jax.ops.conv import default_strategy
from fedfr_jax.state import FederatedData

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Simulation:
    """Everything that does not change from round to round.

    Attributes:
      config: the settings.
      source: where images come from; ``split``: who holds which.
      data: training images of everybody, on the devices.
      verification: held-out images of the clients' identities.
      generic: pairs of people that nobody trained on.
      backbone: the network where its weights are shared (pretraining, evaluation).
      method: what a client does; its network may compute convolutions otherwise.
      layout: devices and lanes.
    """

    config: Config
    source: ImageSource
    split: FederatedSplit
    data: FederatedData
    verification: VerificationData
    generic: tuple[VerificationSet, ...]
    backbone: Backbone
    method: fedfr.Method
    layout: fedfr.Layout


def use_cpu_devices(count: int) -> None:
    """Makes ``count`` XLA devices of this machine's CPU (0: one per core).

    On a CPU devices, not vmap lanes, are what runs clients side by side. Must
    be called before JAX is used; has no effect where a GPU or TPU is found.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return  # the user has chosen
    jax.config.update("jax_num_cpu_devices", count or len(os.sched_getaffinity(0)))


def make_layout(config: Config) -> fedfr.Layout:
    """Devices and lanes for these settings; clients side by side never exceed their number."""
    clients = config.fed.num_clients
    mesh = engine.make_mesh(jax.devices()[:clients])
    lanes = config.engine.lanes or (1 if jax.default_backend() == "cpu" else 8)
    return fedfr.Layout(mesh, min(lanes, -(-clients // mesh.size)), config.engine.feature_batch)


def make_method(config: Config, layout: fedfr.Layout) -> tuple[Backbone, fedfr.Method]:
    """(network for shared weights, what a client does)."""
    conv = config.engine.conv

    def backbone(lanes):
        chosen = default_strategy(lanes) if conv == "auto" else conv
        return build(config.model, config.data.image_size, chosen)

    return backbone(1), fedfr.Method(backbone(layout.lanes), config.fed, config.loss)


def build_simulation(config: Config) -> Simulation:
    """Opens the data, splits it, reads the images and builds the model.

    Args:
      config: from :func:`fedfr_jax.config.resolve`.

    Raises:
      ConfigError, InputError: a setting or a file does not fit, before any long work.
    """
    layout = make_layout(config)
    backbone, method = make_method(config, layout)
    source = data_sources.open_source(config.data)
    split = make_split(source.labels, config.fed.num_clients, config.data.split,
                       config.data.seed, min_client_images=config.fed.batch_size)
    if not len(split.public_images) and (method.uses_public or config.pretrain.epochs):
        raise ConfigError("data.split leaves no public identities, but fed.public_data="
                          f"{config.fed.public_data!r} and pretrain.epochs="
                          f"{config.pretrain.epochs} need them")
    generic = verification_sets(config, source, split)
    data = engine.replicate(federated_data(source, split), layout.mesh)
    return Simulation(config, source, split, data, verification_data(source, split), generic,
                      backbone, method, layout)


def verification_sets(config: Config, source: ImageSource,
                      split: FederatedSplit) -> tuple[VerificationSet, ...]:
    """The held-out pairs of the split, and the ``.bin`` sets without trained identities."""
    sets = []
    if len(split.pairs):
        sets.append(VerificationSet("held-out people", source.read(split.pairs.reshape(-1)),
                                    split.pairs_same))
    trained = np.concatenate([split.public_identities, *(c.identities for c in split.clients)])
    labels = config.data.verification_labels or ("",) * len(config.data.verification_sets)
    folder = pathlib.Path(config.data.root)
    for name, label_name in zip(config.data.verification_sets, labels, strict=True):
        pairs = read_bin(folder / name, config.data.image_size, config.data.workers)
        if label_name:
            pairs = leave_out(pairs, folder / label_name, original_labels(source, trained))
        sets.append(pairs)
    return tuple(sets)


def compile_round(sim: Simulation) -> Callable[..., tuple]:
    """``(server, heads, data, key) -> (server, heads, metrics)``; server and heads are donated."""
    everywhere = NamedSharding(sim.layout.mesh, P())
    return jax.jit(
        lambda server, heads, data, key: fedfr.run_round(
            sim.method, sim.layout, server, heads, data, key),
        donate_argnums=(0, 1), out_shardings=everywhere)


def round_key(config: Config) -> jax.Array:
    """The key from which all randomness of the rounds comes."""
    return jax.random.fold_in(jax.random.key(config.seed), 3)


def make_embed(sim: Simulation) -> Callable[[PyTree, np.ndarray], np.ndarray]:
    """``(variables, images (N, S, S, 3) uint8) -> (N, d)`` features of the shared backbone."""

    @jax.jit
    def run(variables, images):
        return engine.map_blocks(lambda v, x: fedfr.features(sim.backbone, v, x), variables,
                                 images, mesh=sim.layout.mesh, block=sim.config.eval.batch_size)

    return lambda variables, images: np.asarray(
        run(*engine.replicate((variables, images), sim.layout.mesh)))


def make_personal_embed(sim: Simulation) -> Callable[..., np.ndarray]:
    """``(previous, transform, images) -> (N, d)`` features of one client's personalized model."""

    @jax.jit
    def run(model, images):
        return engine.map_blocks(
            lambda m, x: fedfr.personal_features(
                dataclasses.replace(sim.method, backbone=sim.backbone), *m, x),
            model, images, mesh=sim.layout.mesh, block=sim.config.eval.batch_size)

    return lambda previous, transform, images: np.asarray(
        run(*engine.replicate(((previous, transform), images), sim.layout.mesh)))
