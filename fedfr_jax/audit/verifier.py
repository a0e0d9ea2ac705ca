"""The face recognizer that decides whether a reconstruction still shows the person."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from fedfr_jax.audit.candidates import sums_of_people
from fedfr_jax.audit.opened import TrainedRun
from fedfr_jax.evaluation.streaming import far_is_resolvable, thresholds_at_far, unit_rows

FAR = 1e-3
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Verifier:
    """A recognizer.

    Attributes:
      name: for tables.
      is_own: whether it is the run's own pretrained model, which knows no other faces.
      image_size: side of its images; others are resized.
      embed: (n, S, S, 3) uint8 of any size to (n, d) unit features.
    """

    name: str
    is_own: bool
    image_size: int
    embed: Callable[[np.ndarray], np.ndarray]


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """(n, S, S, 3) uint8 images at another size (bicubic), as they are if it is theirs."""
    if images.shape[1] == size:
        return images
    return np.stack(
        [
            np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BICUBIC))
            for i in images
        ]
    )


def open_verifier(path: str, run: TrainedRun) -> Verifier:
    """The verifier that is named, or the run's own pretrained model.

    Args:
      path: an exported model, a work directory, or a file of weights (.npz, .safetensors, .pth);
        "": the pretrained model of ``run``.
      run: the run that is audited.

    Raises:
      InputError: there is no such model.
    """
    if not path:
        size = run.sim.config.data.image_size
        return Verifier(
            "the run's own pretrained model",
            True,
            size,
            lambda images: run.features(run.pretrained, run.lower(images)),
        )
    place = pathlib.Path(path).expanduser()
    import fedfr_jax  # noqa: PLC0415 - a lazy export

    model = fedfr_jax.load_model(place)
    return Verifier(
        place.name,
        False,
        model.image_size,
        lambda images: model.embed(
            resized(images, model.image_size), batch_size=_BATCH, mirror=False
        ),
    )


@dataclasses.dataclass(frozen=True)
class Gallery:
    """People to be found, and the threshold above which a cosine counts as the same person.

    Attributes:
      centers: (K, d) unit rows, of images other than those that are attacked.
      threshold: the cosine at a false-accept rate of ``FAR`` between images of different people.
      pairs: how many such comparisons it rests on; ``resolved``: whether they resolve the rate.
    """

    centers: np.ndarray
    threshold: float
    pairs: int
    resolved: bool


def make_gallery(features: np.ndarray, person: np.ndarray) -> Gallery:
    """A gallery from images of people.

    Args:
      features: (n, d) of length one.
      person: (n,) whole numbers in [0, K), each at least once.
    """
    total = sums_of_people(features, person)
    scores = features @ features.T
    once = np.triu(np.ones(scores.shape, bool), 1) & (person[:, None] != person)
    negatives = scores[once]
    if not len(negatives):
        return Gallery(unit_rows(total), float("nan"), 0, False)
    return Gallery(
        unit_rows(total),
        float(thresholds_at_far(negatives, FAR)[0]),
        len(negatives),
        bool(far_is_resolvable(FAR, len(negatives))[0]),
    )
