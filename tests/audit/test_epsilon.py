"""Lower bounds of epsilon hold, and are not far below what is true."""

import math

import numpy as np
import pytest

from fedfr_jax.audit import epsilon
from fedfr_jax.runtime.accounting import gaussian_epsilon

DELTA = 1e-5


def scores(rng, multiplier, count):
    """Of canaries of one Gaussian mechanism: one bound apart, noise of ``multiplier`` bounds."""
    return 1 + multiplier * rng.normal(size=count), multiplier * rng.normal(size=count)


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 3.0])
def test_bounds_are_below_the_gaussian_mechanisms_epsilon_and_not_far(multiplier):
    rng, true = np.random.default_rng(0), gaussian_epsilon(multiplier, DELTA)
    draws = [scores(rng, multiplier, 1000) for _ in range(40)]
    normal = np.array([epsilon.gaussian_bound(*found, DELTA) for found in draws])
    # Each holds with 95 %: of 40 at most 6 fail but for one chance in 70.
    assert (normal > true).sum() <= 6
    assert normal.mean() > 0.75 * true
    counted = np.array([epsilon.counted_epsilon(*found, DELTA) for found in draws[:8]])
    assert (counted > true).sum() <= 2


def test_bounds_of_many_canaries_approach_the_truth():
    rng = np.random.default_rng(1)
    found, true = scores(rng, 1.0, 400_000), gaussian_epsilon(1.0, DELTA)
    assert 0.97 * true < epsilon.gaussian_bound(*found, DELTA) < true
    assert epsilon.estimate(*found, DELTA) == pytest.approx(true, rel=0.02)


def test_counting_resolves_a_small_epsilon():
    """A randomized response with epsilon log 3, whose scores are far from normal."""
    rng, n = np.random.default_rng(2), 40_000
    within = (rng.random(n) < 0.75).astype(float)
    without = (rng.random(n) < 0.25).astype(float)
    found = epsilon.counted_epsilon(within, without, 1e-9)
    assert 0.9 * math.log(3) < found < math.log(3)


def test_without_noise_the_bound_is_what_so_many_canaries_can_show():
    found = epsilon.counted_epsilon(np.ones(100), np.zeros(100), DELTA)
    assert found == pytest.approx(epsilon.most_countable(100, DELTA))
    assert 2 < found < 3
    assert epsilon.most_countable(1000, DELTA) > 4
    assert epsilon.gaussian_bound(np.ones(100), np.zeros(100), DELTA) == math.inf


def test_nothing_is_shown_where_nothing_differs():
    rng = np.random.default_rng(3)
    same = rng.normal(size=(2, 500))
    assert epsilon.counted_epsilon(*same, DELTA) < 0.2
    assert epsilon.gaussian_bound(*same, DELTA) < 0.3
    assert epsilon.gaussian_bound(*same[:, :10], DELTA) == 0
    assert epsilon.counted_epsilon(same[0][:1], same[1][:1], DELTA) == 0


def test_clopper_pearson_covers():
    rng, true = np.random.default_rng(4), 0.1
    bounds = [epsilon.clopper_pearson(int(k), 50, 0.95) for k in rng.binomial(50, true, 400)]
    assert np.mean([low > true for low, _ in bounds]) < 0.08
    assert np.mean([high < true for _, high in bounds]) < 0.08
    assert epsilon.clopper_pearson(0, 10, 0.95)[1] == pytest.approx(1 - 0.05 ** (1 / 10))


def test_the_estimate_sees_unequal_variances():
    """Numerically: the hockey-stick divergence at the estimate is delta."""
    rng = np.random.default_rng(5)
    within, without = 2 + 1.5 * rng.normal(size=5000), rng.normal(size=5000)
    found = epsilon.estimate(within, without, 1e-3)
    x = np.linspace(-40, 40, 400_001)
    p = np.exp(-0.5 * ((x - within.mean()) / within.std(ddof=1)) ** 2) / within.std(ddof=1)
    q = np.exp(-0.5 * ((x - without.mean()) / without.std(ddof=1)) ** 2) / without.std(ddof=1)
    step = (x[1] - x[0]) / math.sqrt(2 * math.pi)
    assert (np.maximum(p - math.exp(found) * q, 0)).sum() * step == pytest.approx(1e-3, rel=0.02)
