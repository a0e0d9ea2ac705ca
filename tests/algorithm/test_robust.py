"""The rules of robust aggregation against another library, and against brute force."""

import importlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfr_jax.algorithm import robust
from fedfr_jax.settings import AGGREGATORS, STACKED_AGGREGATORS, FedConfig

SHARE = 0.2
RULES = AGGREGATORS + STACKED_AGGREGATORS


def config(rule, **changes):
    return FedConfig(aggregator=rule, clip_radius=2.0, assumed_hostile=SHARE, **changes)


def filled(messages, slots, seed=0):
    """The messages at random places among others that must not count."""
    rng = np.random.RandomState(seed)
    there = np.zeros(slots, bool)
    there[np.sort(rng.choice(slots, len(messages), replace=False))] = True
    stacked = rng.normal(size=(slots, messages.shape[1])).astype(np.float32) * 1e3
    stacked[there] = messages
    return jnp.asarray(stacked), jnp.asarray(there)


def some(n, size=11, seed=0):
    rng = np.random.RandomState(seed)
    messages = rng.normal(size=(n, size)).astype(np.float32)
    messages[: n // 5] = messages[: n // 5] * 5 - 8  # as hostile clients may be
    return messages


def brute(rule, m, center):
    """Each rule once more, from its definition, without masks."""
    n, f = len(m), int(SHARE * len(m) + 1e-9)
    if rule == "mean":
        return m.mean(0)
    if rule in ("norm_clip", "centered_clip"):
        c = center if rule == "centered_clip" else 0
        return c + np.mean([(v - c) * min(1, 2.0 / np.linalg.norm(v - c)) for v in m], 0)
    if rule == "median":
        return np.median(m, 0)
    if rule == "trimmed_mean":
        return np.sort(m, 0)[f : n - f].mean(0)
    if rule == "geometric_median":
        point = m.mean(0)
        for _ in range(2000):
            w = 1 / np.maximum(np.linalg.norm(m - point, axis=1), 1e-9)
            point = w @ m / w.sum()
        return point
    scores = []
    for i in range(n):
        far = sorted(((m[i] - m[j]) ** 2).sum() for j in range(n) if j != i)
        scores.append(sum(far[: max(n - f - 2, 1)]))
    order = np.argsort(scores, kind="stable")
    return m[order[0]] if rule == "krum" else m[order[: n - f]].mean(0)


@pytest.mark.parametrize("rule", RULES)
def test_rules_agree_with_their_definition(rule):
    center = np.linspace(-1, 1, 11).astype(np.float32)
    run = jax.jit(lambda m, t: robust.aggregate(config(rule), m, t, jax.random.key(0), center))
    for n in (1, 4, 5, 10, 12):
        messages = some(n, seed=n)
        found = run(*filled(messages, 12, seed=n))
        expected = brute(rule, messages.astype(float), center)
        tolerance = 2e-3 if rule == "geometric_median" else 1e-5
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rule", RULES)
def test_no_message_at_all_moves_nothing(rule):
    center = jnp.zeros(3)
    found = robust.aggregate(
        config(rule), jnp.ones((4, 3)), jnp.zeros(4, bool), jax.random.key(0), center
    )
    np.testing.assert_array_equal(found, 0)


def other_library():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("byzfl")
    except Exception as error:  # it imports much more than its aggregators
        pytest.skip(f"byzfl cannot be imported: {error}")


def test_rules_agree_with_byzfl():
    byzfl = other_library()
    for n in (5, 10, 15):
        messages, f = some(n, seed=n), n // 5
        stacked, there = filled(messages, 17)
        theirs = {
            "mean": byzfl.Average(),
            "median": byzfl.Median(),
            "trimmed_mean": byzfl.TrMean(f=f),
            "norm_clip": byzfl.CenteredClipping(L=1, tau=2.0),  # around 0
        }
        for rule, other in theirs.items():
            found = robust.aggregate(config(rule), stacked, there, jax.random.key(0))
            # Its arrays: those of torch take the middle value below for an even number.
            np.testing.assert_allclose(found, other(messages), rtol=1e-4, atol=1e-5, err_msg=rule)
        smooth = robust.geometric_median(stacked, there, iterations=50, smoothing=0.01)
        np.testing.assert_allclose(
            smooth, byzfl.GeometricMedian(nu=0.01, T=50)(messages), rtol=1e-3, atol=1e-3
        )
        # It counts one neighbour more: n - f - 1. With f larger by one it is ours.
        for rule, other in (("krum", byzfl.Krum), ("multi_krum", byzfl.MultiKrum)):
            scores = np.asarray(robust.krum_scores(stacked, there, SHARE))[np.asarray(there)]
            theirs_order = _their_order(messages, f + 1)
            assert list(np.argsort(scores)) == list(theirs_order)
            if rule == "krum":
                found = robust.krum(stacked, there, SHARE)
                np.testing.assert_allclose(found, other(f=f + 1)(messages), rtol=1e-5)


def _their_order(messages, f):
    """Clients by byzfl's score: the mean distance, squared, to the n - f - 1 nearest others."""
    far = ((messages[:, None] - messages) ** 2).sum(-1)
    return np.argsort(np.sort(far, axis=1)[:, 1 : len(messages) - f].mean(1))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(2, 4), st.integers(0, 99))
def test_buckets_hold_every_message_once(n, size, seed):
    messages, there = filled(np.eye(n, 9, dtype=np.float32), 9, seed)
    means, full = robust.bucket(messages, there, size, jax.random.key(seed))
    assert full.sum() == -(-n // size) and len(means) == -(-9 // size)
    members = (np.asarray(means) > 0).sum(1)[np.asarray(full)]
    assert sorted(members)[::-1][: n // size] == [size] * (n // size)
    np.testing.assert_array_equal((np.asarray(means) > 0).sum(0)[:n], 1)


def test_of_ten_two_may_be_anything():
    honest = some(8, size=50, seed=1)
    for evil in (1e6, -1e6):
        messages = np.concatenate([honest, np.full((2, 50), evil, np.float32)])
        for rule in ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median"):
            found = robust.aggregate(
                config(rule), jnp.asarray(messages), jnp.ones(10, bool), jax.random.key(0)
            )
            assert np.abs(found).max() <= np.abs(honest).max() + 1, rule
        clipped = robust.aggregate(
            config("norm_clip"), jnp.asarray(messages), jnp.ones(10, bool), jax.random.key(0)
        )
        assert np.linalg.norm(clipped) <= 2.0 + 1e-5
