"""Every convolution strategy equals the ordinary convolution, values and gradients."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedfr_jax.models import layers
from fedfr_jax.ops import winograd
from fedfr_jax.ops.conv import STRATEGIES, conv2d

# (size, kernel, stride, padding, depthwise)
GEOMETRIES = [(8, 3, 1, 1, False), (9, 3, 2, 1, False), (8, 3, 2, 1, False), (6, 1, 1, 0, False),
              (7, 1, 2, 0, False), (7, 5, 3, 2, False), (8, 3, 1, 1, True), (9, 3, 2, 1, True),
              (7, 7, 1, 0, True), (8, 3, 1, 0, False), (9, 2, 3, 0, False), (10, 3, 2, 0, False)]


def _case(size, window, depthwise, lanes=None):
    rng = np.random.RandomState(0)
    lead = () if lanes is None else (lanes,)
    x = rng.standard_normal((*lead, 2, size, size, 6)).astype(np.float32)
    kernel = rng.standard_normal(
        (*lead, window, window, 1 if depthwise else 6, 6 if depthwise else 5)).astype(np.float32)
    return x, kernel


def _value_and_gradients(strategy, geometry):
    _, _, stride, padding, depthwise = geometry

    def loss(x, kernel):
        y = conv2d(x, kernel, stride=stride, padding=padding, groups=6 if depthwise else 1,
                   strategy=strategy)
        return jnp.sum(jnp.sin(y)), y

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def _assert_close(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_ordinary_convolution(strategy, geometry):
    x, kernel = _case(geometry[0], geometry[1], geometry[4])
    _assert_close(_value_and_gradients(strategy, geometry)(x, kernel),
                  _value_and_gradients("grouped", geometry)(x, kernel))


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("geometry", GEOMETRIES[:3] + GEOMETRIES[6:7])
def test_vmap_over_clients_equals_a_loop(strategy, geometry, lanes):
    x, kernel = _case(geometry[0], geometry[1], geometry[4], lanes)
    f = _value_and_gradients(strategy, geometry)
    looped = [f(x[i], kernel[i]) for i in range(lanes)]
    _assert_close(jax.vmap(f)(x, kernel), jax.tree.map(lambda *v: np.stack(v), *looped))


# Shapes on either side of every choice that the custom strategy makes:
# (images, size, channels, features, stride).
SHAPES = [(2, 9, 3, 8, 2), (2, 8, 3, 8, 1), (2, 9, 64, 66, 2), (2, 6, 64, 66, 1),
          (16, 13, 64, 66, 1), (2, 42, 128, 130, 1), (12, 23, 5, 6, 1), (13, 37, 5, 6, 2), (6, 74, 5, 6, 2), (12, 38, 3, 6, 1)]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_custom_gradients_of_large_and_small_shapes(shape, dtype, tolerance):
    n, size, channels, features, stride = shape
    rng = np.random.RandomState(0)
    out = -(-size // stride)
    x = jnp.asarray(rng.standard_normal((n, size, size, channels)), dtype)
    kernel = jnp.asarray(rng.standard_normal((3, 3, channels, features)), dtype)
    dy = jnp.asarray(rng.standard_normal((n, out, out, features)), dtype)

    def value_and_gradients(strategy, *operands):
        y, pull = jax.vjp(lambda x, k: conv2d(x, k, stride=stride, strategy=strategy),
                          *operands[:2])
        return y, *pull(operands[2])

    expected = value_and_gradients("grouped", *(v.astype(jnp.float32) for v in (x, kernel, dy)))
    for a, e in zip(value_and_gradients("custom", x, kernel, dy), expected, strict=True):
        assert a.dtype == dtype
        assert np.abs(np.asarray(a, np.float32) - e).max() <= tolerance * np.abs(e).max()


# (images, height, width, padding of rows, of columns): one piece, several, pieces of one image.
@pytest.mark.parametrize("shape", [
    (2, 8, 8, (1, 1), (1, 1)), (3, 7, 5, (1, 1), (1, 1)), (1, 1, 1, (1, 1), (1, 1)),
    (2, 6, 9, (0, 2), (-1, 1)), (35, 14, 13, (1, 1), (1, 1)), (2, 66, 65, (1, 1), (0, 1))])
def test_winograd_is_the_convolution(shape):
    n, height, width, *padding = shape
    rng = np.random.RandomState(0)
    x = rng.standard_normal((n, height, width, 5)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 5, 6)).astype(np.float32)
    y, pull = jax.vjp(lambda k: jax.lax.conv_general_dilated(
        x, k, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")), kernel)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    expected = y, pull(dy)[0]
    actual = jax.jit(lambda *a: (winograd.forward(*a[:2], padding),
                                 winograd.weight_gradient(a[0], a[2], padding)))(x, kernel, dy)
    for a, e in zip(actual, expected, strict=True):
        assert np.abs(a - e).max() <= 1e-5 * np.abs(e).max()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_custom_gradients_lower_for_accelerators(platform, dtype):
    x, kernel = jnp.zeros((2, 12, 23, 23, 64), dtype), jnp.zeros((2, 3, 3, 64, 8), dtype)
    f = jax.vmap(jax.grad(lambda x, k: jnp.sum(conv2d(x, k, stride=2, strategy="custom")),
                          (0, 1)))
    jax.export.export(jax.jit(f), platforms=[platform])(x, kernel)


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

    expected = gradients(lambda x, s: jnp.where(x > 0, x, s * x), jnp.matmul, x, slope,
                         w.astype(np.float32))
    for rows in (75, 10):  # matmul goes another way for few rows
        if rows == 10:
            x = x.reshape(-1, 6)[:10].reshape(1, 2, 5, 6)
            expected = gradients(lambda x, s: jnp.where(x > 0, x, s * x), jnp.matmul, x, slope,
                                 w.astype(np.float32))
        actual = gradients(layers.prelu, layers.matmul, jnp.asarray(x, dtype),
                           jnp.asarray(slope), jnp.asarray(w, dtype))
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
