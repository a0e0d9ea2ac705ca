"""Files of published weights as models: opened, exported, refused."""

import contextlib
import io

import jax
import numpy as np
import pytest
from absl import flags

import fedfr_jax
from fedfr_jax.convert.files import write_weights
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.streaming import unit_rows
from fedfr_jax.export import __main__ as command
from fedfr_jax.export.card import WEIGHTS, read_card
from fedfr_jax.models import build
from fedfr_jax.models.preprocessing import Preprocessing
from fedfr_jax.models.weight_file import WeightFile
from fedfr_jax.models.weights import to_torch
from fedfr_jax.settings import ModelConfig

MODEL = ModelConfig(name="spherenet", depth=10, widths=(4, 4, 8, 8), embedding=8)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def network():
    """(a network of 32 pixels, its random values)."""
    backbone = build(MODEL, 32, "grouped")
    return backbone, backbone.init(jax.random.key(3))


def saved(network, path, channels="RGB"):
    """A file of weights that expects its colours in an order of its own."""
    backbone, variables = network
    expected = Preprocessing(channels=channels, image_size=32, source="a test")
    arrays = to_torch(variables, backbone, preprocessing=expected)
    write_weights(path, WeightFile(arrays, expected))
    return path


def features(network, images):
    backbone, variables = network
    return unit_rows(
        np.asarray(backbone.apply(variables, images / np.float32(127.5) - 1, False)[0])
    )


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_file_of_weights_is_a_model(network, tmp_path, kind, channels, capsys):
    """It takes RGB, whatever the published network takes."""
    model = fedfr_jax.load_model(saved(network, tmp_path / f"x.{kind}", channels))
    assert f"x.{kind}: input: {channels}, (x - 127.5) / 127.5, 32 pixels" in capsys.readouterr().out
    np.testing.assert_allclose(
        model.embed(IMAGES, mirror=False), features(network, IMAGES), rtol=0, atol=1e-5
    )
    assert model.card["training"]["source"] == "a test"
    assert model.card["model"] == {"variant": "pretrained", "client": None}


def test_pytorch_files_are_models_too(network, tmp_path):
    pytest.importorskip("torch")
    model = fedfr_jax.load_model(saved(network, tmp_path / "backbone.pth"))
    np.testing.assert_allclose(
        model.embed(IMAGES, mirror=False), features(network, IMAGES), rtol=0, atol=1e-5
    )


def export(*arguments):
    """What the command prints; its flags are this call's."""
    values, printed = flags.FlagValues(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(flags, "FLAGS", values)
        patch.setattr(command, "run_command", lambda main: values(["x", *map(str, arguments)]))
        for name in ("string", "integer", "list", "enum"):
            define = getattr(flags, f"DEFINE_{name}")
            patch.setattr(
                flags,
                f"DEFINE_{name}",
                lambda *a, _define=define, **k: _define(*a, flag_values=values, **k),
            )
        command.command()
        command.main()
    return printed.getvalue()


def test_weights_are_exported_without_a_run(network, tmp_path):
    path, out = saved(network, tmp_path / "x.npz", "BGR"), tmp_path / "out"
    assert f"wrote {out}" in export("--weights", path, "--out", out, "--license", "MIT")
    assert "had been written" in export("--weights", path, "--out", out, "--license", "MIT")
    model = fedfr_jax.load_model(out)
    np.testing.assert_array_equal(model.embed(IMAGES), fedfr_jax.load_model(path).embed(IMAGES))
    text = (out / "README.md").read_text()
    assert "from published weights" in text and "federated" not in text and "## Origin" in text
    assert read_card(out)["license"] == "MIT"
    # The exported weights are not mistaken for published ones.
    assert fedfr_jax.load_model(out / WEIGHTS).card == model.card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one of --workdir"),
        (("--workdir=a", "--weights=b.npz"), "give one of --workdir"),
        (("--weights=b.npz", "--client=1"), "choose models of a run"),
        (("--weights=b.npz",), r"b\.npz: no such file"),
    ],
)
def test_what_cannot_be_exported(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        export("--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_arrays_of_no_network_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", weight=np.zeros((3, 3), np.float32))
    with pytest.raises(InputError, match=r"x\.npz"):
        fedfr_jax.load_model(tmp_path / "x.npz")
