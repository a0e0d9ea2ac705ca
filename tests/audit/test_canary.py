"""Canaries in the run's own aggregation: what they show is the closed form of its noise."""

import dataclasses

import numpy as np
import pytest
from small import MODEL
from small import method as fedfr

from fedfr_jax.algorithm.messages import message_size
from fedfr_jax.algorithm.spec import MessageSpec
from fedfr_jax.audit import canary, epsilon
from fedfr_jax.audit.canary import Path, canary_scores
from fedfr_jax.runtime.accounting import gaussian_epsilon
from fedfr_jax.settings import PrivacyConfig

DELTA = 1e-5


def path(rounds=3, rate=1.0, at_once=4, cohort=20, **privacy):
    spec = fedfr(model=MODEL, public_data="off", aggregation="uniform")
    privacy = PrivacyConfig(clip_norm=0.7, **privacy)
    spec = dataclasses.replace(spec, message=MessageSpec(privacy, cohort=cohort))
    return Path(spec, message_size(spec, 4), rounds, rate, at_once, 4)


def test_scores_are_those_of_the_gaussian_mechanism():
    z, rounds = 1.5, 3
    within, without = canary_scores(path(rounds, noise_multiplier=z), 400, 0)
    assert len(within) == len(without) == 400
    # Sums over rounds, in bounds: rounds apart, noise of z sqrt(rounds); the canaries of one
    # repetition overlap a little.
    assert within.mean() == pytest.approx(rounds, abs=0.4)
    assert without.mean() == pytest.approx(0, abs=0.4)
    for found in (within, without):
        assert found.std() == pytest.approx(z * rounds**0.5, rel=0.12)
    true = gaussian_epsilon(z / rounds**0.5, DELTA)
    assert 0.7 * true < epsilon.gaussian_bound(within, without, DELTA) < 1.05 * true
    assert epsilon.counted_epsilon(within, without, DELTA) < true


@pytest.mark.parametrize(
    "steps", [{}, {"quantize_bits": 8}, {"top_k": 0.5}, {"clip_quantile": 0.5}]
)
def test_without_noise_canaries_are_found(steps):
    within, without = canary_scores(path(2, at_once=2, **steps), 16, 1)
    assert within.min() > 1.1 and np.abs(without).max() < 0.5
    shown = epsilon.counted_epsilon(within, without, DELTA)
    assert shown == pytest.approx(epsilon.most_countable(16, DELTA))


def test_canaries_take_part_as_often_as_clients():
    within, _ = canary_scores(path(40, rate=0.25, at_once=4), 32, 2)
    assert within.mean() == pytest.approx(10, abs=2)


def test_an_automatic_audit_stays_short():
    assert canary.canaries_of(path(), 0) == 1000
    assert canary.canaries_of(dataclasses.replace(path(), size=50_000_000, rounds=20), 0) == 16
    assert canary.canaries_of(path(), 77) == 77
