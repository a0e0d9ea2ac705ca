"""Weights of the published networks, into this program and back."""

import json
import sys

import jax
import numpy as np
import pytest
from networks import images

from fedfr_jax.convert.command_line import command
from fedfr_jax.convert.files import Given, read_weights, write_weights
from fedfr_jax.errors import InputError
from fedfr_jax.models import build, load_weights
from fedfr_jax.models.mobilefacenet_arcface import LARGE, NORMAL
from fedfr_jax.models.preprocessing import Preprocessing
from fedfr_jax.models.weight_file import read_weight_file, sidecar

torch = pytest.importorskip("torch")

from benchmarks import torch_networks as nets  # noqa: E402 - needs torch

WIDTHS = (4, 6, 8, 10)
BLOCKS = (2, 2, 2, 2)
NETWORKS = {
    "spherenet": lambda: nets.spherenet((1, 2, 4, 1), WIDTHS, 12, 2),
    "iresnet": lambda: nets.iresnet(BLOCKS, WIDTHS, 12, 2),
    "iresnet_adaface": lambda: nets.adaface(BLOCKS, WIDTHS, 12, 2),
    "mobilefacenet_arcface": lambda: nets.mobilefacenet(*NORMAL, WIDTHS, 12, 2),
    "mobilefacenet_arcface_large": lambda: nets.mobilefacenet(*LARGE, WIDTHS, 12, 2),
}
IMAGES = images(3, 32)


@pytest.fixture(scope="module")
def published():
    """The PyTorch networks, with random values."""
    return {
        name: nets.draw(make(), last="features.weight" * (name == "iresnet"))
        for name, make in NETWORKS.items()
    }


def saved(folder, net, name="x.pth", prefix="", **beside):
    path = folder / name
    state = {prefix + k: v for k, v in net.state_dict().items()}
    torch.save({"state_dict": state, **beside} if beside else state, path)
    return path


def convert(*arguments):
    command([str(argument) for argument in arguments])


def ours(path, size=32, x=IMAGES):
    """Features of RGB images under converted weights, and their network."""
    structure = read_weight_file(path).structure
    network = build(structure.config(), size, "grouped")
    variables = load_weights(path, network)
    return np.asarray(jax.jit(network.apply, static_argnums=2)(variables, x, False)[0])


def close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


LARGEST = "mobilefacenet_arcface_large"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "safetensors") for name in NETWORKS if name != LARGEST),
        pytest.param(LARGEST, "safetensors", marks=pytest.mark.slow),
        ("iresnet", "npz"),
    ],
)
def test_features_are_those_of_the_published_structure(tmp_path, published, name, kind):
    target = tmp_path / f"x.{kind}"
    convert(saved(tmp_path, published[name]), target, "--channels=RGB")
    assert read_weight_file(target).structure.name == name
    close(ours(target), nets.features(published[name], IMAGES))


@pytest.mark.parametrize("name", list(NETWORKS))
def test_round_trip_is_bit_equal(tmp_path, published, name, capsys):
    first = saved(tmp_path, published[name], prefix="module.")
    for step in ("a.safetensors", "b.npz", "c.pth"):
        convert(first, tmp_path / step)
        first = tmp_path / step
    found = torch.load(first, weights_only=True)
    expected = published[name].state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in expected.items())
    NETWORKS[name]().load_state_dict(found)
    out = capsys.readouterr().out
    assert f"found: {name}" in out
    assert f"--config.model.name={name} " in out and "--config.data.image_size=32" in out
    assert json.loads(sidecar(first).read_text())["preprocessing"] == (
        read_weight_file(tmp_path / "a.safetensors").preprocessing.to_dict()
    )


@pytest.mark.parametrize("name", ["spherenet", "iresnet_adaface"])
def test_what_a_network_expects_is_folded_in(tmp_path, published, name):
    """Its features of BGR images, scaled by 1 / 128, are ours of the same images in RGB."""
    target = tmp_path / "x.safetensors"
    convert(saved(tmp_path, published[name]), target, "--channels=BGR", "--scale=1/128")
    expected = nets.features(published[name], IMAGES[..., ::-1] * np.float32(127.5 / 128))
    close(ours(target), expected)
    recorded = read_weight_file(target).preprocessing
    assert (recorded.channels, recorded.scale) == ("BGR", 1 / 128)
    with pytest.raises(AssertionError):
        close(ours(target, x=IMAGES[..., ::-1]), expected, 1e-2)


def test_another_epsilon_is_kept_and_used(tmp_path):
    net = nets.draw(nets.iresnet(BLOCKS, WIDTHS, 12, 2, eps=2e-2), last="features.weight")
    target = tmp_path / "x.safetensors"
    convert(saved(tmp_path, net), target, "--eps=2e-2")
    assert read_weight_file(target).structure.eps == 2e-2
    close(ours(target), nets.features(net, IMAGES))
    again = tmp_path / "y.npz"
    convert(target, again)
    assert read_weight_file(again).structure.eps == 2e-2
    convert(saved(tmp_path, net), target)
    assert np.abs(ours(target) - nets.features(net, IMAGES)).max() > 1e-3


@pytest.mark.parametrize(
    ("prefix", "channels"),
    [("model.", "BGR"), ("net.", "RGB"), ("module.net.", "RGB"), ("", "BGR")],
)
def test_adaface_and_cvlface_are_told_apart_by_prefix(tmp_path, published, prefix, channels):
    net = published["iresnet_adaface"]
    path = saved(tmp_path, net, "x.ckpt", prefix, epoch=3, hyper_parameters={"lr": [1, 2]})
    weights = read_weights(path)
    assert weights.preprocessing.channels == channels
    assert any("epoch" in line and line.startswith("ignored") for line in weights.said)
    assert any("assumed" in line and "--check" in line for line in weights.said)


def test_heads_and_optimizers_are_ignored_and_named(tmp_path, published, capsys):
    state = published["iresnet"].state_dict()
    head = {"weight": torch.zeros(7, 12)}
    torch.save(
        {
            "epoch": 3,
            "state_dict_backbone": {f"module.{k}": v for k, v in state.items()},
            "state_dict_softmax_fc": head,
            "state_optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        },
        tmp_path / "a.pth",
    )
    convert(tmp_path / "a.pth", tmp_path / "a.safetensors")
    out = capsys.readouterr().out
    assert "names after 'module.'" in out
    assert "ignored: epoch, state_dict_softmax_fc, state_optimizer" in out
    torch.save({**state, "head.kernel": torch.zeros(12, 7)}, tmp_path / "b.pth")
    assert "ignored: head.kernel" in "\n".join(read_weights(tmp_path / "b.pth").said)


def test_types_are_kept_and_bfloat16_is_widened(tmp_path, published):
    state = published["spherenet"].state_dict()
    torch.save({k: v.half() for k, v in state.items()}, tmp_path / "half.pth")
    convert(tmp_path / "half.pth", tmp_path / "half.safetensors")
    assert read_weight_file(tmp_path / "half.safetensors").arrays["fc.weight"].dtype == np.float16
    wide = {k: v.bfloat16() for k, v in state.items()}
    torch.save(wide, tmp_path / "b.pth")
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(wide, tmp_path / "b.safetensors")
    for name in ("b.pth", "b.safetensors"):
        found = read_weights(tmp_path / name).file.arrays["fc.weight"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wide["fc.weight"].float().numpy())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"body.0.res_layer.se_block.fc1.weight": torch.zeros(1, 4, 1, 1)}, "ir_se.*not supported"),
        ({"body.3.res_layer.5.extra": torch.zeros(3)}, "is not part of"),
        ({"body.0.res_layer.1.weight": None}, "body.0.res_layer.1.weight.*missing"),
        ({"body.3.res_layer.1.weight": torch.zeros(6, 5, 3, 3)}, r"shape \(6, 5, 3, 3\)"),
        ({"output_layer.4.running_var": torch.full((12,), torch.nan)}, "infinite or undefined"),
        ({"output_layer.3.weight": torch.zeros(12, 41)}, "41 inputs, no square map"),
        ({"body.8.res_layer.0.weight": torch.zeros(3)}, "9 blocks; known are 8, 16"),
        ({"ema.input_layer.0.weight": torch.zeros(4, 3, 3, 3)}, "several networks"),
    ],
)
def test_other_structures_are_refused(tmp_path, published, change, words):
    state = {**published["iresnet_adaface"].state_dict(), **change}
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=words) as error:
        read_weights(tmp_path / "x.pth")
    assert "x.pth" in str(error.value)


class Custom:
    def __reduce__(self):
        return print, ("code of the file ran",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": [1, 2], "b": [3]}, "no tensors by name, but list"),
        ({"a": torch.zeros(3)}, "do not include a network that is supported"),
        ([torch.zeros(3)], "holds list and no state dict"),
        (Custom(), "cannot be read"),
        (torch.zeros(3), "holds Tensor"),
        ({"layer1.0.bias": torch.zeros(3).to_sparse()}, "sparse"),
        ({"layer1.0.bias": torch.zeros(1).expand(1 << 40)}, "more values than the file holds"),
        ({"layer1.0.bias": torch.zeros(3, dtype=torch.complex64)}, "missing"),
        ({}, "nothing"),
    ],
)
def test_files_that_hold_something_else(tmp_path, content, words, capsys):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(InputError, match=words):
        read_weights(tmp_path / "x.pth")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "npz"])
def test_cut_and_empty_files(tmp_path, published, suffix):
    path = tmp_path / f"x.{suffix}"
    convert(saved(tmp_path, published["spherenet"], "whole.pth"), path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1], b"", b"\x80\x02}q\x00."):
        path.write_bytes(content)
        with pytest.raises(InputError, match=str(path)):
            read_weights(path)
    with pytest.raises(InputError, match="none"):
        read_weights(tmp_path / f"none.{suffix}")


def test_a_mean_that_cannot_be_folded_is_refused(tmp_path, published):
    weights = read_weights(saved(tmp_path, published["spherenet"]))
    path = tmp_path / "x.safetensors"
    file = weights.file
    write_weights(path, type(file)(file.arrays, Preprocessing(mean=0), file.structure))
    with pytest.raises(InputError, match="mean 0 subtracted"):
        read_weights(path)


def test_commands_end_with_one_line(tmp_path, published, capsys):
    path = saved(tmp_path, published["spherenet"])
    for arguments, words in (
        ([path], "nothing to do"),
        ([path, tmp_path / "x.onnx"], "weights are written as"),
        ([path, tmp_path / "no" / "x.npz"], "is no folder"),
        ([path, tmp_path / "x.npz", "--scale=a"], "--scale is 'a'"),
        ([path, tmp_path / "x.npz", "--model=iresnet"], "do not include iresnet's"),
        ([path, tmp_path / "x.npz", "--model=resnet"], "use one of"),
        ([tmp_path, tmp_path / "x.npz"], "neither a file of weights nor"),
        ([path, tmp_path / "x.npz", "--client=1"], "neither a file of weights nor"),
    ):
        with pytest.raises(SystemExit) as end:
            convert(*arguments)
        assert end.value.code == 2
        assert words in capsys.readouterr().err


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "x.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"pip install fedfr_jax\[torch\]"):
        read_weights(tmp_path / "x.pth")


def test_options_say_what_is_not_recorded(tmp_path, published):
    path = saved(tmp_path, published["spherenet"])
    weights = read_weights(path, Given(channels="BGR", source="my own"))
    assert weights.preprocessing == Preprocessing(channels="BGR", image_size=32, source="my own")
    assert any("channels as given" in line for line in weights.said)
