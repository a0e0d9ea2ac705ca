"""Generic verification on image pairs: the 10-fold protocol of insightface's .bin sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from fedfr_jax.data.batches import by_batches
from fedfr_jax.data.folds import FOLDS, make_folds
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.scores import on_grid
from fedfr_jax.evaluation.streaming import (
    accept_rates,
    check_rates,
    far_is_resolvable,
    thresholds_at_far,
    unit_rows,
)

DISTANCE_THRESHOLDS = np.arange(0, 4, 0.01)
_ROC_POINTS = 200


@dataclasses.dataclass(frozen=True)
class PairResult:
    """Outcome of :func:`evaluate_pairs`.

    Attributes:
      accuracy: mean accuracy over the folds, in [0, 1].
      accuracy_std: its population standard deviation over the folds.
      threshold: mean over the folds of the chosen squared-distance threshold.
      fars: (F,) requested false-accept rates.
      tar_at_far: (F,) true-accept rates, aligned with ``fars``.
      resolvable: (F,) bool, whether the number of impostor pairs resolves the rate.
      roc: (false-accept rates, true-accept rates), at most about 200 points, ascending.
      scores: (P,) float64 cosines of the pairs.
      mixed_folds: whether pairs were shuffled because a fold lacked genuine or impostor pairs.
    """

    accuracy: float
    accuracy_std: float
    threshold: float
    fars: np.ndarray
    tar_at_far: np.ndarray
    resolvable: np.ndarray
    roc: tuple[np.ndarray, np.ndarray]
    scores: np.ndarray
    mixed_folds: bool = False


def evaluate_pairs(
    embeddings: Float[np.ndarray, "2P d"],
    is_same: Bool[np.ndarray, " P"],
    fars: Any,
    folds: int = FOLDS,
) -> PairResult:
    """Verifies pairs with the protocol of published results on LFW, CFP-FP and AgeDB-30.

    Squared distances of the normalized embeddings are compared with thresholds 0, 0.01, …,
    3.99; each fold (:func:`~fedfr_jax.data.folds.make_folds`) uses the threshold that
    is most accurate on the others (the smallest, if several are). True-accept rates follow
    the threshold rule of :mod:`fedfr_jax.evaluation.streaming`, on all cosines.

    Args:
      embeddings: (2P, d); pair ``p`` is rows ``2p`` and ``2p + 1``.
      is_same: (P,) bool, whether the pair shows one person.
      fars: (F,) false-accept rates.
      folds: number of parts.

    Raises:
      InputError: sizes do not fit, an embedding is not finite, or there are fewer genuine or
        impostor pairs than folds.
    """
    is_same = np.asarray(is_same, bool)
    fars = check_rates(fars)
    unit = unit_rows(embeddings, "embeddings").astype(np.float64)
    if is_same.ndim != 1 or len(unit) != 2 * len(is_same):
        raise InputError(
            f"{len(unit)} embeddings do not make {is_same.shape} pairs; "
            "give two embeddings per pair"
        )
    division = make_folds(is_same, folds)
    left, right = unit[0::2], unit[1::2]
    distances = np.square(left - right).sum(axis=1)
    scores = on_grid(np.einsum("pd,pd->p", left, right))
    accuracies, chosen = _fold_accuracies(distances, is_same, division.parts)
    genuine, impostor = scores[is_same], scores[~is_same]
    return PairResult(
        accuracy=float(accuracies.mean()),
        accuracy_std=float(accuracies.std()),
        threshold=float(chosen.mean()),
        fars=fars,
        tar_at_far=accept_rates(genuine, thresholds_at_far(impostor, fars)),
        resolvable=far_is_resolvable(fars, impostor.size),
        roc=roc_curve(genuine, impostor),
        scores=scores,
        mixed_folds=division.mixed,
    )


def _fold_accuracies(distances, is_same, parts) -> tuple[np.ndarray, np.ndarray]:
    right = np.stack(
        [
            ((distances[part] < DISTANCE_THRESHOLDS[:, None]) == is_same[part]).sum(axis=1)
            for part in parts
        ]
    )  # (folds, thresholds) correct decisions
    sizes = np.array([len(part) for part in parts])
    others = (right.sum(axis=0) - right) / (len(distances) - sizes)[:, None]
    best = np.argmax(others, axis=1)
    accuracies = right[np.arange(len(parts)), best] / sizes
    return accuracies, DISTANCE_THRESHOLDS[best]


def roc_curve(
    positives: Float[np.ndarray, " P"], negatives: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
    """Returns at most about 200 exact points of the curve, dense at low false-accept rates.

    Args:
      positives: (P,) scores of genuine comparisons.
      negatives: (N,) scores of impostor comparisons.

    Returns:
      (false-accept rates, true-accept rates), both ascending, from FAR 0 to (1, 1); empty if
      there are no scores of one kind.
    """
    if not positives.size or not negatives.size:
        return np.zeros(0), np.zeros(0)
    n = negatives.size
    ranks = np.unique(
        np.concatenate(
            [
                np.geomspace(1, n, _ROC_POINTS // 2).astype(np.int64) - 1,
                np.linspace(0, n - 1, _ROC_POINTS // 2).astype(np.int64),
            ]
        )
    )
    cuts = np.sort(negatives)[::-1][ranks]
    far = np.append(accept_rates(negatives, cuts), 1.0)
    tar = np.append(accept_rates(positives, cuts), 1.0)
    return far, tar


def embed_with_mirror(
    embed: Callable[[np.ndarray], np.ndarray], images, batch_size: int, normalize: bool = True
) -> np.ndarray:
    """Embeds images as the sum of the features of an image and of its horizontal mirror.

    Args:
      embed: maps (batch_size, S, S, 3) uint8 images to (batch_size, d) features; always
        called with that many images, so that a jitted function compiles once.
      images: (N, S, S, 3) uint8.
      batch_size: images per call.
      normalize: scale each sum to length one; False for the template protocols.

    Returns:
      (N, d) float32.

    Raises:
      InputError: there are no images, or a feature is not finite.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not len(images) or batch_size < 1:
        raise InputError(
            f"images must be (N, S, S, 3) with N > 0 and batch_size positive, got "
            f"shape {images.shape} and batch_size {batch_size}"
        )

    def of_batch(batch: np.ndarray) -> np.ndarray:
        both = np.asarray(embed(batch)) + np.asarray(embed(batch[:, :, ::-1]))
        return both.astype(np.float32)

    total = by_batches(of_batch, images, batch_size)
    unit = unit_rows(total, "image features")
    return unit if normalize else total
