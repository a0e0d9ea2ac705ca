"""Gallery search, used by both 1:N protocols (personalized and IJB-C)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int

from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.scores import padded_blocks, score_block
from fedfr_jax.evaluation.streaming import accept_rates, check_rates, rate_times, thresholds_at_far


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """Scores of probes against a gallery with one row (template) per identity.

    Attributes:
      mated_scores: (M,) score of each mated probe with its own row.
      mated_ranks: (M,) rank of the correct row, 1 = first; ties go to the first row.
      mated_tops: (M,) highest score of each mated probe.
      non_mated_tops: (Q - M,) highest score of each non-mated probe.
      non_mated_pairs: the highest non-mated (probe, row) scores, descending, at most ``keep``.
      num_non_mated_pairs: number of non-mated (probe, row) scores.
    """

    mated_scores: np.ndarray
    mated_ranks: np.ndarray
    mated_tops: np.ndarray
    non_mated_tops: np.ndarray
    non_mated_pairs: np.ndarray
    num_non_mated_pairs: int


def rows_of_subjects(subjects, gallery_subjects) -> np.ndarray:
    """Returns (Q,) the gallery row of each probe's subject, -1 for a non-mated probe.

    Args:
      subjects: (Q,) identity of each probe.
      gallery_subjects: (K,) identity of each gallery row.

    Raises:
      InputError: a subject has two gallery rows, or there is no row.
    """
    gallery_subjects = np.asarray(gallery_subjects)
    names, counts = np.unique(gallery_subjects, return_counts=True)
    if not names.size:
        raise InputError("the gallery is empty; 1:N needs at least one identity in it")
    if counts.max() > 1:
        raise InputError(
            f"subject {names[counts.argmax()]} occurs {counts.max()} times in the "
            "gallery; give each one row"
        )
    order = np.argsort(gallery_subjects)
    place = np.minimum(np.searchsorted(names, subjects), len(names) - 1)
    return np.where(names[place] == subjects, order[place], -1)


def search_gallery(
    probes: Float[np.ndarray, "Q d"],
    rows_of_probes: Int[np.ndarray, " Q"],
    gallery: Float[np.ndarray, "K d"],
    keep: int,
    *,
    block: int = 4096,
) -> SearchResult:
    """Compares every probe with every gallery row, a block of probes at a time.

    Args:
      probes: (Q, d) float32.
      rows_of_probes: (Q,) gallery row of the probe's identity, -1 if it has none.
      gallery: (K, d) float32.
      keep: how many of the highest non-mated (probe, row) scores to return.
      block: probes per block.
    """
    mated, non_mated = [], [np.zeros(0, np.float32)]
    best = np.zeros(0, np.float32)
    ((_, width, gallery_rows),) = padded_blocks(gallery, max(block, len(gallery)))
    for start, count, rows in padded_blocks(probes, block):
        scores = np.array(np.asarray(score_block(rows, gallery_rows))[:count, :width])
        right = rows_of_probes[start : start + count]
        known = right >= 0
        tops = scores.max(axis=1)
        non_mated.append(tops[~known])
        own, column = scores[known], right[known, None]
        own_score = np.take_along_axis(own, column, axis=1)
        ahead = (own > own_score) | ((own == own_score) & (np.arange(width) < column))
        mated.append(np.stack([own_score[:, 0], tops[known], ahead.sum(axis=1) + 1.0]))
        scores[np.flatnonzero(known), right[known]] = -np.inf
        if keep:
            best = np.concatenate([best, scores.ravel()])
            cut = max(0, best.size - keep)
            best = np.partition(best, cut)[cut:]
    mated_scores, mated_tops, mated_ranks = np.concatenate(mated, axis=1)
    best = np.sort(best[np.isfinite(best)])[::-1]
    return SearchResult(
        mated_scores=mated_scores.astype(np.float32),
        mated_ranks=mated_ranks.astype(np.int64),
        mated_tops=mated_tops.astype(np.float32),
        non_mated_tops=np.concatenate(non_mated),
        non_mated_pairs=best,
        num_non_mated_pairs=len(probes) * width - mated_scores.size,
    )


def pair_ranks(fpirs, num_probes: int) -> np.ndarray:
    """Returns (F,) int64 ``ceil(f Q)``: the pair rule's 1-based descending threshold ranks."""
    allowed = rate_times(fpirs, num_probes, "fpirs")
    return np.array([math.ceil(count) for count in allowed], np.int64)


def pair_is_resolvable(fpirs, num_probes: int) -> np.ndarray:
    """Returns (F,) bool, ``f Q > 1``: else the pair rule's threshold is the largest score."""
    return pair_ranks(fpirs, num_probes) > 1


def pair_rule(result: SearchResult, fpirs, num_probes: int) -> tuple[np.ndarray, np.ndarray]:
    """The paper's pair-based rule for 1:N.

    The threshold is the ``ceil(f Q)``-th largest non-mated (probe, row) score; the rate is
    the share of mated scores above it.

    Args:
      result: a search that kept at least ``max(pair_ranks(fpirs, num_probes))`` scores.
      fpirs: (F,) false-positive identification rates.
      num_probes: ``Q``, mated and non-mated.

    Returns:
      (F,) true-positive identification rates and (F,) thresholds; NaN where there are fewer
      non-mated scores than the rank, and rates NaN without mated probes.
    """
    ranks = pair_ranks(fpirs, num_probes)
    found = result.non_mated_pairs
    if np.any((ranks > found.size) & (ranks <= result.num_non_mated_pairs)):
        raise ValueError(f"the search kept {found.size} non-mated scores, need {ranks.max()}")
    thresholds = np.append(found, np.float32(np.nan))[np.minimum(ranks - 1, found.size)]
    return accept_rates(result.mated_scores, thresholds), thresholds


def open_set_rule(result: SearchResult, fpirs) -> tuple[np.ndarray, np.ndarray]:
    """The open-set standard (NIST) for 1:N.

    A mated probe counts if its top row is the correct one and scores above the threshold, which
    the threshold rule takes from the top scores of the non-mated probes.

    Args:
      result: outcome of a search.
      fpirs: (F,) false-positive identification rates.

    Returns:
      (F,) true-positive identification rates and (F,) thresholds; NaN without non-mated
      probes, and rates NaN without mated ones.
    """
    thresholds = thresholds_at_far(result.non_mated_tops, check_rates(fpirs, "fpirs"))
    hits = np.where(result.mated_ranks == 1, result.mated_tops, -np.inf)
    return accept_rates(hits, thresholds), thresholds


def rank_rates(result: SearchResult, ranks) -> np.ndarray:
    """Returns (R,) the share of mated probes whose correct row is among the first ``ranks``.

    NaN without mated probes.
    """
    ranks = np.asarray(ranks)
    if not result.mated_ranks.size:
        return np.full(ranks.shape, np.nan)
    return (result.mated_ranks <= ranks[:, None]).mean(axis=1)
