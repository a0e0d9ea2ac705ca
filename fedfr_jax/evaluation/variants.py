"""Evaluates each client with its own model, and with alternative personalized models.

The paper's personalized model is the client's own backbone, before averaging, followed by the
client's transform. Each alternative leaves out one of the two, or averages own and global
weights. All of them are evaluated in one pass over the clients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedfr_jax.evaluation.assess import (
    Assessment,
    Assessor,
    PersonalModels,
    client_results,
    gallery,
)

PyTree = Any
PERSONALIZED = "personalized"
OWN_BACKBONE = "own backbone"  # without transform
GLOBAL_TRANSFORM = "global + transform"
MEAN = "own/global mean"  # of the weights, without transform


def assess_personalized(
    assessor: Assessor, models: PersonalModels, tick=lambda: None
) -> Assessment:
    """Each client's own model, under that client's protocol."""

    def features(model, inputs: np.ndarray) -> dict[str, np.ndarray]:
        return {PERSONALIZED: _personal(assessor, model, assessor.embed(model[0], inputs))}

    return _over_clients(assessor, models, features, tick)[PERSONALIZED]


def assess_variants(
    assessor: Assessor, models: PersonalModels, backbone: PyTree, tick=lambda: None
) -> dict[str, Assessment]:
    """The personalized models and the alternatives.

    Args:
      backbone: variables of the global model.

    Returns:
      ``PERSONALIZED`` -> as from :func:`assess_personalized`; ``MEAN``; and, for a method with a
      transform, ``OWN_BACKBONE`` and ``GLOBAL_TRANSFORM``.
    """

    def features(model, inputs: np.ndarray) -> dict[str, np.ndarray]:
        own = assessor.embed(model[0], inputs)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, model[0], backbone)
        found = {PERSONALIZED: _personal(assessor, model, own), MEAN: assessor.embed(mean, inputs)}
        if assessor.transform is None:
            return found
        shared = _personal(assessor, model, assessor.embed(backbone, inputs))
        return found | {OWN_BACKBONE: own, GLOBAL_TRANSFORM: shared}

    return _over_clients(assessor, models, features, tick)


def _personal(assessor: Assessor, model: tuple[PyTree, PyTree], features: np.ndarray) -> np.ndarray:
    """(N, d) features after a client's transform, if the method has one."""
    return features if assessor.transform is None else assessor.transform(model[1], features)


def _over_clients(
    assessor: Assessor, models: PersonalModels, features: Callable, tick: Callable[[], Any]
) -> dict[str, Assessment]:
    """Every client's protocol for ``features(model, inputs) -> name -> (N, d)``."""
    held_out = assessor.held_out
    probes = assessor.lower(held_out.images)
    results: dict[str, list] = {}
    for position, client in enumerate(held_out.numbers):
        model = models(int(client))
        images, labels = gallery(assessor, position)
        of_probes = features(model, probes)
        of_gallery = features(model, assessor.lower(images))
        for name, found in of_probes.items():
            results.setdefault(name, []).append(
                client_results(assessor, position, found, of_gallery[name], labels)
            )
        tick()
    return {name: Assessment({}, *zip(*found, strict=True)) for name, found in results.items()}
