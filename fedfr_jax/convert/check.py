"""Which order of the colour channels weights expect, by their accuracy on verification pairs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax.algorithm.features import to_input
from fedfr_jax.convert.files import Weights
from fedfr_jax.data.folds import FOLDS, scorable
from fedfr_jax.data.types import VerificationSet
from fedfr_jax.data.verification import read_bin
from fedfr_jax.evaluation.verification import PairResult, embed_with_mirror, evaluate_pairs
from fedfr_jax.models import build
from fedfr_jax.models.preprocessing import CHANNELS
from fedfr_jax.models.weights import weights_of
from fedfr_jax.runtime.progress import Bar, track

_BATCH = 128  # images
_NOISE = 2.0  # standard errors of a difference


def check(weights: Weights, pairs_file: str) -> dict[str, PairResult]:
    """Accuracy (10 folds, image and mirror image) if the network expects RGB, and BGR.

    Args:
      weights: the network.
      pairs_file: a verification set, such as ``lfw.bin``.

    Returns:
      Result by order of the channels.

    Raises:
      InputError: the file cannot be read.
    """
    size = weights.preprocessing.image_size
    pairs = scorable(read_bin(pairs_file, size))
    whole = _BATCH * math.ceil(len(pairs.images) / _BATCH)  # with the filling of the last batch
    with track(f"{pairs.name} in RGB and BGR", 4 * whole, "image") as bar:
        return {order: _accuracy(weights, pairs, order, bar) for order in CHANNELS}


def _accuracy(weights: Weights, pairs: VerificationSet, order: str, bar: Bar) -> PairResult:
    file = weights.file
    preprocessing = dataclasses.replace(weights.preprocessing, channels=order)
    network = build(weights.structure.config(), preprocessing.image_size)
    file = dataclasses.replace(file, preprocessing=preprocessing)
    embed = _counted(_embedding(network.apply, weights_of(file, network, "the weights")), bar)
    embeddings = embed_with_mirror(embed, pairs.images, _BATCH)
    return evaluate_pairs(embeddings, pairs.is_same, (1e-3,))


def _embedding(apply, variables) -> Callable[[np.ndarray], np.ndarray]:
    @jax.jit
    def run(variables, images):
        return apply(variables, to_input(images, jnp.float32), False)[0]

    return lambda images: np.asarray(run(variables, images))


def _counted(embed: Callable[[np.ndarray], np.ndarray], bar: Bar):
    def run(images):
        found = embed(images)
        bar.update(len(images), images=len(images))
        return found

    return run


def verdict(results: Mapping[str, PairResult], assumed: str) -> tuple[str, ...]:
    """Lines for the user: both accuracies, and a warning if the other order is better.

    It is better if it exceeds two standard errors of the difference between two means over folds.

    Args:
      results: from :func:`check`.
      assumed: the order that is recorded or assumed.
    """
    lines = [
        f"{order}: accuracy {100 * r.accuracy:.2f} % ± {100 * r.accuracy_std:.2f}"
        + (" (as recorded or assumed)" if order == assumed else "")
        for order, r in results.items()
    ]
    other = next(order for order in results if order != assumed)
    better, here = results[other], results[assumed]
    noise = math.hypot(better.accuracy_std, here.accuracy_std) / math.sqrt(FOLDS)
    if better.accuracy - here.accuracy > _NOISE * noise:
        lines.append(
            f"warning: the weights seem to expect {other}, not {assumed}; convert them with "
            f"--channels={other}"
        )
    return tuple(lines)
