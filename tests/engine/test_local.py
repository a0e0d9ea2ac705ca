"""Local training, the server's step and the layers, against optax and Flax."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from fedfr_jax import engine

SIZES = np.array([5, 0, 8, 2], np.int32)


def squares(params, examples, key):
    return jnp.square(examples["x"] @ params["w"] - examples["y"])


def train(sizes, lanes, devices, optimizer, epochs=2, batch=3, shuffle=True):
    rng = np.random.default_rng(0)
    data = {
        "x": rng.standard_normal((len(sizes), 8, 2), np.float32),
        "y": np.ones((len(sizes), 8), np.float32),
    }
    padding = np.arange(8) >= sizes[:, None]
    data["x"][padding] = 1e6  # would be noticed

    def update(lane, shared, device, client, state):
        key = jax.random.fold_in(jax.random.key(0), client["id"])
        params, loss = engine.train_locally(
            lane, squares, {"w": shared}, client["data"], client["size"], optimizer,
            batch=batch, key=key, epochs=epochs, shuffle=shuffle,
        )  # fmt: skip
        return (), 1.0, (), (params["w"], loss)

    clients = {"id": np.arange(len(sizes)), "size": sizes, "data": data}
    mesh = engine.make_mesh(jax.devices()[:devices])
    run = jax.jit(
        lambda clients: engine.for_each_client(
            update, jnp.ones(2), clients=clients, mesh=mesh, lanes=lanes
        )
    )
    return clients, run(clients).metrics


def plain(data, size, client, optimizer, epochs=2, batch=3, shuffle=True):
    """The same with a loop of Python."""
    key, params = jax.random.fold_in(jax.random.key(0), client), {"w": jnp.ones(2)}
    state, seen = optimizer.init(params), []
    for epoch in range(epochs):
        of_order, _ = jax.random.split(jax.random.fold_in(key, epoch))
        order = np.argsort(np.asarray(jax.random.uniform(of_order, (8,)))[:size])
        order = order if shuffle else np.arange(size)
        for start in range(0, size, batch):
            rows = order[start : start + batch]
            part = jax.tree.map(lambda x, rows=rows: x[rows], data)
            each = squares(params, part, None)
            gradient = jax.grad(lambda p, part=part: squares(p, part, None).mean())(params)
            change, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, change)
            seen += each.tolist()
    return params["w"], np.mean(seen) if seen else 0.0


@pytest.mark.parametrize("devices, lanes, shuffle", [(1, 1, True), (2, 1, False), (1, 4, True)])
def test_local_training_equals_a_plain_loop(devices, lanes, shuffle):
    optimizer = optax.sgd(0.05, momentum=0.9)
    clients, (found, losses) = train(SIZES, lanes, devices, optimizer, shuffle=shuffle)
    for client, size in enumerate(SIZES.tolist()):
        data = jax.tree.map(lambda x, client=client: x[client], clients["data"])
        params, loss = plain(data, size, client, optimizer, shuffle=shuffle)
        np.testing.assert_allclose(found[client], params, rtol=1e-5)
        np.testing.assert_allclose(losses[client], loss, rtol=1e-5)


def test_a_server_with_sgd_of_rate_one_takes_the_average():
    params = {"w": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    average = {"w": jnp.array([0.5, 4.0]), "b": jnp.array(-1.0)}
    server = optax.sgd(1.0)
    found, _ = engine.server_step(server, params, server.init(params), average)
    chex.assert_trees_all_close(found, average)
    server = optax.adam(0.1)
    found, state = engine.server_step(server, params, server.init(params), average)
    np.testing.assert_allclose(found["w"], [0.9, 2.1], rtol=1e-4)  # a step towards the average
    assert int(state[0].count) == 1


@pytest.mark.parametrize("shape, window", [((2, 8, 6, 3), 2), ((1, 7, 9, 2), 2), ((2, 9, 9, 1), 3)])
def test_max_pool_is_that_of_flax(shape, window):
    x = jax.random.normal(jax.random.key(0), shape)

    def theirs(x):
        return nn.max_pool(x, (window, window), (window, window))

    np.testing.assert_array_equal(engine.max_pool(x, window), theirs(x))
    np.testing.assert_allclose(
        jax.grad(lambda x: jnp.sum(jnp.sin(engine.max_pool(x, window))))(x),
        jax.grad(lambda x: jnp.sum(jnp.sin(theirs(x))))(x),
        rtol=1e-6,
    )


def test_equal_maxima_share_the_gradient():
    x = jnp.zeros((1, 2, 4, 1)).at[0, 0, 2, 0].set(1.0)
    slope = jax.grad(lambda x: engine.max_pool(x).sum())(x)
    np.testing.assert_array_equal(slope[0, :, :, 0], [[0.25, 0.25, 1, 0], [0.25, 0.25, 0, 0]])


def test_layers_exchange_weights_with_flax():
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    ours = nn.Sequential([engine.Conv(4, padding=0, use_bias=True), engine.Dense(5)])
    theirs = nn.Sequential([nn.Conv(4, (3, 3), padding="VALID"), nn.Dense(5)])
    variables = ours.init(jax.random.key(1), x)
    np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), atol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.1])
@pytest.mark.parametrize("shape", [(7, 5, 3), (600, 50)])
def test_dropout_drops_its_share_and_keeps_the_mean(rate, shape):
    x = jnp.ones(shape) * 3
    found = np.asarray(engine.dropout(x, rate, jax.random.key(2)))
    kept = found != 0
    np.testing.assert_allclose(found[kept], 3 / (1 - rate), rtol=1e-6)
    expected = 5 * np.sqrt(rate * (1 - rate) / found.size)  # standard deviations
    assert abs(np.mean(~kept) - rate) <= expected
    slope = jax.grad(lambda x: engine.dropout(x, rate, jax.random.key(2)).sum())(x)
    np.testing.assert_allclose(slope, found / 3, rtol=1e-6)


def test_dropout_draws_every_value_for_itself():
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = jax.vmap(lambda k: engine.dropout(jnp.ones((3, 40, 2)), 0.25, k) != 0)(keys)
    drawn = np.asarray(drawn).reshape(2000, -1)
    spread = np.corrcoef(drawn.T) - np.eye(drawn.shape[1])
    assert np.abs(spread).max() < 0.13 and np.abs(drawn.mean(0) - 0.75).max() < 0.05
