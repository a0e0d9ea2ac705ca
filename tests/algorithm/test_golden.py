"""The losses and the local training against outputs of the authors' PyTorch modules.

Runs on every file of the folder ``FEDFR_GOLDEN_DIR`` (default: ``tests/golden``); which test a file
belongs to is told by the arrays in it, and seed and sizes are read from it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import GOLDEN, golden_inputs, in_double

from fedfr_jax.algorithm import losses
from fedfr_jax.algorithm.features import features
from fedfr_jax.algorithm.local_state import LOSS_TERMS, start_training
from fedfr_jax.algorithm.pool import Batch
from fedfr_jax.algorithm.round import local_step
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.algorithm.transforms import TRANSFORMS
from fedfr_jax.methods.fedfr import Options
from fedfr_jax.models import build
from fedfr_jax.models.weights import from_torch, to_torch
from fedfr_jax.settings import FedConfig, LossConfig, ModelConfig


def _files(key):
    """Golden files that hold ``key``; a skipped parameter where there is none."""
    found = [f for f in sorted(GOLDEN.glob("**/*.npz")) if key in np.load(f).files]
    return [pytest.param(f, id="/".join(f.relative_to(GOLDEN).parts)) for f in found] or [
        pytest.param(None, marks=pytest.mark.skip(reason=f"no golden files in {GOLDEN}"))
    ]


def _assert_close(actual, expected, tolerance, name=""):
    expected = np.asarray(expected)
    error = np.max(np.abs(np.asarray(actual, np.float64) - expected))
    assert error <= tolerance * np.max(np.abs(expected)), (name, error)


@pytest.mark.parametrize("path", _files("cosface_logits"))
def test_components(path):
    golden = np.load(path)
    sizes = {k: int(golden[k]) for k in ("batch", "local_classes", "public_classes")}
    case = golden_inputs().component_case(int(golden["seed"]), **sizes)
    loss, terms, labels = LossConfig(), Options(), case["labels"]
    binary = dict(scale=terms.binary_scale, margin=terms.binary_margin, power=terms.binary_power)

    def cosface(features, classes):
        return losses.margin_loss(features, classes, labels, scale=loss.scale, margin=loss.margin)

    def personal(features, weight, bias):
        return TRANSFORMS["linear"].apply({"weight": weight, "bias": bias}, features)

    def dfc(features, weight, bias, binary_weight, binary_bias):
        return losses.binary_loss(
            personal(features, weight, bias),
            binary_weight,
            binary_bias,
            labels,
            balance=terms.binary_balance,
            **binary,
        )

    def contrastive(features):
        direction = losses.contrastive_direction(case["global_features"], case["previous_features"])
        return losses.contrastive_loss(features, direction, temperature=terms.temperature)

    dfc_inputs = [
        case[k]
        for k in ("features", "transform_weight", "transform_bias", "binary_weight", "binary_bias")
    ]
    cosine = losses.cosine_logits(case["features"], case["class_embeddings"])
    value, gradient = jax.value_and_grad(cosface, (0, 1))(
        case["features"], case["class_embeddings"]
    )
    dfc_value, dfc_gradient = jax.value_and_grad(dfc, tuple(range(5)))(*dfc_inputs)
    con_value, con_gradient = jax.value_and_grad(contrastive)(case["features"])
    logits, positive = losses.binary_logits(
        personal(*dfc_inputs[:3]), *dfc_inputs[3:], labels, **binary
    )
    results = {
        "cosine": cosine,
        "cosface_logits": losses.cosface_logits(
            cosine, labels, scale=loss.scale, margin=loss.margin
        ),
        "cosface_loss": value,
        "cosface_grad_features": gradient[0],
        "cosface_grad_class_embeddings": gradient[1],
        "binary_logits": logits,
        "personal_features": personal(*dfc_inputs[:3]),
        "binary_loss": dfc_value,
        "contrastive_loss": con_value,
        "contrastive_grad_features": con_gradient,
        **{
            f"binary_grad_{k}": g
            for k, g in zip(
                ("features", "transform_weight", "transform_bias", "weight", "bias"),
                dfc_gradient,
                strict=True,
            )
        },
    }
    for name, value in results.items():
        if name in golden.files:
            _assert_close(value, golden[name], 1e-5, name)
        else:  # a large one
            expected, tensor = golden[f"head/{name}"], np.asarray(value, np.float64)
            _assert_close(tensor[: len(expected)], expected, 1e-5, name)
            _assert_close([tensor.sum(), np.linalg.norm(tensor)], golden[f"sum/{name}"], 1e-5, name)
    np.testing.assert_array_equal(positive, golden["binary_targets"])


@pytest.mark.slow
@pytest.mark.parametrize("path", _files("final_features"))
def test_local_training(path):
    golden = np.load(path)
    if path.parent.name == "float64":
        with in_double():
            check_local_training(golden, "float64", 1e-9, 1e-9)
    else:
        # Where a unit lies on the kink of a PReLU, the order of a float32 sum moves a gradient
        # by 1e-3; the exact comparison is the one in double precision.
        check_local_training(golden, "float32", 2e-4, 2e-3)


def check_local_training(golden, dtype, before_training, tolerance):
    sizes = {k: int(golden[k]) for k in ("batch", "steps", "local_classes", "public_classes")}
    case = golden_inputs().local_training_case(int(golden["seed"]), **sizes)
    backbone = build(ModelConfig(dtype=dtype), 112)
    method = RoundSpec(backbone, FedConfig(), LossConfig())
    variables, previous = (
        from_torch(case[k], backbone) for k in ("global_weights", "previous_weights")
    )
    k, d = sizes["local_classes"], backbone.embedding
    trained = {
        "backbone": variables["params"],
        "class_embeddings": case["class_embeddings"][:k],
        "public_embeddings": case["class_embeddings"][k:],
        "transform": TRANSFORMS["linear"].init(None, d),
        "binary_weight": case["binary_weight"],
        "binary_bias": jnp.zeros(k),
    }
    trained = jax.tree.map(lambda x: jnp.asarray(x, dtype), trained)
    state = start_training(method, trained, variables["batch_stats"])
    embed = jax.jit(lambda v, x: features(method.backbone, v, x))
    step = jax.jit(
        lambda s, b: local_step(method, s, b, float(golden["lr"]), jnp.ones(k, bool), True)
    )
    _assert_close(embed(variables, case["images"][0]), golden["first_features"], before_training)
    for i, (images, labels) in enumerate(zip(case["images"], case["labels"], strict=True)):
        before = state.losses
        direction = losses.contrastive_direction(embed(variables, images), embed(previous, images))
        state = step(state, Batch(images, labels, direction))
        step_losses = [state.losses[term] - before[term] for term in LOSS_TERMS]
        _assert_close(
            step_losses, golden["losses"][i], tolerance if i else before_training, f"losses {i}"
        )
    final = {"params": state.trained["backbone"], "batch_stats": state.batch_stats}
    _assert_close(embed(final, case["images"][-1]), golden["final_features"], tolerance)
    _assert_tensors(golden, state.trained, to_torch(final, backbone), tolerance)


def _assert_tensors(golden, trained, backbone, tolerance):
    tensors = {f"backbone/{name}": value for name, value in backbone.items()}
    tensors["class_embeddings"] = np.concatenate(
        [trained["class_embeddings"], trained["public_embeddings"]]
    )
    tensors["transform_weight"] = trained["transform"]["weight"]
    tensors["transform_bias"] = trained["transform"]["bias"]
    tensors["binary_weight"] = trained["binary_weight"]
    tensors["binary_bias"] = trained["binary_bias"]
    names = {k.split("/", 1)[1] for k in golden.files if k.startswith("sum/")}
    assert names == set(tensors)
    for name, value in tensors.items():
        tensor = np.asarray(value, np.float64).ravel()
        _assert_close(
            [tensor.sum(), np.linalg.norm(tensor)], golden[f"sum/{name}"], tolerance, name
        )
        _assert_close(tensor[:16], golden[f"head/{name}"], tolerance, name)
        if f"full/{name}" in golden.files:
            _assert_close(tensor, golden[f"full/{name}"].ravel(), tolerance, name)
