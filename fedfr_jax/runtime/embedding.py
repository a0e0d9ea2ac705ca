"""Features of images on the host under a simulation's models, batch by batch on its devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fedfr_jax import engine
from fedfr_jax.algorithm.features import features, personal_features
from fedfr_jax.algorithm.transforms import TRANSFORMS
from fedfr_jax.data.batches import equal_batches
from fedfr_jax.runtime.simulation import Simulation

PyTree = Any


def make_embed(sim: Simulation) -> Callable[[PyTree, np.ndarray], np.ndarray]:
    """``(variables, images) -> (N, d)`` features of the shared backbone.

    Images are (N, S, S, 3) uint8, or what :func:`fedfr_jax.runtime.activations.lower_part` makes
    of them.
    """
    return in_batches(sim, lambda variables, x: features(sim.backbone, variables, x))


def make_personal_embed(sim: Simulation) -> Callable[..., np.ndarray]:
    """``((backbone, transform), images) -> (N, d)`` features of one personalized model."""
    spec = dataclasses.replace(sim.spec, backbone=sim.backbone)
    return in_batches(sim, lambda model, x: personal_features(spec, model[0], model[1], x))


def make_transform(sim: Simulation) -> Callable[[PyTree, np.ndarray], np.ndarray] | None:
    """``(a client's transform, features (N, d)) -> (N, d)``; None: the method has none."""
    terms = sim.spec.terms
    if not sim.spec.uses_binary or terms.transform == "none":
        return None
    return in_batches(sim, TRANSFORMS[terms.transform].apply)


def own_mesh(sim: Simulation) -> Mesh:
    """The devices that this process uses without the others, as for images of its own clients."""
    return sim.layout.mesh if jax.process_count() == 1 else engine.make_mesh(jax.local_devices())


def in_batches(sim: Simulation, embed) -> Callable[[PyTree, np.ndarray], np.ndarray]:
    """Runs ``embed`` on images of the host, batches of one size spread over :func:`own_mesh`."""
    mesh = own_mesh(sim)
    size = sim.config.eval.batch_size * mesh.size
    run = jax.jit(lambda model, images: engine.on_each_device(embed, model, images, mesh=mesh))

    def run_all(model, images):
        model, out = engine.replicate(engine.addressable(model), mesh), []
        for _, batch in equal_batches(images, size):
            out.append(run(model, engine.spread(batch, mesh)))
        parts = jax.device_get(out)  # after the last batch is under way
        return np.concatenate(parts)[: len(images)]

    return run_all
