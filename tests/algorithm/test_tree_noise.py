"""Noise by tree aggregation, against the whole tree written out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from test_messages import PLAIN, VARIABLES, deliver, spec_with, start_of, updates

from fedfr_jax.algorithm import messages
from fedfr_jax.algorithm.tree_noise import increment, node_noise
from fedfr_jax.methods import METHODS

KEY = jax.random.key(5)
LIKE = [jnp.zeros((3, 2)), jnp.zeros(4)]


def nodes_of(done):
    """(level, place) of the nodes that add up to the first ``done`` rounds, by halving."""
    found, start = [], 0
    for level in reversed(range(done.bit_length())):
        if done - start >= 1 << level:
            found.append((level, start >> level))
            start += 1 << level
    assert start == done
    return found


def whole(done):
    """The noise of the sum over ``done`` rounds, node by node."""
    total = [np.zeros(p.shape) for p in LIKE]
    for level, place in nodes_of(done):
        noise = node_noise(KEY, level, place, LIKE)
        total = [t + np.asarray(n, float) for t, n in zip(total, noise, strict=True)]
    return total


step = jax.jit(functools.partial(increment, levels=4, like=LIKE))


def test_increments_add_up_to_the_nodes_of_the_tree():
    total = [np.zeros(p.shape) for p in LIKE]
    for done in range(1, 14):
        total = [t + np.asarray(n) for t, n in zip(total, step(KEY, done, done - 1), strict=True)]
        for a, b in zip(total, whole(done), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_rounds_that_were_left_out_come_with_the_next():
    for last, done in ((0, 5), (3, 12), (8, 9), (6, 7), (4, 4)):
        for a, late, early in zip(step(KEY, done, last), whole(done), whole(last), strict=True):
            np.testing.assert_allclose(a, late - early, atol=1e-5)


def test_a_larger_tree_has_the_same_nodes():
    more = increment(KEY, 7, 5, 9, LIKE)
    for a, b in zip(step(KEY, 7, 5), more, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_variance_of_a_sum_is_that_of_its_nodes():
    like = [jnp.zeros(40_000)]
    many = jax.jit(functools.partial(increment, levels=4, like=like))
    total, seen = np.zeros(40_000), []
    for done in range(1, 12):
        total = total + np.asarray(many(KEY, done, done - 1)[0])
        seen.append(total)
        # Four standard errors of a variance.
        np.testing.assert_allclose(total.var(), done.bit_count(), rtol=4 * np.sqrt(2 / 40_000))
    # Sums that share no node are independent: 4 is one node, 11 = 8 + 2 + 1 has none of it.
    assert abs(np.corrcoef(seen[3], seen[10])[0, 1]) < 0.025
    assert np.corrcoef(seen[7], seen[10])[0, 1] == pytest.approx(np.sqrt(1 / 3), abs=0.025)


TREE = {"clip_norm": 0.5, "noise_multiplier": 2.0, "mechanism": "tree"}


def by_rounds(spec, rounds, empty=()):
    """(P,) what the server has moved after rounds of the same differences; its states."""
    server, states = start_of(spec), []
    for r in range(rounds):
        gone = range(4) if r in empty else ()
        _, server, _, _ = deliver(spec, updates(), server=server, key=7, empty=gone)
        states.append(server)
    like = [x for x in jax.tree.leaves(VARIABLES)]
    return moved(spec, server), states, like


def moved(spec, server):
    sent = {"backbone": server.backbone, "public_embeddings": server.public_embeddings}
    return np.asarray(messages.flatten(messages.difference(spec, start_of(spec), sent)), float)


def long(spec):
    return dataclasses.replace(spec, fed=dataclasses.replace(spec.fed, rounds=6))


def noise_of(rounds):
    key, total = jax.random.key(7), 0.0
    for level, place in nodes_of(rounds):
        like = [x for x in jax.tree.leaves(VARIABLES)]
        total = total + np.asarray(messages.flatten(node_noise(key, level, place, like)), float)
    return total * 2.0 * 0.5 / 4  # multiplier, bound, clients


def test_the_model_has_the_noise_of_the_tree_and_nothing_else():
    noisy = long(spec_with(**TREE))
    silent = long(spec_with(clip_norm=0.5))
    found, states, _ = by_rounds(noisy, 3)
    without, _, _ = by_rounds(silent, 3)
    np.testing.assert_allclose(found - without, noise_of(3), atol=2e-5)
    assert [int(s.message["noised"]) for s in states] == [1, 2, 3]


def test_a_round_without_arrivals_takes_no_noise_and_the_next_takes_its_share():
    noisy, silent = long(spec_with(**TREE)), long(spec_with(clip_norm=0.5))
    found, states, _ = by_rounds(noisy, 3, empty=(1,))
    without, _, _ = by_rounds(silent, 3, empty=(1,))
    assert [int(s.message["noised"]) for s in states] == [1, 1, 3]
    np.testing.assert_array_equal(moved(noisy, states[0]), moved(noisy, states[1]))
    np.testing.assert_allclose(found - without, noise_of(3), atol=2e-5)


def test_a_round_whose_average_is_not_taken_has_no_noise_either():
    recipe = METHODS["finetune"]
    base = dataclasses.replace(PLAIN, recipe=recipe, options=recipe.options())
    base = dataclasses.replace(base, fed=dataclasses.replace(base.fed, rounds=1))
    spec = spec_with(base, **TREE)
    assert spec.rounds == 2
    _, states, _ = by_rounds(spec, 2)
    assert int(states[1].message["noised"]) == 1
    assert small.SIZE == 16  # the tiny network's
    np.testing.assert_array_equal(moved(spec, states[0]), moved(spec, states[1]))
