"""Lower bounds of epsilon from scores of canaries that took part and of canaries that did not.

If a mechanism is (epsilon, delta)-private, no test can tell the two apart too well:
``TPR <= exp(epsilon) FPR + delta``. A test that does proves a larger epsilon.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, stats

from fedfr_jax.runtime.accounting import gaussian_epsilon


def clopper_pearson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """One-sided bounds of a probability, each of which holds with ``confidence``."""
    low, high = 0.0, 1.0
    if successes > 0:
        low = float(stats.beta.ppf(1 - confidence, successes, trials - successes + 1))
    if successes < trials:
        high = float(stats.beta.ppf(confidence, successes + 1, trials - successes))
    return low, high


def _proved(high_rate: float, low_rate: float, delta: float) -> float:
    """Epsilon from a lower bound of the TPR and an upper bound of the FPR."""
    if high_rate - delta <= low_rate:
        return 0.0
    return math.log((high_rate - delta) / low_rate)


def counted_epsilon(
    within: np.ndarray, without: np.ndarray, delta: float, confidence: float = 0.95
) -> float:
    """A lower bound of epsilon that assumes nothing about the scores' distribution.

    One half of the scores chooses a threshold, and whether it is used to accuse or to acquit. The
    other half counts errors, with Clopper-Pearson bounds of the two rates that hold together with
    ``confidence``.

    Args:
      within, without: (n,), (m,) independent scores of canaries that did and did not take part.
      delta: of (epsilon, delta).
      confidence: with which the bound holds.
    """
    first, second = (within[::2], without[::2]), (within[1::2], without[1::2])
    each = 1 - (1 - confidence) / 2

    def proved(scores, threshold, accuse):
        inside, outside = scores
        if accuse:
            hits, errors = (inside > threshold).sum(), (outside > threshold).sum()
        else:  # acquit: the roles of the two are exchanged
            inside, outside = outside, inside
            hits, errors = (inside <= threshold).sum(), (outside <= threshold).sum()
        low, _ = clopper_pearson(int(hits), len(inside), each)
        _, high = clopper_pearson(int(errors), len(outside), each)
        return _proved(low, high, delta)

    if min(len(part) for part in (*first, *second)) == 0:
        return 0.0
    candidates = np.unique(np.quantile(np.concatenate(first), np.linspace(0, 1, 201)))
    best = max(
        ((proved(first, t, accuse), t, accuse) for t in candidates for accuse in (True, False)),
        key=lambda found: found[0],
    )
    return proved(second, best[1], best[2])


def most_countable(canaries: int, delta: float, confidence: float = 0.95) -> float:
    """The largest bound that :func:`counted_epsilon` can give with so many canaries of each kind.

    It is that of a test without any error.
    """
    half, each = canaries // 2, 1 - (1 - confidence) / 2
    if not half:
        return 0.0
    low, _ = clopper_pearson(half, half, each)
    _, high = clopper_pearson(0, half, each)
    return _proved(low, high, delta)


def gaussian_bound(
    within: np.ndarray, without: np.ndarray, delta: float, confidence: float = 0.95
) -> float:
    """A lower bound of epsilon for scores that are normal with one variance.

    So they are for Gaussian mechanisms, where the mean's shift in standard deviations, mu, is all
    there is to know (Gaussian differential privacy). Epsilon belongs to a lower confidence bound of
    mu, from the noncentral t distribution.

    Args:
      within, without: (n,), (m,) as for :func:`counted_epsilon`.
      delta, confidence: as for :func:`counted_epsilon`.
    """
    n, m = len(within), len(without)
    if n < 2 or m < 2:
        return 0.0
    freedom = n + m - 2
    pooled = math.sqrt(((n - 1) * within.var(ddof=1) + (m - 1) * without.var(ddof=1)) / freedom)
    root = math.sqrt(n * m / (n + m))
    shift = float(within.mean() - without.mean())
    if pooled < 1e-9 * max(1.0, abs(shift)):  # no noise at all
        return math.inf if shift > 0 else 0.0
    mu = _least_shift(shift / pooled * root, freedom, confidence) / root
    return gaussian_epsilon(1 / mu, delta) if mu > 1e-9 else 0.0


def _least_shift(t: float, freedom: int, confidence: float) -> float:
    """The noncentrality below which a t as large as this is too unlikely."""
    if freedom > 200:  # scipy's noncentral t fails far out; the normal limit is good to 1e-3
        return t - stats.norm.ppf(confidence) * math.sqrt(1 + t * t / (2 * freedom))
    if stats.t.cdf(t, freedom) < confidence:
        return 0.0

    def excess(noncentrality):
        return stats.nct.cdf(t, freedom, noncentrality) - confidence

    return float(optimize.brentq(excess, 0.0, abs(t) + 10))


def estimate(within: np.ndarray, without: np.ndarray, delta: float) -> float:
    """Epsilon of two normal distributions with the scores' means and variances.

    No bound: the estimate of Andrew et al., "One-shot empirical privacy estimation for federated
    learning" (ICLR 2024), section 3, where scores need not have one variance, as when canaries take
    part in some rounds only.
    """
    a, b = (within.mean(), within.std(ddof=1)), (without.mean(), without.std(ddof=1))
    if min(a[1], b[1]) < 1e-9 * max(1.0, abs(a[0] - b[0])):
        return math.inf if a[0] != b[0] else 0.0
    return max(_two_normals(a, b, delta), _two_normals(b, a, delta))


def _two_normals(p: tuple[float, float], q: tuple[float, float], delta: float) -> float:
    """The least epsilon with ``integral of max(0, p - exp(epsilon) q) <= delta``."""
    width = max(p[1], q[1])
    x = np.linspace(min(p[0], q[0]) - 12 * width, max(p[0], q[0]) + 12 * width, 40_001)
    log_p, log_q = stats.norm.logpdf(x, *p), stats.norm.logpdf(x, *q)
    step = x[1] - x[0]

    def excess(epsilon):
        inside = np.minimum(epsilon + log_q - log_p, 0.0)
        return float(-(np.exp(log_p) * np.expm1(inside)).sum() * step) - delta

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        if high > 1e4:
            return math.inf
        high *= 2
    return float(optimize.brentq(excess, 0.0, high, xtol=1e-9))
