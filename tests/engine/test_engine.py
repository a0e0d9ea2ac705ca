"""The cohort engine on toy clients that have nothing to do with faces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedfr_jax import engine
from fedfr_jax.engine import cohort as cohort_engine

COUNTS = np.array([3, 0, 7, 1, 5], np.int32)
START = np.arange(5, dtype=np.float32)


def update(lane, shared, device, client, state):
    """Doubles a number ``times`` times and adds the shared one each time."""
    x = lane.repeat(client["times"], lambda i, x: 2 * x + shared + device[0] + i, state["x"])
    return {"x": x}, client["times"] + 1.0, {"x": x}, {"id": client["id"]}


def expected():
    out = []
    for times, start in zip(COUNTS, START, strict=True):
        x = start
        for i in range(times):
            x = 2 * x + 0.5 + i
        out.append(x)
    return np.array(out)


def cohort(devices, empty=1):
    """Five clients and empty slots, as (clients, state, work, taken)."""
    slots = -(-5 // devices) * devices + empty * devices

    def pad(x, fill):
        return jnp.concatenate([jnp.asarray(x), jnp.full(slots - 5, fill, jnp.asarray(x).dtype)])

    return (
        {"times": pad(COUNTS, 9), "id": pad(np.arange(5, dtype=np.int32), 77)},
        {"x": pad(START, 7)},
        pad(COUNTS, 1000),
        jnp.arange(slots) < 5,
    )


def run(devices, lanes, update=update, empty=1):
    arguments = cohort(devices, empty)
    mesh = engine.make_mesh(jax.devices()[:devices])
    return jax.jit(
        lambda *args: engine.for_each_client(
            update, jnp.float32(0.25), jnp.full(devices, 0.25), *args, mesh=mesh, lanes=lanes
        )
    )(*engine.spread(arguments, mesh))


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
@pytest.mark.parametrize("empty", [0, 1])
def test_results_come_back_in_place_and_averaged(devices, lanes, empty):
    average, weight, state, metrics = run(devices, lanes, empty=empty)
    np.testing.assert_array_equal(metrics["id"][:5], np.arange(5))
    assert not np.any(metrics["id"][5:])
    np.testing.assert_allclose(state["x"][:5], expected(), rtol=1e-6)
    np.testing.assert_array_equal(state["x"][5:], 7)  # nobody's state is left alone
    weights = COUNTS + 1.0
    assert float(weight) == weights.sum()
    np.testing.assert_allclose(
        average["x"], (weights * expected()).sum() / weights.sum(), rtol=1e-6
    )


def test_the_average_of_nobody_is_zero():
    clients, state, work, taken = cohort(1)
    average, weight, _, _ = engine.for_each_client(
        update,
        0.0,
        jnp.zeros(1),
        clients,
        state,
        work,
        jnp.zeros_like(taken),
        mesh=engine.make_mesh(jax.devices()[:1]),
        lanes=2,
    )
    assert float(weight) == 0 and float(average["x"]) == 0


def test_clients_alone_are_enough():
    """All slots taken, equal work, all devices, one lane; nothing else is given."""

    def update(lane, shared, device, client, state):
        return (client, 3), 1, state, 4.0

    result = engine.for_each_client(update, clients=jnp.arange(6.0))
    assert result.average == (2.5, 3.0) and float(result.weight) == 6
    assert result.state == () and result.metrics.tolist() == [4.0] * 6
    only_state = engine.for_each_client(
        lambda lane, shared, device, client, state: ((), 1.0, state + shared, ()),
        jnp.float32(2),
        state=jnp.arange(4.0),
    )
    np.testing.assert_array_equal(only_state.state, np.arange(4.0) + 2)


def test_slots_that_do_not_fit_are_one_error():
    def update(lane, shared, device, client, state):
        return client, 1.0, state, ()

    with pytest.raises(ValueError, match="5 slots cannot be divided over 2 devices"):
        engine.for_each_client(update, clients=jnp.arange(5.0))
    for clients, state in ((jnp.arange(4), jnp.arange(2)), ((), ()), (jnp.ones(()), ())):
        with pytest.raises(ValueError, match="one common leading axis"):
            engine.for_each_client(update, clients=clients, state=state)


@pytest.mark.parametrize("lanes", [1, 3])
def test_gradients_of_the_shared_model_stay_local(lanes):
    """Every client descends on its own target; nothing is summed over devices."""

    def descend(lane, shared, device, client, state):
        model = lane.repeat(
            4, lambda i, w: w - 0.1 * jax.grad(lambda w: jnp.sum((w - state["x"]) ** 2))(w), shared
        )
        return model, jnp.float32(1), state, model

    *_, kept = run(2, lanes, descend)
    w = np.full(5, 0.25)
    for _ in range(4):
        w -= 0.2 * (w - START)
    np.testing.assert_allclose(kept[:5], w, rtol=1e-6)


def test_a_gradient_of_the_closed_over_shared_model_stays_local_too():
    def gradient(lane, shared, device, client, state):
        g = jax.grad(lambda w: jnp.sum((w - state["x"]) ** 2))(shared)
        return g, jnp.float32(1), state, g

    *_, kept = run(2, 1, gradient)
    np.testing.assert_allclose(kept[:5], 2 * (0.25 - START), rtol=1e-6)


def test_padding_stays_small_for_log_normal_clients():
    """Work done, in lane steps, against work needed: at most 15 % more at sigma = 1."""
    work = np.sort(np.ceil(20 * np.random.default_rng(0).lognormal(0, 1, 128)).astype(int))
    work = np.random.default_rng(1).permutation(work)
    for lanes in (4, 8):
        order, chunks = cohort_engine._chunk_order(jnp.asarray(work), jnp.ones(128, bool), lanes)
        by_chunk = work[np.asarray(order)][: int(chunks) * lanes].reshape(-1, lanes)
        assert by_chunk.max(1).sum() * lanes <= 1.15 * work.sum()


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("block", [1, 3, 100])
def test_blocks_keep_rows_in_order(devices, block):
    rows = jnp.arange(11.0)
    out = jax.jit(
        lambda: engine.map_blocks(
            lambda s, p: {"y": s[0] * s[1][p]},
            (2.0, rows),
            11,
            mesh=engine.make_mesh(jax.devices()[:devices]),
            block=block,
        )
    )()
    np.testing.assert_array_equal(out["y"], 2 * np.arange(11.0))


@pytest.mark.parametrize("count", [0, 1, 6, 11])
def test_blocks_stop_at_the_count(count):
    calls = []

    def fn(p):
        jax.debug.callback(lambda x: calls.append(1), p[0])
        return 1.0 + p

    out = jax.jit(lambda n: engine.loop_blocks(fn, jnp.arange(11), n, block=3))(count)
    jax.effects_barrier()
    np.testing.assert_array_equal(out[:count], 1 + np.arange(count))
    assert len(calls) == -(-count // 3)


def test_the_client_update_has_no_communication_but_the_closing_sum():
    mesh = engine.make_mesh(jax.devices()[:2])
    text = (
        jax.jit(
            lambda *args: engine.for_each_client(
                update, jnp.float32(0.5), jnp.zeros(2), *args, mesh=mesh, lanes=2
            )
        )
        .lower(*engine.spread(cohort(2), mesh))
        .compile()
        .as_text()
    )
    for word in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert word not in text
    assert text.count("all-reduce(") + text.count("all-reduce-start(") <= 2
    assert "all-reduce" in text
