"""Every convolution strategy equals the ordinary convolution, values and gradients."""

import chex
import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from fedfr_jax.engine import winograd
from fedfr_jax.engine.convolutions import STRATEGIES, conv2d
from fedfr_jax.models import layers

# jax 0.7 has it in jax.experimental only
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64

# (size, kernel, stride, padding, depthwise)
GEOMETRIES = [
    (8, 3, 1, 1, False),
    (9, 3, 2, 1, False),
    (8, 3, 2, 1, False),
    (6, 1, 1, 0, False),
    (7, 1, 2, 0, False),
    (7, 5, 3, 2, False),
    (8, 3, 1, 1, True),
    (9, 3, 2, 1, True),
    (7, 7, 1, 0, True),
    (8, 3, 1, 0, False),
    (9, 2, 3, 0, False),
    (10, 3, 2, 0, False),
]


def _case(size, window, depthwise, lanes=None):
    rng = np.random.RandomState(0)
    lead = () if lanes is None else (lanes,)
    x = rng.standard_normal((*lead, 2, size, size, 6)).astype(np.float32)
    kernel = rng.standard_normal(
        (*lead, window, window, 1 if depthwise else 6, 6 if depthwise else 5)
    ).astype(np.float32)
    return x, kernel


def _value_and_gradients(strategy, geometry):
    _, _, stride, padding, depthwise = geometry

    def loss(x, kernel):
        y = conv2d(
            x,
            kernel,
            stride=stride,
            padding=padding,
            groups=6 if depthwise else 1,
            strategy=strategy,
        )
        return jnp.sum(jnp.sin(y)), y

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def _assert_close(actual, expected):
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_ordinary_convolution(strategy, geometry):
    x, kernel = _case(geometry[0], geometry[1], geometry[4])
    _assert_close(
        _value_and_gradients(strategy, geometry)(x, kernel),
        _value_and_gradients("grouped", geometry)(x, kernel),
    )


@pytest.mark.parametrize("lanes", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("geometry", GEOMETRIES[:3] + GEOMETRIES[6:7])
def test_vmap_over_clients_equals_a_loop(strategy, geometry, lanes):
    x, kernel = _case(geometry[0], geometry[1], geometry[4], lanes)
    f = _value_and_gradients(strategy, geometry)
    looped = [f(x[i], kernel[i]) for i in range(lanes)]
    _assert_close(jax.vmap(f)(x, kernel), jax.tree.map(lambda *v: np.stack(v), *looped))


# Shapes on either side of every choice that the custom strategy makes:
# (images, size, channels, features, stride).
SHAPES = [
    (2, 9, 3, 8, 2),
    (2, 8, 3, 8, 1),
    (2, 9, 64, 66, 2),
    (2, 6, 64, 66, 1),
    (12, 23, 5, 6, 1),
    (13, 37, 5, 6, 2),
    (6, 74, 5, 6, 2),
    (12, 38, 3, 6, 1),
]


@pytest.mark.parametrize(
    "dtype, tolerance",
    [("float32", 1e-5), pytest.param("bfloat16", 2e-2, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_custom_gradients_of_large_and_small_shapes(shape, dtype, tolerance):
    n, size, channels, features, stride = shape
    rng = np.random.RandomState(0)
    out = -(-size // stride)
    x = jnp.asarray(rng.standard_normal((n, size, size, channels)), dtype)
    kernel = jnp.asarray(rng.standard_normal((3, 3, channels, features)), dtype)
    dy = jnp.asarray(rng.standard_normal((n, out, out, features)), dtype)

    def value_and_gradients(strategy, *operands):
        y, pull = jax.vjp(
            lambda x, k: conv2d(x, k, stride=stride, strategy=strategy), *operands[:2]
        )
        return y, *pull(operands[2])

    expected = value_and_gradients("grouped", *(v.astype(jnp.float32) for v in (x, kernel, dy)))
    for a, e in zip(value_and_gradients("custom", x, kernel, dy), expected, strict=True):
        assert a.dtype == dtype
        assert np.abs(np.asarray(a, np.float32) - e).max() <= tolerance * np.abs(e).max()


# (images, height, width, channels, features, padding): odd sizes, images that do not divide
# into equal pieces, tiles of both sizes, windows that stay inside or leave the map.
WINOGRAD_SHAPES = [
    (13, 14, 14, 64, 66, 1),
    (3, 33, 19, 65, 64, 1),
    (23, 7, 4, 64, 64, 1),
    (5, 16, 16, 64, 64, 0),
    (6, 30, 30, 32, 64, 0),
    (32, 6, 6, 64, 64, 1),
    (7, 9, 12, 64, 70, 2),
    (5, 30, 31, 70, 32, 1),
    (1, 40, 41, 64, 64, 1),
    (40, 4, 4, 64, 64, 1),
    (67, 3, 3, 64, 64, 1),
]


def _winograd_case(shape, seed=0):
    n, height, width, channels, features, padding = shape
    rng = np.random.RandomState(seed)
    out = (n, height + 2 * padding - 2, width + 2 * padding - 2, features)
    return [
        rng.standard_normal(s)
        for s in ((n, height, width, channels), (3, 3, channels, features), out)
    ]


def _pulled(strategy, padding, x, kernel, dy):
    y, pull = jax.vjp(lambda x, k: conv2d(x, k, padding=padding, strategy=strategy), x, kernel)
    return y, *pull(dy)


@pytest.mark.parametrize(
    "shape",
    WINOGRAD_SHAPES[:5] + [pytest.param(s, marks=pytest.mark.slow) for s in WINOGRAD_SHAPES[5:]],
)
def test_winograd_equals_ordinary_convolution_in_float64(shape):
    operands = _winograd_case(shape)
    assert winograd.is_faster(operands[2].shape, shape[3])
    with enable_x64(True):
        expected = _pulled("grouped", shape[-1], *operands)
        assert expected[0].dtype == np.float64
    actual = jax.jit(_pulled, static_argnums=(0, 1))(
        "custom", shape[-1], *(v.astype(np.float32) for v in operands)
    )
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == np.float32
        assert np.abs(a - np.asarray(e)).max() <= 3e-5 * np.abs(e).max()


@pytest.mark.parametrize(
    "shape, forward, weights",
    [
        ((32, 6, 6, 64, 64), True, True),
        ((32, 6, 6, 128, 128), True, True),
        ((32, 6, 6, 32, 32), True, False),
        ((64, 6, 6, 32, 32), True, False),  # tiles of side 3 need wider layers here
        ((32, 12, 12, 32, 32), True, True),
        ((64, 28, 28, 16, 64), False, False),  # few channels
        ((4, 7, 7, 512, 512), False, False),  # few pixels
        ((16, 8, 8, 64, 64), True, True),
        ((8, 8, 8, 64, 64), True, False),
        ((64, 3, 3, 128, 128), True, True),
        ((32, 3, 3, 64, 64), False, False),  # few pixels
        ((640, 2, 2, 64, 64), False, False),  # mostly edges
    ],
)
def test_winograd_is_used_where_it_was_measured_faster(shape, forward, weights):
    *maps, channels, features = shape
    assert winograd.is_faster((*maps, features), channels) == forward
    assert winograd.is_faster((*maps, features), channels, weights=True) == weights


def test_sides_of_tiles_have_the_fewest_products():
    sizes = (3, 4, 6, 7, 8, 9, 10, 14, 18, 28, 56)
    assert [winograd.side_of(s, s) for s in sizes] == [3, 4, 3, 4, 4, 3, 4, 4, 4, 4, 4]
    assert winograd.side_of(2, 2) == 2 and winograd.side_of(2, 2, weights=True) == 3
    assert winograd.side_of(6, 4) == winograd.side_of(6, 4, weights=True) == 4


def test_winograd_under_vmap_and_scan_with_own_weights():
    shape = (6, 10, 9, 64, 64, 1)
    clients = [[v.astype(np.float32) for v in _winograd_case(shape, seed)] for seed in range(3)]
    assert winograd.is_faster(clients[0][2].shape, shape[3])
    alone = [_pulled("grouped", 1, *c) for c in clients]
    expected = [np.stack(v) for v in zip(*alone, strict=True)]
    stacked = [np.stack(v) for v in zip(*clients, strict=True)]

    def one(client):
        return _pulled("custom", 1, *client)

    for actual in (jax.vmap(one)(stacked), jax.lax.map(one, stacked)):
        for a, e in zip(actual, expected, strict=True):
            assert np.abs(a - e).max() <= 3e-5 * np.abs(e).max()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_custom_gradients_lower_for_accelerators(platform, dtype, stride):
    features = 64 if stride == 1 else 8  # Winograd's way and the direct one
    x, kernel = jnp.zeros((2, 12, 23, 23, 64), dtype), jnp.zeros((2, 3, 3, 64, features), dtype)
    f = jax.vmap(
        jax.grad(lambda x, k: jnp.sum(conv2d(x, k, stride=stride, strategy="custom")), (0, 1))
    )
    export.export(jax.jit(f), platforms=[platform])(x, kernel)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_prelu_and_matmul_gradients(dtype, tolerance):
    rng = np.random.RandomState(0)
    x = rng.standard_normal((3, 5, 5, 6)).astype(np.float32)
    slope, w = rng.standard_normal(6).astype(np.float32), rng.standard_normal((6, 4))
    x[0, 0, 0, 0] = 0  # where the slope holds

    def gradients(prelu, matmul, x, slope, w):
        def loss(x, slope, w):
            y = prelu(x, slope)
            return jnp.sum(jnp.sin(matmul(y.reshape(-1, 6), w)))

        return jax.grad(loss, (0, 1, 2))(x, slope, w)

    expected = gradients(
        lambda x, s: jnp.where(x > 0, x, s * x), jnp.matmul, x, slope, w.astype(np.float32)
    )
    for rows in (75, 10):  # matmul goes another way for few rows
        if rows == 10:
            x = x.reshape(-1, 6)[:10].reshape(1, 2, 5, 6)
            expected = gradients(
                lambda x, s: jnp.where(x > 0, x, s * x), jnp.matmul, x, slope, w.astype(np.float32)
            )
        actual = gradients(
            layers.prelu,
            layers.matmul,
            jnp.asarray(x, dtype),
            jnp.asarray(slope),
            jnp.asarray(w, dtype),
        )
        for a, e in zip(actual, expected, strict=True):
            assert np.abs(np.asarray(a, np.float32) - e).max() <= 2 * tolerance * np.abs(e).max()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_shared_weights_under_vmap(strategy):
    x, _ = _case(8, 3, False, lanes=3)
    _, kernel = _case(8, 3, False)
    out = jax.vmap(lambda x: conv2d(x, kernel, strategy=strategy))(x)
    expected = jnp.stack([conv2d(x[i], kernel, strategy="grouped") for i in range(3)])
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_custom_strategy_has_no_grouped_convolution_for_per_client_weights():
    x, kernel = _case(8, 3, False, lanes=3)
    f = jax.vmap(jax.grad(lambda x, k: jnp.sum(conv2d(x, k, strategy="custom") ** 2), (0, 1)))
    text = jax.jit(f).lower(x, kernel).as_text()
    assert "convolution" in text
    assert "feature_group_count = 3" not in text and "batch_group_count = 3" not in text


def test_unknown_strategy_and_groups_are_refused():
    x, kernel = _case(8, 3, False)
    with pytest.raises(ValueError, match="winograd"):
        conv2d(x, kernel, strategy="winograd")
    with pytest.raises(ValueError, match="groups=2"):
        conv2d(x, kernel, groups=2)
