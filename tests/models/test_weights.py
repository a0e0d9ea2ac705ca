"""Conversion of published weights: names, layouts, and files that do not fit."""

import jax
import numpy as np
import pytest
from networks import SMALL, draw, images, small

from fedfr_jax.errors import InputError
from fedfr_jax.models import from_torch, load_weights, to_torch


def close(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", list(SMALL))
def test_published_arrays_round_trip(name):
    backbone = small(name, 32)
    variables = draw(backbone)
    arrays = to_torch(variables, backbone)
    again = from_torch(arrays, backbone)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, variables))
    counters = {"bn1.num_batches_tracked": np.int64(3)} if name == "iresnet" else {}
    parallel = {f"module.{k}": v for k, v in {**arrays, **counters}.items()}
    again = from_torch(parallel, backbone)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, variables))


def conv_nchw(x, w, stride, padding):
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    view = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", view[:, :, ::stride, ::stride], w)


def iresnet18_nchw(a, x):
    """IResNet-18 in float64 NumPy, from PyTorch names and in PyTorch's layout."""

    def norm(x, name):
        shape = (1, -1) + (1,) * (x.ndim - 2)
        mean, var, w, b = (
            a[f"{name}.{k}"].reshape(shape)
            for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * w + b

    def prelu(x, name):
        return np.where(x > 0, x, x * a[f"{name}.weight"].reshape(1, -1, 1, 1))

    x = prelu(norm(conv_nchw(x, a["conv1.weight"], 1, 1), "bn1"), "prelu")
    for stage in range(1, 5):
        for k in range(2):
            p, stride = f"layer{stage}.{k}", 2 - k
            y = conv_nchw(norm(x, f"{p}.bn1"), a[f"{p}.conv1.weight"], 1, 1)
            y = prelu(norm(y, f"{p}.bn2"), f"{p}.prelu")
            y = norm(conv_nchw(y, a[f"{p}.conv2.weight"], stride, 1), f"{p}.bn3")
            if k == 0:
                x = norm(conv_nchw(x, a[f"{p}.downsample.0.weight"], 2, 0), f"{p}.downsample.1")
            x = x + y
    x = norm(x, "bn2").reshape(len(x), -1)
    return norm(x @ a["fc.weight"].T + a["fc.bias"], "features")


def test_iresnet_matches_a_numpy_implementation_from_pytorch_names():
    backbone = small("iresnet", 32)
    variables = draw(backbone)
    x = images(3, 32)
    features, _ = jax.jit(backbone.apply, static_argnums=2)(variables, x, False)
    arrays = {k: v.astype(np.float64) for k, v in to_torch(variables, backbone).items()}
    close(features, iresnet18_nchw(arrays, x.transpose(0, 3, 1, 2).astype(np.float64)), 1e-4)


def saved(tmp_path, arrays):
    path = tmp_path / "weights.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def sphere():
    backbone = small("spherenet", 32)
    return backbone, to_torch(draw(backbone), backbone)


def test_weights_file_loads(tmp_path, sphere):
    backbone, arrays = sphere
    variables = load_weights(saved(tmp_path, arrays), backbone)
    again = to_torch(variables, backbone)
    assert all(np.array_equal(again[k], v) for k, v in arrays.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fc.bias": None}, "array fc.bias is missing"),
        ({"fc.extra": np.zeros(3)}, "array fc.extra is not part of spherenet"),
        ({"layer2.0.weight": np.zeros((6, 5, 3, 3))}, r"layer2.0.weight has shape \(6, 5, 3, 3\)"),
        ({"fc.weight": np.zeros((12, 10))}, r"fc.weight has shape \(12, 10\).*data.image_size"),
        ({"fc.bias": np.full(12, np.nan)}, "fc.bias holds infinite or undefined"),
        ({"fc.bias": np.array(["a"] * 12)}, "fc.bias has type"),
    ],
)
def test_wrong_arrays_name_file_and_array(tmp_path, sphere, change, words):
    backbone, arrays = sphere
    arrays = {k: v for k, v in {**arrays, **change}.items() if v is not None}
    path = saved(tmp_path, arrays)
    with pytest.raises(InputError, match=words) as error:
        load_weights(path, backbone)
    assert str(path) in str(error.value)


def test_scale_that_the_structure_does_not_have_is_refused():
    backbone = small("iresnet")
    arrays = to_torch(draw(backbone), backbone)
    from_torch({k: v for k, v in arrays.items() if k != "features.weight"}, backbone)
    arrays["features.weight"] = arrays["features.weight"] * 2
    with pytest.raises(InputError, match=r"features\.weight must be all ones"):
        from_torch(arrays, backbone)


def test_weights_of_another_depth_are_refused(sphere):
    _, arrays = sphere
    with pytest.raises(InputError, match=r"and .* more are missing"):
        from_torch(arrays, small("spherenet", 32, depth=20))
    with pytest.raises(InputError, match=r"and .* more are not part of"):
        from_torch(arrays, small("spherenet", 32, depth=4))


@pytest.mark.parametrize("kind", ["none", "empty", "text", "pickle", "npy", "cut"])
def test_files_that_are_no_npz_are_refused(tmp_path, sphere, kind):
    backbone, arrays = sphere
    path = tmp_path / "weights.npz"
    if kind in ("empty", "text"):
        path.write_bytes(b"" if kind == "empty" else b"no weights here")
    elif kind == "pickle":
        np.savez(path, **{**arrays, "fc.bias": np.array([{}, []], object)})
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "cut":
        whole = saved(tmp_path, arrays).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=str(path)):
        load_weights(path, backbone)
