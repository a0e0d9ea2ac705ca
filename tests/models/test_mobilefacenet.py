"""MobileFaceNet: structure, names of its published weights, and real faces."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import draw, images
from small import DATA

from fedfr_jax.data.verification import read_bin
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.verification import embed_with_mirror, evaluate_pairs
from fedfr_jax.models import build, from_torch, load_weights, parameter_count, to_torch
from fedfr_jax.models import mobilefacenet as structure
from fedfr_jax.settings import ModelConfig

WEIGHTS = DATA / "mobilefacenet" / "mobilefacenet.npz"
PAIRS = DATA / "lfw" / "lfw.bin"


def mobilefacenet(size=16, **changes):
    return build(ModelConfig(name="mobilefacenet", embedding=128, **changes), size)


@pytest.fixture(scope="module")
def initial():
    return draw(mobilefacenet(), gain=2.0)


@pytest.fixture
def short(monkeypatch):
    """One bottleneck of each kind: gradients of all 15 take long to compile."""
    blocks = (("dconv_23", 8, 8, 2, None), ("res_3", 16, 8, 1, 1))
    monkeypatch.setattr(structure, "BLOCKS", blocks)


def test_parameters_and_abstract_shapes_at_112():
    backbone = mobilefacenet(112)
    variables = jax.eval_shape(backbone.init, jax.random.key(0))
    assert parameter_count(variables["params"]) == 1_003_136  # "less than 1 M" without slopes
    slopes = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        if path[-1].key == "slope"
    ]
    assert parameter_count(variables["params"]) - parameter_count(slopes) < 1_000_000
    batch = jax.ShapeDtypeStruct((2, 112, 112, 3), jnp.float32)
    features, stats = jax.eval_shape(lambda v, x: backbone.apply(v, x, True), variables, batch)
    assert features.shape == (2, 128) and features.dtype == jnp.float32
    assert parameter_count(stats) == parameter_count(variables["batch_stats"]) == 19_584


@pytest.mark.parametrize(("size", "side"), [(16, 1), (40, 3), (64, 4), (112, 7)])
def test_global_depthwise_kernel_covers_the_map(size, side):
    variables = jax.eval_shape(mobilefacenet(size).init, jax.random.key(0))
    assert variables["params"]["conv_6dw"]["conv"]["kernel"].shape == (side, side, 1, 512)
    assert variables["params"]["fc"]["kernel"].shape == (512, 128)


@pytest.mark.usefixtures("short")
def test_forward_and_backward_are_finite_and_reach_every_convolution():
    backbone, x = mobilefacenet(), images(6, 16)
    initial = draw(backbone, gain=2.0)
    weights = np.random.RandomState(3).standard_normal((6, 128))

    @jax.jit
    def gradient(params):
        def loss(params):
            features, stats = backbone.apply({**initial, "params": params}, x, True)
            return jnp.sum(features * weights), (features, stats)

        return jax.grad(loss, has_aux=True)(params)

    grads, (features, stats) = gradient(initial["params"])
    assert np.isfinite(features).all() and np.std(features) > 0.1
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), jax.tree_util.keystr(path)
        if path[-1].key == "kernel":
            assert np.abs(grad).max() > 1e-4, jax.tree_util.keystr(path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(stats))


@pytest.mark.usefixtures("short")
def test_initial_values():
    variables = mobilefacenet().init(jax.random.key(0))
    kernel = np.asarray(variables["params"]["dconv_23"]["conv_dw"]["conv"]["kernel"])
    assert kernel.shape == (3, 3, 1, 8)
    kernel = np.asarray(variables["params"]["fc"]["kernel"])
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / 512), rtol=0.02)
    assert "scale" not in variables["params"]["fc_norm"]


@pytest.mark.usefixtures("short")
def test_bfloat16_is_close_to_float32():
    x = images(4, 16)
    initial, results = draw(mobilefacenet(), gain=2.0), []
    for dtype in ("float32", "bfloat16"):
        apply = jax.jit(mobilefacenet(dtype=dtype).apply, static_argnums=2)
        results.append(np.asarray(apply(initial, x, False)[0]))
    exact, half = results
    assert half.dtype == np.float32
    relative = np.linalg.norm(half - exact) / np.linalg.norm(exact)
    assert 1e-5 < relative < 0.05


def test_published_names_round_trip_and_input_scale(initial):
    backbone = mobilefacenet()
    arrays = to_torch(initial, backbone)
    for name, shape in {
        "conv_1_conv2d_weight": (64, 3, 3, 3),
        "conv_2_dw_relu_gamma": (64,),
        "dconv_45_conv_dw_conv2d_weight": (512, 1, 3, 3),
        "res_4_block5_conv_proj_batchnorm_moving_var": (128,),
        "fc1_weight": (128, 512),
        "pre_fc1_bias": (128,),
        "fc1_gamma": (128,),
        "fc1_beta": (128,),
        "fc1_moving_mean": (128,),
    }.items():
        assert arrays[name].shape == shape
    assert "conv_6dw7_7_relu_gamma" not in arrays  # linear
    again = from_torch(arrays, backbone)
    chex.assert_trees_all_close(again, initial, rtol=1e-6)

    # Published weights see (x - 127.5) / 128, ours (x - 127.5) / 127.5.
    ours = np.asarray(initial["params"]["conv_1"]["conv"]["kernel"])
    pixel = 200.0
    np.testing.assert_allclose(
        arrays["conv_1_conv2d_weight"].transpose(2, 3, 1, 0) * (pixel - 127.5) / 128,
        ours * (pixel / 255 - 0.5) / 0.5,
        rtol=1e-5,
    )


def test_last_scale_must_be_one(initial):
    backbone = mobilefacenet()
    arrays = to_torch(initial, backbone)
    arrays["fc1_gamma"] = np.full(128, 1.1, np.float32)
    with pytest.raises(InputError, match="fc1_gamma must be all ones"):
        from_torch(arrays, backbone)


@pytest.mark.real
@pytest.mark.skipif(not WEIGHTS.exists(), reason=f"no {WEIGHTS}")
def test_published_weights_load_at_their_size_and_at_no_other():
    variables = load_weights(WEIGHTS, mobilefacenet(112))
    with np.load(WEIGHTS) as file:
        stored = file["res_3_block0_conv_sep_conv2d_weight"]
        total = sum(file[name].size for name in file.files) - file["fc1_gamma"].size
    kernel = variables["params"]["res_3_block0"]["conv_sep"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0], stored[:, :, 0, 0].T)
    assert total == parameter_count(variables)
    with pytest.raises(InputError, match=r"conv_6dw7_7_conv2d_weight.*data\.image_size"):
        load_weights(WEIGHTS, mobilefacenet(64))


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(not (WEIGHTS.exists() and PAIRS.exists()), reason=f"no {WEIGHTS} or {PAIRS}")
def test_accuracy_on_lfw_is_the_published_one():
    backbone = mobilefacenet(112)
    variables = load_weights(WEIGHTS, backbone)
    pairs = read_bin(PAIRS, 112)

    # With optimization, unlike the other tests: 24,000 images are much to compute.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def embed(batch):
        scaled = (batch.astype(jnp.float32) / 255 - 0.5) / 0.5
        return backbone.apply(variables, scaled, False)[0]

    embeddings = embed_with_mirror(embed, pairs.images, 250)
    result = evaluate_pairs(embeddings, pairs.is_same, (1e-3,))
    assert abs(result.accuracy - 0.9945) <= 0.0005
    assert abs(result.accuracy_std - 0.0047) <= 0.0005
