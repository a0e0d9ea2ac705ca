"""AUC, its interval, rates at low error, and the likelihood ratios, against direct counts."""

import numpy as np
import pytest

from fedfr_jax.audit import lira
from fedfr_jax.audit.rates import auc_of, curve_of, rates_of


def counted(values, is_member):
    pairs = values[is_member][:, None] - values[~is_member][None]
    return ((pairs > 0) + 0.5 * (pairs == 0)).mean()


def test_auc_counts_pairs_and_ties():
    rng = np.random.default_rng(0)
    values, is_member = rng.integers(0, 9, 80).astype(float), rng.random(80) < 0.4
    assert auc_of(values, is_member) == pytest.approx(counted(values, is_member))
    times = rng.integers(0, 3, 80)
    repeated = np.repeat(values, times), np.repeat(is_member, times)
    assert auc_of(values, is_member, times) == pytest.approx(counted(*repeated))


def test_the_interval_knows_that_images_of_a_person_are_not_independent():
    rng = np.random.default_rng(1)
    people = np.repeat(np.arange(60), 20)
    values = np.repeat(rng.normal(size=60), 20)  # images of a person are all alike
    of_people = rates_of(values, people < 30, people)
    of_images = rates_of(values, people < 30, np.arange(len(people)))
    assert of_people.low < of_people.auc < of_people.high
    assert of_people.high - of_people.low > 3 * (of_images.high - of_images.low)
    assert of_people.low < 0.5 < of_people.high


def test_rates_at_low_error_and_whether_they_are_resolved():
    others = np.arange(1000.0)
    members = np.array([998.5, 999.5, 2000.0, 5.0])
    values = np.concatenate([members, others, [np.nan]])
    is_member = np.arange(len(values)) < 4
    found = rates_of(values, is_member, np.arange(len(values)))
    assert found.tpr == (0.75, 0.75) and found.resolved == (True, True)
    few = rates_of(values[:200], is_member[:200], np.arange(200))
    assert few.resolved == (False, True)
    assert few.to_dict()["unresolvable"] == ["0.001"]
    assert rates_of(values[:4], is_member[:4], np.arange(4)) is None


def test_the_curve_is_the_rates():
    rng = np.random.default_rng(2)
    values, is_member = rng.normal(size=500), np.arange(500) < 200
    fpr, tpr = curve_of(values, is_member)
    for f, t in zip(fpr[::40], tpr[::40], strict=True):
        k = round(f * 300)
        threshold = np.sort(values[~is_member])[::-1][k] if k < 300 else -np.inf
        assert t == (values[is_member] > threshold).mean()
    assert fpr[-1] == tpr[-1] == 1 and (np.diff(tpr) >= 0).all()


def test_likelihood_ratios_are_those_of_normal_distributions():
    rng = np.random.default_rng(3)
    n, count = 400, 64
    hard = 3 * rng.normal(size=n)  # what an example scores without training
    within = rng.random((count, n)) < 0.5
    shadows = hard + within + 0.5 * rng.normal(size=(count, n))
    member = np.arange(n) < n // 2
    target = hard + member + 0.5 * rng.normal(size=n)
    online = lira.online(target, shadows, within, ~within)
    offline = lira.offline(target, shadows, ~within)
    # Two normal distributions one apart with std 0.5: AUC = Phi(2 / sqrt 2).
    assert auc_of(online, member) == pytest.approx(0.921, abs=0.03)
    assert auc_of(offline, member) == pytest.approx(0.921, abs=0.03)
    assert auc_of(target, member) < 0.65  # who does not know how hard examples are
    ideal = ((target - hard) ** 2 - (target - hard - 1) ** 2) / (2 * 0.5**2)
    assert np.corrcoef(online, ideal)[0, 1] > 0.97
    few = within.copy()
    few[1:, 0] = False
    assert np.isnan(lira.online(target, shadows, few, ~few)[0])
