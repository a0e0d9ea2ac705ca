"""How sure a difference between two models is: paired intervals over clients and seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import special

DRAWS = 4000
_MANY = 2000  # clients from which on their mean is drawn as a normal number


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean difference and the interval that holds it with 95 % confidence."""

    mean: float
    low: float
    high: float

    @property
    def is_beyond_noise(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(gains: Sequence[np.ndarray], draws: int = DRAWS) -> Interval | None:
    """Percentile interval of the mean over seeds of the mean over clients.

    Seeds are drawn with replacement, and in each of them its clients (a bootstrap in two
    levels), as both are samples: another seed draws other people. With one seed the interval is
    over its clients alone.

    Args:
      gains: for each seed (C,) differences, client by client; NaN where a client has none.

    Returns:
      None without any difference.
    """
    found = [kept for g in gains if len(kept := np.asarray(g, float)[~np.isnan(g)])]
    if not found:
        return None
    rng, count = np.random.default_rng(0), len(found)
    chosen = rng.integers(0, count, (draws, count))
    total = np.zeros(draws)
    for seed, values in enumerate(found):
        for place in range(count):
            taken = chosen[:, place] == seed
            total[taken] += _resampled_means(rng, values, int(taken.sum()))
    low, high = np.quantile(total / count, (0.025, 0.975))
    return Interval(float(np.mean([v.mean() for v in found])), float(low), float(high))


def _resampled_means(rng: np.random.Generator, values: np.ndarray, count: int) -> np.ndarray:
    if len(values) > _MANY:
        return rng.normal(values.mean(), values.std() / np.sqrt(len(values)), count)
    return values[rng.integers(0, len(values), (count, len(values)))].mean(axis=1)


def paired_t(gains: Sequence[float] | np.ndarray) -> Interval | None:
    """The t interval of a mean over seeds, for what has one value per seed.

    Args:
      gains: (S,) differences; NaN where there is none.

    Returns:
      None with fewer than two.
    """
    found = np.asarray(gains, float)
    found = found[~np.isnan(found)]
    if len(found) < 2:
        return None
    half = special.stdtrit(len(found) - 1, 0.975) * found.std(ddof=1) / np.sqrt(len(found))
    mean = float(found.mean())
    return Interval(mean, float(mean - half), float(mean + half))
