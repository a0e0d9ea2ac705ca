"""Lanes as copies: the same results as under vmap, also in nested loops."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedfr_jax import engine
from tests.engine import test_engine as toy


@pytest.mark.parametrize("devices, lanes, empty", [(1, 2, 1), (2, 2, 0), (1, 8, 0), (1, 1, 0)])
def test_results_are_those_of_vmap(devices, lanes, empty):
    arguments = toy.cohort(devices, empty)
    mesh = engine.make_mesh(jax.devices()[:devices])

    def run(unroll):
        shared = (jnp.float32(0.25), jnp.full(devices, 0.25))
        options = dict(mesh=mesh, lanes=lanes, unroll=unroll)
        return jax.jit(lambda *args: engine.for_each_client(toy.update, *shared, *args, **options))(
            *engine.spread(arguments, mesh)
        )

    copies, together = run(True), run(False)
    np.testing.assert_allclose(copies.state["x"][:5], toy.expected(), rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), copies, together)


def convolve_in_nested_loops(lane, shared, device, client, state):
    """Two epochs of ``steps`` steps with a network, a table, and keys of the client's own."""

    def loss(kernel, key):
        x = client["images"] + jax.random.normal(key, client["images"].shape)
        y = engine.conv2d(x, kernel, strategy=shared["strategy"])
        return jnp.mean(jnp.sin(y)) + jnp.sum(kernel**2)

    def epoch(e, kernel):
        key = jax.random.fold_in(jax.random.key(client["id"]), e)

        def step(i, kernel):
            gradient = jax.grad(loss)(kernel, jax.random.fold_in(key, i))
            return kernel - 0.1 * gradient

        return lane.repeat(client["steps"], step, kernel)

    kernel = lane.repeat(2, epoch, shared["kernel"])
    return kernel, 1.0, (), kernel


def program(lanes, unroll, strategy):
    mesh = engine.make_mesh(jax.devices()[:1])
    rng = np.random.RandomState(0)
    clients = {
        "images": jnp.asarray(rng.standard_normal((3, 2, 6, 6, 4)), jnp.float32),
        "id": jnp.arange(3),
        "steps": jnp.array([3, 1, 2]),
    }
    kernel = jnp.asarray(rng.standard_normal((3, 3, 4, 4)), jnp.float32)

    @jax.jit
    def run(kernel, clients):
        def update(lane, shared, *args):
            given = {"kernel": shared, "strategy": strategy}
            return convolve_in_nested_loops(lane, given, *args)

        return engine.for_each_client(
            update, kernel, clients=clients, mesh=mesh, lanes=lanes, unroll=unroll
        ).metrics

    return run, (kernel, clients)


@pytest.mark.parametrize("strategy", ["grouped", "custom", "layered"])
def test_nested_loops_and_networks(strategy):
    run, arguments = program(3, True, strategy)
    plain, _ = program(1, False, "grouped")
    np.testing.assert_allclose(run(*arguments), plain(*arguments), rtol=1e-4, atol=1e-5)


def test_every_lane_has_convolutions_of_its_own():
    run, arguments = program(3, True, "grouped")
    text = run.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    found = re.findall(r"batch_group_count = (\d+) : i64, feature_group_count = (\d+)", text)
    assert set(found) == {("1", "1")}
