"""How well an attack tells members from others: AUC with an interval, and rates at low error.

Scores are higher for members. An attack that is right on average can still be harmless, and one
that is right for a few people only can be harmful: so the share of members that are found while
almost nobody else is accused (TPR at a low FPR) is given beside the AUC (Carlini et al., S&P 2022).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from fedfr_jax.evaluation.streaming import accept_rates, far_is_resolvable, thresholds_at_far

FPRS = (1e-3, 1e-2)
_DRAWS = 300
_POINTS = 300  # of a curve


@dataclasses.dataclass(frozen=True)
class Rates:
    """What an attack achieved.

    Attributes:
      auc: chance that a member scores higher than a non-member; 0.5: nothing is told.
      low, high: 95 % interval (bootstrap over people).
      tpr: for each of ``FPRS`` the share of members found.
      resolved: for each of ``FPRS`` whether there are enough non-members to resolve it.
      members, others: how many of each.
    """

    auc: float
    low: float
    high: float
    tpr: tuple[float, ...]
    resolved: tuple[bool, ...]
    members: int
    others: int

    def to_dict(self) -> dict:
        """For ``audit.json``; rates as in ``summary.json``."""
        names = [repr(rate) for rate in FPRS]
        return {
            "auc": self.auc,
            "low": self.low,
            "high": self.high,
            "tpr": dict(zip(names, self.tpr, strict=True)),
            "unresolvable": [n for n, good in zip(names, self.resolved, strict=True) if not good],
            "members": self.members,
            "others": self.others,
        }


def auc_of(values: np.ndarray, is_member: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The area under the ROC curve, ties counted half.

    Args:
      values: (n,) scores.
      is_member: (n,) bool.
      weights: (n,) how often each counts; None: once.

    Returns:
      A number in [0, 1]; NaN without members or without others.
    """
    _, place = np.unique(values, return_inverse=True)
    return _area(place, is_member, np.ones(len(values)) if weights is None else weights)


def _area(place: np.ndarray, is_member: np.ndarray, weights: np.ndarray) -> float:
    size = int(place.max(initial=-1)) + 1
    positive = np.bincount(place, weights * is_member, size)
    negative = np.bincount(place, weights * ~is_member, size)
    if not positive.sum() or not negative.sum():
        return float("nan")
    below = np.cumsum(negative) - negative / 2
    return float(positive @ below / (positive.sum() * negative.sum()))


def rates_of(
    values: np.ndarray, is_member: np.ndarray, people: np.ndarray, seed: int = 0
) -> Rates | None:
    """Measures an attack.

    The interval is a percentile bootstrap over *people*: images of one person are not independent.
    People with and people without member images are drawn separately.

    Args:
      values: (n,) scores, higher for members; NaN where the attack has none.
      is_member: (n,) bool.
      people: (n,) whole numbers, whose image it is.
      seed: of the bootstrap.

    Returns:
      None if nothing is left to compare.
    """
    known = np.isfinite(values)
    values, is_member, people = values[known], is_member[known], people[known]
    if not is_member.any() or is_member.all():
        return None
    low, high = _interval(values, is_member, people, seed)
    others = values[~is_member]
    return Rates(
        auc_of(values, is_member),
        low,
        high,
        tuple(accept_rates(values[is_member], thresholds_at_far(others, FPRS)).tolist()),
        tuple(far_is_resolvable(FPRS, len(others)).tolist()),
        int(is_member.sum()),
        len(others),
    )


def _interval(values, is_member, people, seed) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    names, person = np.unique(people, return_inverse=True)
    has_member = np.bincount(person, is_member, len(names)) > 0
    _, place = np.unique(values, return_inverse=True)
    found = np.empty(_DRAWS)
    for draw in range(_DRAWS):
        times = np.zeros(len(names))
        for group in (np.flatnonzero(has_member), np.flatnonzero(~has_member)):
            if len(group):
                times[group] = np.bincount(
                    rng.integers(0, len(group), len(group)), minlength=len(group)
                )
        found[draw] = _area(place, is_member, times[person])
    low, high = np.nanquantile(found, (0.025, 0.975))
    return float(low), float(high)


def curve_of(values: np.ndarray, is_member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(FPR (n,), TPR (n,)) of the ROC curve, from the lowest FPR that can be resolved to 1."""
    known = np.isfinite(values)
    others = np.sort(values[known & ~is_member])[::-1]
    ranks = np.unique(np.geomspace(1, len(others), _POINTS).round().astype(int))
    thresholds = np.append(others, -np.inf)[ranks]  # so many others are above or equal
    return ranks / len(others), accept_rates(values[known & is_member], thresholds)
