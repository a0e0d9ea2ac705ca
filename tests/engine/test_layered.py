"""Strategy ``layered``: every form is the ordinary convolution, and the rule chooses among them."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export

from fedfr_jax import engine
from fedfr_jax.engine import layered as module
from fedfr_jax.engine.convolutions import conv2d, default_strategy
from fedfr_jax.engine.forms import by_patches, ordinary
from fedfr_jax.engine.layer_rule import FORMS, form_of
from fedfr_jax.engine.layered import layered
from fedfr_jax.engine.layers import Conv
from fedfr_jax.models import build
from fedfr_jax.settings import ModelConfig

ENGINE = pathlib.Path(__file__).parents[2] / "docs/engine.md"
# (map, window, stride, padding, depthwise)
GEOMETRIES = [(8, 3, 1, 1, False), (9, 3, 2, 1, False), (7, 1, 2, 0, False), (8, 3, 2, 1, True)]


@functools.cache
def always(form):
    return lambda *args, **kwargs: form


def operands(lanes, geometry, dtype=np.float32):
    size, window, _, _, depthwise = geometry
    rng = np.random.RandomState(0)
    x = rng.standard_normal((*lanes, 2, size, size, 6))
    kernel = rng.standard_normal((*lanes, window, window, *((1, 6) if depthwise else (6, 5))))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


def value_and_gradients(convolve, geometry):
    _, _, stride, padding, depthwise = geometry

    def loss(x, kernel):
        y = convolve(x, kernel, stride, padding, 6 if depthwise else 1)
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def in_form(form):
    return lambda *args: layered(*args, always(form))


def stacked(results):
    return jax.tree.map(lambda *v: np.stack([np.asarray(x, np.float32) for x in v]), *results)


def assert_close(actual, expected, tolerance):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape
        difference = np.asarray(a, np.float32) - np.asarray(e, np.float32)
        assert np.abs(difference).max() <= tolerance * np.abs(np.asarray(e, np.float32)).max()


@pytest.mark.parametrize(
    "form, geometry",
    [
        (form, geometry)
        for form in FORMS
        for geometry in GEOMETRIES
        if form not in (("custom", "patches") if geometry[-1] else ("shifted",))
    ],
)
def test_every_form_is_the_ordinary_convolution(form, geometry):
    x, kernel = operands((3,), geometry)
    f = value_and_gradients(in_form(form), geometry)
    expected = [
        value_and_gradients(ordinary, geometry)(*lane) for lane in zip(x, kernel, strict=True)
    ]
    assert_close(jax.jit(jax.vmap(f))(x, kernel), stacked(expected), 1e-5)
    assert_close(f(x[0], kernel[0]), expected[0], 1e-5)  # without vmap


@pytest.mark.parametrize("form", ["grouped", "patches", "apart"])
def test_forms_in_bfloat16(form):
    geometry = (8, 3, 1, 1, False)
    x, kernel = operands((3,), geometry, jnp.bfloat16)
    exact = [
        value_and_gradients(ordinary, geometry)(*(v.astype(jnp.float32) for v in lane))
        for lane in zip(x, kernel, strict=True)
    ]
    actual = jax.jit(jax.vmap(value_and_gradients(in_form(form), geometry)))(x, kernel)
    assert {v.dtype for v in actual[1]} == {jnp.dtype(jnp.bfloat16)}
    assert_close(actual, stacked(exact), 3e-2)


def test_more_clients_than_copies_take_turns_in_groups(monkeypatch):
    monkeypatch.setattr(module, "MOST_COPIES", 2)
    geometry = (6, 3, 1, 1, False)
    x, kernel = operands((5,), geometry)
    f = jax.vmap(value_and_gradients(lambda *a: layered(*a, lambda *b, **c: "apart"), geometry))
    one = value_and_gradients(ordinary, geometry)
    assert "scan" in str(jax.make_jaxpr(f)(x, kernel))
    expected = [one(*lane) for lane in zip(x, kernel, strict=True)]
    assert_close(jax.jit(f)(x, kernel), stacked(expected), 1e-5)


def recording(seen, form="apart"):
    def choose(lanes, batch, *args, **kwargs):
        seen.add((lanes, batch))
        return form

    return choose


@pytest.mark.parametrize("form", ["grouped", "apart"])
def test_nested_vmap_multiplies_lanes_and_shared_weights_multiply_images(form):
    geometry = (6, 3, 1, 1, False)
    x, kernel = operands((2, 3), geometry)
    one = value_and_gradients(ordinary, geometry)
    both, shared = set(), set()
    f = value_and_gradients(lambda *a: layered(*a, recording(both, form)), geometry)
    expected = stacked([stacked([one(x[i, j], kernel[i, j]) for j in range(3)]) for i in range(2)])
    assert_close(jax.vmap(jax.vmap(f))(x, kernel), expected, 1e-5)
    assert max(lanes for lanes, _ in both) == 6

    def convolve(x, kernel):
        return layered(x, kernel, 1, 1, 1, recording(shared, form))

    out = jax.vmap(jax.vmap(convolve, (0, None)), (0, 0))(x, kernel[:, 0])  # 2 kernels, 3 each
    expected = [[ordinary(x[i, j], kernel[i, 0], 1, 1) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(out, np.array(expected), rtol=1e-4, atol=1e-4)
    assert (2, 6) in shared  # 2 lanes with the images of three clients
    out = jax.vmap(lambda k: convolve(x[0, 0], k))(kernel[0])  # shared images
    expected = [ordinary(x[0, 0], k, 1, 1) for k in kernel[0]]
    np.testing.assert_allclose(out, np.array(expected), rtol=1e-4, atol=1e-4)


def test_gradient_of_a_batched_function():
    geometry = (6, 3, 1, 1, False)
    x, kernel = operands((3,), geometry)

    def loss(convolve, kernel):
        return jnp.sum(jnp.sin(jax.vmap(lambda x, k: convolve(x, k, 1, 1, 1))(x, kernel)))

    actual = jax.grad(functools.partial(loss, in_form("apart")))(kernel)
    np.testing.assert_allclose(
        actual, jax.grad(functools.partial(loss, ordinary))(kernel), rtol=1e-4, atol=1e-4
    )


# (lanes, batch, map, channels, stride) and the fastest of grouped, patches and apart on an H100,
# forward and both gradients of a 3x3 convolution.
MEASURED = [
    ((16, 16, 56, (64, 64), 1), "apart"),
    ((16, 16, 28, (128, 128), 1), "grouped"),
    ((4, 64, 28, (128, 128), 1), "apart"),
    ((16, 16, 14, (256, 256), 1), "grouped"),
    ((16, 16, 7, (512, 512), 1), "patches"),
    ((16, 16, 56, (64, 128), 2), "patches"),
    ((64, 10, 32, (3, 32), 1), "patches"),
    ((64, 10, 16, (32, 64), 1), "patches"),
]


@pytest.mark.parametrize("shape, fastest", MEASURED)
def test_the_rule_finds_what_was_fastest(shape, fastest):
    lanes, batch, side, channels, stride = shape
    assert form_of(lanes, batch, side, channels, stride=stride) == fastest
    assert form_of(1, batch, side, channels, stride=stride) == "grouped"
    assert form_of(lanes, batch, side, channels, stride=stride, platform="cpu") == "custom"


def layers_of(name, image_size=112):
    """(name, shape of the input, features, window, stride, depthwise) of all convolutions."""
    network = build(ModelConfig(name=name), image_size, "layered")
    found = []

    def record(call, args, kwargs, context):
        conv = context.module
        if isinstance(conv, Conv) and context.method_name == "__call__":
            shape = args[0].shape
            found.append(
                ("/".join(conv.path), shape, conv.features, conv.size, conv.stride, conv.depthwise)
            )
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        variables = network.init(jax.random.key(0))
    return found, variables


def table(name, lanes=16, batch=16):
    """Rows of layers that take the same form for the same reason, in the order of the network."""
    rows = {}
    for _, shape, features, window, stride, depthwise in layers_of(name)[0]:
        form = form_of(
            lanes,
            batch,
            shape[1],
            (shape[-1], features),
            stride=stride,
            window=window,
            depthwise=depthwise,
        )
        kind = f"{window}×{window}" + " depthwise" * depthwise + f", stride {stride}" * (stride > 1)
        key = (f"{shape[1]}²", f"{shape[-1]}→{features}", kind, form)
        rows[key] = rows.get(key, 0) + 1
    return [f"| {' | '.join(key[:3])} | {count} | `{key[3]}` |" for key, count in rows.items()]


@pytest.mark.parametrize("name", ["spherenet", "mobilefacenet"])
def test_the_table_in_the_documentation_is_what_the_rule_gives(name):
    rows = table(name)
    print("\n".join(rows))
    assert "\n".join(rows) in ENGINE.read_text(encoding="utf-8")


def lowered(f, platforms, *args):
    return export.export(jax.jit(f), platforms=platforms)(*args).mlir_module()


def convolutions(text):
    """Group counts of a program's convolutions."""
    return re.findall(r"batch_group_count = (\d+) : i64, feature_group_count = (\d+)", text)


def step(strategy, stride=1):
    return jax.grad(
        lambda x, k: jnp.sum(
            conv2d(x, k, stride=stride, strategy=strategy).astype(jnp.float32) ** 2
        ),
        (0, 1),
    )


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lowers_for_accelerators_in_the_form_of_the_rule(platform, dtype):
    x, kernel = jnp.zeros((3, 2, 112, 112, 64), dtype), jnp.zeros((3, 3, 3, 64, 64), dtype)
    assert form_of(3, 2, 112, (64, 64)) == "apart"
    text = lowered(jax.vmap(step("layered")), [platform], x, kernel)
    assert convolutions(text) == [("1", "1")] * 9  # three for each client
    text = lowered(jax.vmap(step("layered", stride=2)), ["cuda"], x, kernel)
    assert not convolutions(text) and text.count("stablehlo.dot_general") == 3
    if dtype == "bfloat16":  # products of bfloat16, summed in float32
        products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
        assert all(line.count("bf16>") == 2 for line in products)
    assert lowered(jax.vmap(step("layered")), ["cpu", "cuda", "tpu"], x, kernel)


def test_grouped_form_in_the_engine_lowers():
    assert form_of(3, 16, 14, (128, 128)) == "grouped"

    def update(lane, shared, device, client, state):
        def step(i, kernel):
            return kernel - step_of_layer(client, kernel)[1]

        return lane.repeat(2, step, shared), 1.0, (), ()

    step_of_layer, mesh = step("layered"), engine.make_mesh(jax.devices()[:1])
    run = jax.jit(
        lambda kernel, x: engine.for_each_client(update, kernel, clients=x, mesh=mesh, lanes=3)
    )
    shapes = jax.ShapeDtypeStruct((3, 3, 128, 128), np.float32), (3, 16, 14, 14, 128)
    traced = run.trace(shapes[0], jax.ShapeDtypeStruct(shapes[1], np.float32))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert ("1", "3") in convolutions(text) and ("3", "1") in convolutions(text)


def test_one_lane_is_the_ordinary_convolution():
    x, kernel = jnp.zeros((2, 12, 12, 64)), jnp.zeros((3, 3, 64, 64))
    texts = [lowered(step(strategy), ["cuda"], x, kernel) for strategy in ("layered", "grouped")]
    mine, plain = (re.findall(r"stablehlo\.(\w+)", text) for text in texts)
    for name in ("convolution", "dot_general", "transpose", "reverse", "pad"):
        assert mine.count(name) == plain.count(name)
    # The choice of a platform leaves nothing in a compiled program.
    assert "conditional" not in jax.jit(step("layered")).lower(x, kernel).compile().as_text()


def test_patches_in_bfloat16_are_not_converted_to_float32():
    x, kernel = (
        jnp.zeros((3, 2, 8, 8, 64), jnp.bfloat16),
        jnp.zeros((3, 3, 3, 64, 32), jnp.bfloat16),
    )
    assert by_patches(x[0], kernel[0], 1, 1).dtype == jnp.bfloat16
    text = lowered(jax.vmap(step("patches")), ["cuda"], x, kernel)
    assert "8x8x576xbf16" in text and not re.search(r"convert.*8x8x576xbf16>\) -> .*f32", text)


def test_default_strategy_of_accelerators(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert default_strategy(1) == "grouped" and default_strategy(16) == "layered"
