"""How often the answers are right, where it is known who the probes are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from fedfr_jax.identify.gallery import Gallery, Matches
from fedfr_jax.identify.thresholds import Thresholds
from fedfr_jax.reporting.result_table import Cell, ResultTable
from fedfr_jax.reporting.tables import percent


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Shares of right and wrong answers; NaN where there is nothing to count.

    Attributes:
      enrolled: probes of enrolled people.
      strangers: the other probes.
      first: share of the enrolled probes whose best match is right (rank 1).
      within: the share for which the right person is among the ``k`` best.
      k: see ``within``.
      identified: share of the enrolled whose best match is right and accepted.
      misidentified: share of the enrolled whose best match is wrong and accepted.
      taken: share of the strangers whose best match is accepted.
      true_accepts: 1:1, share accepted of comparisons with the right person.
      false_accepts: 1:1, share accepted of comparisons with another person.
      false_comparisons: number of the latter.
    """

    enrolled: int
    strangers: int
    first: float
    within: float
    k: int
    identified: float
    misidentified: float
    taken: float
    true_accepts: float
    false_accepts: float
    false_comparisons: int


def assess(
    gallery: Gallery,
    features: np.ndarray,
    people: Sequence[str],
    matches: Matches,
    thresholds: Thresholds,
) -> Accuracy:
    """Compares the answers with the truth.

    Args:
      gallery: the enrolled people.
      features: (n, d) features of the probes.
      people: (n) who they are.
      matches: of a search with these features.
      thresholds: for 1:N and 1:1.
    """
    rows = gallery.rows_of(people)
    known = rows >= 0
    hit = matches.rows == rows[:, None]
    accepted = matches.scores[:, 0] > np.float32(thresholds.search.value)
    pair, own, others, start = np.float32(thresholds.pair.value), 0, 0, 0
    for block in gallery.score_blocks(features):
        right = rows[start : start + len(block)]
        start += len(block)
        above = block > pair
        mine = above[np.flatnonzero(right >= 0), right[right >= 0]].sum()
        own, others = own + int(mine), others + int(above.sum() - mine)
    false = len(rows) * len(gallery.names) - int(known.sum())
    return Accuracy(
        enrolled=int(known.sum()),
        strangers=int((~known).sum()),
        first=_share(hit[known, 0]),
        within=_share(hit[known].any(axis=1)),
        k=matches.rows.shape[1],
        identified=_share(hit[known, 0] & accepted[known]),
        misidentified=_share(~hit[known, 0] & accepted[known]),
        taken=_share(accepted[~known]),
        true_accepts=own / known.sum() if known.any() else math.nan,
        false_accepts=others / false if false else math.nan,
        false_comparisons=false,
    )


def _share(right: np.ndarray) -> float:
    return float(right.mean()) if right.size else math.nan


def accuracy_table(found: Accuracy) -> ResultTable:
    """The shares, in percent."""
    columns = (
        "rank 1",
        f"rank {found.k}",
        "right and accepted",
        "wrong and accepted",
        "strangers accepted",
        "1:1 true accepts",
        "1:1 false accepts",
    )
    values = (
        found.first,
        found.within,
        found.identified,
        found.misidentified,
        found.taken,
        found.true_accepts,
        found.false_accepts,
    )
    return ResultTable(
        "Accuracy on the probes, in %",
        columns,
        (("all probes", tuple(Cell(percent(value)) for value in values)),),
        (
            f"{found.enrolled:,} probes of enrolled people, {found.strangers:,} of others. 1:1: "
            f"each probe claims to be each person; {found.false_comparisons:,} claims are false.",
        ),
        heading="",
    )
