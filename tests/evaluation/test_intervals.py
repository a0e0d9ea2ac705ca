"""Intervals of paired differences hold the truth as often as they say."""

import numpy as np
import pytest
from scipy import stats

from fedfr_jax.evaluation.intervals import Interval, paired_bootstrap, paired_t


def test_a_bootstrap_over_clients_is_as_wide_as_their_standard_error():
    rng = np.random.default_rng(0)
    values = rng.normal(1, 2, 400)
    found = paired_bootstrap([values])
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)
    many = rng.normal(1, 2, 4000)  # drawn as a normal number
    wide = paired_bootstrap([many])
    assert (wide.high - wide.low) / 2 == pytest.approx(1.96 * many.std() / 4000**0.5, rel=0.05)


def test_a_bootstrap_covers_seeds_that_differ():
    """Intervals of 8 seeds that spread by 1, with 20 clients each, hold the mean 0."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(100):
        seeds = [rng.normal(rng.normal(), 1, 20) for _ in range(8)]
        found = paired_bootstrap(seeds, draws=500)
        held += found.low <= 0 <= found.high
    assert 84 <= held <= 99  # 95 %, a little less with few seeds


def test_what_is_missing_is_left_out():
    assert paired_bootstrap([]) is None and paired_bootstrap([np.array([np.nan])]) is None
    found = paired_bootstrap([np.array([1.0, np.nan]), np.array([3.0])])
    assert found.mean == 2 and (found.low, found.high) == (1, 3) and found.is_beyond_noise
    assert paired_t([0.5]) is None and paired_t([0.5, np.nan]) is None


def test_the_t_interval_is_scipys():
    gains = np.array([-10.0, -12.0, -14.0])
    expected = stats.t.interval(0.95, 2, -12, stats.sem(gains))
    found = paired_t(gains)
    np.testing.assert_allclose((found.low, found.high), expected)
    assert found.is_beyond_noise and not Interval(-12, -25, 1).is_beyond_noise
