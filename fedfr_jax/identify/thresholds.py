"""Thresholds for a false-accept rate, and what they rest on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.streaming import (
    check_rates,
    far_is_resolvable,
    threshold_ranks,
    thresholds_at_far,
)
from fedfr_jax.identify.gallery import Gallery


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A score is accepted if it is greater than this one.

    Attributes:
      value: a cosine.
      rate: the false-accept rate that it is for; None if the threshold was given.
      scores: how many scores of strangers it rests on; 0 if it was given.
      resolved: whether so many scores resolve the rate; if not, it is the highest of them.
    """

    value: float
    rate: float | None = None
    scores: int = 0
    resolved: bool = True


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """The thresholds of both tasks.

    Attributes:
      pair: of 1:1: the rate is the share accepted of comparisons of a stranger with one person.
      search: of 1:N: the rate is the share of strangers who are taken for anybody enrolled.
      source: what they were calibrated on, in words.
    """

    pair: Threshold
    search: Threshold
    source: str

    def warnings(self) -> list[str]:
        """What a user must know."""
        return [
            f"{task}: a rate of {kind.rate:g} needs at least {math.ceil(1 / kind.rate):,} scores "
            f"of strangers; there are {kind.scores:,} ({self.source}). The threshold is the "
            "highest of them, and the true rate is uncertain"
            for task, kind in (("1:1", self.pair), ("1:N", self.search))
            if kind.rate and not kind.resolved
        ]


def fixed(value: float, source: str = "the threshold given") -> Thresholds:
    """One cosine for both tasks.

    Raises:
      InputError: it is not between -1 and 1.
    """
    if not -1 <= value <= 1:
        raise InputError(f"the threshold is {value}; it is a cosine, from -1 to 1")
    return Thresholds(Threshold(value), Threshold(value), source)


def calibrate(
    gallery: Gallery, strangers: np.ndarray, far: float, *, source: str = "impostors"
) -> Thresholds:
    """Thresholds from images of people who are not enrolled.

    Args:
      gallery: the enrolled people.
      strangers: (n, d) features.
      far: the false-accept rate, of comparisons for 1:1 and of searches for 1:N.
      source: what to call them.

    Raises:
      InputError: the rate is not between 0 and 1, or there is no score.
    """
    return _calibrate(gallery, strangers, None, far, source)


def calibrate_on_gallery(gallery: Gallery, far: float) -> Thresholds:
    """Thresholds from the enrolled images themselves, each compared with all other people.

    Raises:
      InputError: as :func:`calibrate`; also with one person enrolled, as nobody is a stranger.
    """
    if len(gallery.names) < 2:
        raise InputError(
            "with one person enrolled there are no scores between people; give images of other "
            "people (--impostors) or a threshold (--threshold)"
        )
    source = f"the gallery's own {len(gallery.image_features):,} images against other people"
    return _calibrate(gallery, gallery.image_features, gallery.image_rows, far, source)


def _calibrate(gallery, features, own, far: float, source: str) -> Thresholds:
    check_rates(far, "far")
    count = len(features) * (len(gallery.names) - (own is not None))
    if not count:
        raise InputError(f"{source}: no scores between people; give images of others")
    keep = int(threshold_ranks(far, count)[0]) + 1
    best, tops, start = np.zeros(0, np.float32), [], 0
    for block in gallery.score_blocks(features):
        scores = np.array(block)
        if own is not None:
            scores[np.arange(len(scores)), own[start : start + len(scores)]] = -np.inf
        start += len(scores)
        tops.append(scores.max(axis=1))
        best = np.concatenate([best, scores.ravel()])
        best = np.partition(best, best.size - min(keep, best.size))[-keep:]
    return Thresholds(
        _threshold(float(best.min()), far, count),
        _threshold(float(thresholds_at_far(np.concatenate(tops), far)[0]), far, len(features)),
        source,
    )


def _threshold(value: float, far: float, scores: int) -> Threshold:
    return Threshold(value, far, scores, bool(far_is_resolvable(far, scores)[0]))


def of_card(card: Mapping[str, Any], far: float) -> Thresholds | None:
    """The threshold that a model's card has for a rate, ``thresholds: {"0.001": 0.31}``.

    It was found on the run's own people, so it says little about others.
    """
    found = card.get("thresholds")
    for rate, value in found.items() if isinstance(found, Mapping) else ():
        try:
            if math.isclose(float(rate), far, rel_tol=1e-9):
                return fixed(float(value), f"the model's card, for a rate of {far:g}")
        except (TypeError, ValueError):
            continue
    return None
