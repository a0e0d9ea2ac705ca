"""The cohort engine on toy clients that have nothing to do with faces."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedfr_jax import engine

COUNTS = np.array([3, 0, 7, 1, 5], np.int32)
START = np.arange(5, dtype=np.float32)


def update(lane, shared, client):
    """Doubles a number ``times`` times and adds the shared one each time."""
    x = lane.repeat(client["times"], lambda i, x: 2 * x + shared + i, client["x"])
    return {"x": x}, client["times"] + 1.0, {"id": client["id"], "x": x}


def expected():
    out = []
    for times, start in zip(COUNTS, START, strict=True):
        x = start
        for i in range(times):
            x = 2 * x + 0.5 + i
        out.append(x)
    return np.array(out)


def run(devices, lanes, update=update):
    clients = {"times": jnp.asarray(COUNTS), "x": jnp.asarray(START), "id": jnp.arange(5)}
    return jax.jit(lambda: engine.for_each_client(
        update, jnp.float32(0.5), clients, jnp.asarray(COUNTS),
        mesh=engine.make_mesh(jax.devices()[:devices]), lanes=lanes))()


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_results_come_back_in_order_and_averaged(devices, lanes):
    average, weight, kept = run(devices, lanes)
    np.testing.assert_array_equal(kept["id"], np.arange(5))
    np.testing.assert_allclose(kept["x"], expected(), rtol=1e-6)
    weights = COUNTS + 1.0
    assert float(weight) == weights.sum()
    np.testing.assert_allclose(average["x"], (weights * expected()).sum() / weights.sum(),
                               rtol=1e-6)


@pytest.mark.parametrize("lanes", [1, 3])
def test_gradients_of_the_shared_model_stay_local(lanes):
    """Every client descends on its own target; nothing is summed over devices."""
    def descend(lane, shared, client):
        model = lane.repeat(4, lambda i, w: w - 0.1 * jax.grad(
            lambda w: jnp.sum((w - client["x"]) ** 2))(w), shared)
        return model, jnp.float32(1), model

    _, _, kept = run(2, lanes, descend)
    w = np.full(5, 0.5)
    for _ in range(4):
        w -= 0.2 * (w - START)
    np.testing.assert_allclose(kept, w, rtol=1e-6)


def test_a_gradient_of_the_closed_over_shared_model_stays_local_too():
    def gradient(lane, shared, client):
        g = jax.grad(lambda w: jnp.sum((w - client["x"]) ** 2))(shared)
        return g, jnp.float32(1), g

    _, _, kept = run(2, 1, gradient)
    np.testing.assert_allclose(kept, 2 * (0.5 - START), rtol=1e-6)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("block", [1, 3, 100])
def test_blocks_keep_rows_in_order(devices, block):
    rows = jnp.arange(11.0)
    out = jax.jit(lambda: engine.map_blocks(
        lambda s, r: {"y": s * r}, 2.0, rows, mesh=engine.make_mesh(jax.devices()[:devices]),
        block=block))()
    np.testing.assert_array_equal(out["y"], 2 * np.arange(11.0))


def test_the_client_update_has_no_communication_but_the_closing_sum():
    clients = {"times": jnp.asarray(COUNTS), "x": jnp.asarray(START), "id": jnp.arange(5)}
    mesh = engine.make_mesh(jax.devices()[:2])
    text = jax.jit(lambda c: engine.for_each_client(
        update, jnp.float32(0.5), c, c["times"], mesh=mesh, lanes=1)[0]).lower(
            engine.replicate(clients, mesh)).compile().as_text()
    assert "all-gather" not in text
    assert "all-reduce" in text
