"""Closed-set search in a gallery with several images per identity and distractors (TinyFace)."""

from __future__ import annotations

import dataclasses

import numpy as np

from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.scores import padded_blocks, score_block
from fedfr_jax.evaluation.streaming import unit_rows


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Outcome of :func:`evaluate_retrieval`.

    Attributes:
      ranks: (R,) list lengths.
      rank_rates: (R,) share of probes with an image of their person within each list length.
      mean_average_precision: mean over probes, by the rule of TinyFace's published code.
      num_probes: Q.
    """

    ranks: np.ndarray
    rank_rates: np.ndarray
    mean_average_precision: float
    num_probes: int


def average_precision(places) -> float:
    """Average precision of one list, by trapezoids.

    This is the rule of TinyFace's published code (from Market-1501): at each image found, the mean
    of the precision there and one place earlier, which before the first place is 1.

    Args:
      places: (G,) places of the person's images in the list, from 1, ascending.
    """
    places = np.asarray(places, np.float64)
    count = np.arange(1, len(places) + 1)
    before = np.where(places > 1, (count - 1) / np.maximum(places - 1, 1), 1.0)
    return float(np.mean((count / places + before) / 2))


def evaluate_retrieval(
    probes, probe_ids, gallery, gallery_ids, *, ranks=(1, 5, 20), block: int = 256
) -> Retrieval:
    """Searches each probe among all gallery images; equal scores rank in the gallery's order.

    Args:
      probes: (Q, d) features.
      probe_ids: (Q,) int identities, each >= 0 and in the gallery.
      gallery: (K, d) features.
      gallery_ids: (K,) int identities; negative for distractors.
      ranks: (R,) list lengths, each at least 1.
      block: probes per block of scores; memory is about ``8 K`` bytes for each.

    Raises:
      InputError: sizes do not fit, a probe's person is not in the gallery, or a feature is not
        finite.
    """
    probes, gallery = unit_rows(probes, "probes"), unit_rows(gallery, "gallery")
    probe_ids, gallery_ids, ranks = map(np.asarray, (probe_ids, gallery_ids, ranks))
    if probe_ids.shape != (len(probes),) or gallery_ids.shape != (len(gallery),) or not len(probes):
        raise InputError(
            f"{len(probes)} probes and {len(gallery)} gallery images need as many identities, got "
            f"{probe_ids.shape} and {gallery_ids.shape}"
        )
    lost = np.setdiff1d(probe_ids, gallery_ids[gallery_ids >= 0])
    if lost.size:
        raise InputError(
            f"identity {lost[0]} of a probe has no image in the gallery ({lost.size} such "
            "identities); check that the lists belong together"
        )
    order = np.argsort(gallery_ids, kind="stable")
    starts = np.searchsorted(gallery_ids[order], probe_ids, "left")
    ends = np.searchsorted(gallery_ids[order], probe_ids, "right")
    first, precision = [], []
    ((_, width, columns),) = padded_blocks(gallery, len(gallery))
    for start, count, rows in padded_blocks(probes, block):
        scores = np.asarray(score_block(rows, columns))[:count, :width]
        for own, lo, hi in zip(scores, starts[start:], ends[start:], strict=False):
            places = _places(own, order[lo:hi])
            first.append(places[0])
            precision.append(average_precision(places))
    return Retrieval(
        ranks,
        (np.array(first) <= ranks[:, None]).mean(axis=1),
        float(np.mean(precision)),
        len(probes),
    )


def _places(scores: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(G,) ascending places, from 1, of some columns in the list of all."""
    places = [
        1 + np.count_nonzero(scores > scores[c]) + np.count_nonzero(scores[:c] == scores[c])
        for c in columns
    ]
    return np.sort(places)
