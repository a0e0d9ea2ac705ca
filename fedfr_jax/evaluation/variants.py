"""Evaluates each client with its own model, and with alternative personalized models.

The paper's personalized model is the client's own backbone, before averaging, followed by the
client's transform. Each alternative leaves out one of the two, or averages own and global
weights. All of them are evaluated in one pass over the clients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
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
from fedfr_jax.evaluation.names import (
    GLOBAL,
    GLOBAL_TRANSFORM,
    MEAN,
    OWN_BACKBONE,
    PERSONALIZED,
    SELECTED,
)
from fedfr_jax.evaluation.personalized import personal_verification

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Validation:
    """What a client chooses its model on.

    Attributes:
      images: client's number -> (its validation images (M, S, S, 3), their labels (M,)).
      public: (N, S, S, 3) uint8 images of other people, as impostors.
    """

    images: Callable[[int], tuple[np.ndarray, np.ndarray]]
    public: np.ndarray


def assess_personalized(
    assessor: Assessor, models: PersonalModels, tick=lambda: None
) -> Assessment:
    """Each client's own model, under that client's protocol."""

    def features(model, inputs: np.ndarray) -> dict[str, np.ndarray]:
        return {PERSONALIZED: assessor.after_transform(model, assessor.embed(model[0], inputs))}

    return _over_clients(assessor, models, features, tick)[0][PERSONALIZED]


def assess_variants(
    assessor: Assessor,
    models: PersonalModels,
    backbone: PyTree,
    tick=lambda: None,
    validation: Validation | None = None,
) -> tuple[dict[str, Assessment], list[str]]:
    """The personalized models, and the others that a client could call its own.

    Args:
      backbone: variables of the global model.
      validation: what clients choose their models on; None: they do not.

    Returns:
      (name -> assessment, the model that each client chose). ``PERSONALIZED`` is as from
      :func:`assess_personalized`; ``MEAN``; for a method with a transform ``OWN_BACKBONE`` and
      ``GLOBAL_TRANSFORM``; with ``validation`` ``SELECTED``.
    """

    def features(model, inputs: np.ndarray) -> dict[str, np.ndarray]:
        own = assessor.embed(model[0], inputs)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, model[0], backbone)
        found = {
            PERSONALIZED: assessor.after_transform(model, own),
            MEAN: assessor.embed(mean, inputs),
        }
        if assessor.transform is None and validation is None:
            return found
        shared = assessor.embed(backbone, inputs)
        if assessor.transform is not None:
            found |= {OWN_BACKBONE: own, GLOBAL_TRANSFORM: assessor.after_transform(model, shared)}
        return found if validation is None else found | {GLOBAL: shared}

    choose = None
    if validation is not None:
        read, public = validation.images, assessor.lower(validation.public)

        def choose(client: int, model) -> str:
            images, labels = read(client)
            of_model = features(model, np.concatenate([assessor.lower(images), public]))
            return best_model(of_model, labels, assessor.settings.fars)

    found, chosen = _over_clients(assessor, models, features, tick, choose)
    return {name: found[name] for name in found if name != GLOBAL}, chosen


def best_model(found: dict[str, np.ndarray], labels: np.ndarray, fars: Sequence[float]) -> str:
    """The model with the highest TAR on a client's validation images, mean over the rates.

    Args:
      found: model -> features of the validation images, then of public images, (M + N, d). Of
        equal models the first is taken.
      labels: (M,) labels of the validation images.
      fars: false-accept rates.
    """
    others = next(iter(found.values())).shape[0] - len(labels)
    everybody = np.concatenate([labels, labels.max() + 1 + np.arange(others)])
    own = np.arange(len(everybody)) < len(labels)

    def score(name: str) -> float:
        tar = personal_verification(found[name], everybody, own, fars).tar
        return float(np.nan_to_num(tar, nan=-1.0).mean())

    return max(found, key=score)


def _over_clients(
    assessor: Assessor,
    models: PersonalModels,
    features: Callable,
    tick: Callable[[], Any],
    choose: Callable[[int, Any], str] | None = None,
) -> tuple[dict[str, Assessment], list[str]]:
    """Every client's protocol for ``features(model, inputs) -> name -> (N, d)``.

    Args:
      choose: ``(client, its model) -> name`` of what goes under ``SELECTED``.

    Returns:
      (name -> assessment, what each client chose).
    """
    numbers = assessor.held_out.numbers

    def of_client(position: int) -> tuple[dict, str]:
        client = int(numbers[position])
        model = models(client)
        inputs, labels = gallery(assessor, position)
        of_probes, of_gallery = features(model, assessor.probes), features(model, inputs)
        results = {
            name: client_results(assessor, position, found, of_gallery[name], labels)
            for name, found in of_probes.items()
        }
        chosen = ""
        if choose is not None:
            chosen = choose(client, model)
            results[SELECTED] = results[chosen]
        tick()
        return results, chosen

    results, chosen = assessor.share.over_clients(numbers, of_client)
    return (
        {name: Assessment({}, *zip(*found, strict=True)) for name, found in results.items()},
        chosen,
    )
