"""Models of a run as files, and files as the start of a run."""

import dataclasses
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small import settings

from fedfr_jax.algorithm.transforms import TRANSFORMS
from fedfr_jax.convert.command_line import command
from fedfr_jax.convert.files import (
    Given,
    read_client,
    read_head_arrays,
    read_weights,
    write_weights,
)
from fedfr_jax.convert.head import Head, head_from_torch, head_to_torch
from fedfr_jax.convert.run_model import model_of_run
from fedfr_jax.errors import InputError
from fedfr_jax.experiment import Experiment
from fedfr_jax.models import build, load_weights
from fedfr_jax.models.preprocessing import Preprocessing
from fedfr_jax.models.weight_file import WeightFile, read_weight_file
from fedfr_jax.runtime import rounds

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
NETWORK = {"name": "spherenet", "depth": 4, "widths": (4, 4, 8, 8), "embedding": 8}


def of_run(**changes):
    groups = {
        "method": {"name": "fedfr"},
        "model": NETWORK,
        "pretrain": {"epochs": 0},
        "fed": {"rounds": 1, "local_epochs": (1,)},
        "engine": {"conv": "grouped"},
    }
    return settings(**groups | changes)


@pytest.fixture(scope="module", name="run")
def fixture_run(tmp_path_factory):
    """(work directory, features of the global model and of client 0's own, its head)."""
    folder = tmp_path_factory.mktemp("run") / "x"
    with Experiment(of_run(), folder) as experiment:
        experiment.run()
        head = experiment.head(0)
        return folder, experiment.embed(PIXELS), experiment.embed(PIXELS, 0), head


def features(path, pixels=PIXELS):
    file = read_weight_file(path)
    network = build(file.structure.config(), 16, "grouped")
    x = pixels.astype(np.float32) / 127.5 - 1
    return np.asarray(network.apply(load_weights(path, network), x, False)[0])


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_the_global_model_of_a_run(run, tmp_path, capsys):
    folder, expected, _, _ = run
    command([str(folder), str(tmp_path / "x.safetensors")])
    close(features(tmp_path / "x.safetensors"), expected)
    out = capsys.readouterr().out
    assert "global model after 1 rounds of fedfr" in out and "--config.model.weights=" in out
    weights = read_weights(folder, Given(channels="BGR", scale=1 / 128))
    plain = read_weights(folder).file.arrays["layer1.0.weight"]
    turned = weights.file.arrays["layer1.0.weight"][:, ::-1] * np.float32(127.5 / 128)
    np.testing.assert_allclose(turned, plain, rtol=1e-6)
    write_weights(tmp_path / "bgr.npz", weights.file)
    close(features(tmp_path / "bgr.npz"), expected)


def test_a_clients_model_and_head(run, tmp_path):
    folder, _, expected, head = run
    write_weights(tmp_path / "backbone.npz", read_client(folder, 0).file)
    command([str(folder), str(tmp_path / "bce_module.safetensors"), "--head", "--client=0"])
    arrays = read_head_arrays(tmp_path / "bce_module.safetensors")
    found = head_from_torch(arrays, "x")
    own = features(tmp_path / "backbone.npz")
    transformed = TRANSFORMS[found.kind].apply(found.transform, own)
    assert np.abs(transformed - own).max() > 0
    close(transformed, expected)
    people = len(found.binary_weight)
    np.testing.assert_array_equal(found.binary_weight, head["binary_weight"][:people])
    assert not head["binary_weight"][people:].any()
    with pytest.raises(InputError, match="convert it with --head"):
        read_weights(tmp_path / "bce_module.safetensors")
    with pytest.raises(InputError, match="there are the clients 0 to"):
        read_client(folder, 99)


@pytest.mark.parametrize("kind", ["linear", "bottleneck"])
def test_heads_round_trip(kind):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: TRANSFORMS[kind].init(key, 8), jax.random.key(0))
    values = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    head = Head(kind, values, np.ones((3, 8), np.float32), np.zeros(3, np.float32))
    arrays = head_to_torch(head)
    again = head_from_torch(arrays, "x")
    assert again.kind == kind
    jax.tree.map(np.testing.assert_array_equal, dict(again.transform), values)
    for change, words in (
        ({"weight": np.ones((3, 7), np.float32)}, "not numbers of|missing or unknown"),
        ({"bias": np.full(3, np.nan, np.float32)}, "infinite or undefined"),
        ({"more": np.zeros(1)}, "more missing or unknown"),
    ):
        with pytest.raises(InputError, match=words):
            head_from_torch(arrays | change, "x")


def test_heads_equal_the_authors_modules():
    torch = pytest.importorskip("torch")
    rng, d = np.random.default_rng(0), 8
    x = rng.normal(size=(3, d)).astype(np.float32)

    def branch():
        linear, leaky = torch.nn.Linear, torch.nn.LeakyReLU
        return torch.nn.Sequential(linear(d, d // 4), leaky(), linear(d // 4, d // 4), leaky())

    parts = torch.nn.ModuleDict({f"br{k}": branch() for k in range(1, 5)})
    parts["concat_fc"] = torch.nn.Linear(d, d)
    with torch.no_grad():
        y = torch.from_numpy(x)
        inside = torch.cat([parts[f"br{k}"](y) for k in range(1, 5)], dim=1)
        expected = (y + parts["concat_fc"](inside)).numpy()
    arrays = {f"converter.{k}": v.numpy() for k, v in parts.state_dict().items()}
    arrays |= {"weight": np.ones((2, d), np.float32), "bias": np.zeros(2, np.float32)}
    head = head_from_torch(arrays, "x")
    close(TRANSFORMS[head.kind].apply(dict(head.transform), x), expected)


@pytest.mark.slow
def test_a_run_that_trains_a_part_is_written_whole(tmp_path):
    with Experiment(of_run(fed={"rounds": 1, "trainable": "embedding"}), tmp_path / "x") as run:
        run.run()
        expected = run.embed(PIXELS)
    write_weights(tmp_path / "x.npz", read_weights(tmp_path / "x").file)
    close(features(tmp_path / "x.npz"), expected)


def test_before_the_first_round_it_is_the_pretrained_model(tmp_path, run):
    folder = run[0]
    for name in ("config.json", "config.json.sha256", "split.npz"):
        shutil.copy(folder / name, tmp_path)
    shutil.copytree(folder / "pretrained", tmp_path / "pretrained")
    weights = read_weights(tmp_path)
    assert weights.preprocessing.source == "the pretrained model of a run"
    assert not np.array_equal(
        weights.file.arrays["fc.weight"], read_weights(folder).file.arrays["fc.weight"]
    )
    with pytest.raises(InputError, match="no round yet"):
        read_client(tmp_path, 0)


NOBODY = SimpleNamespace(identities=0)  # among the public people


def start(**model):
    """Variables with which a run of these settings would begin."""
    config = of_run(model=model)
    network = build(config.model, 16, "grouped")
    return rounds.starting_weights(SimpleNamespace(config=config, network=network, public=NOBODY))[
        0
    ]


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_a_run_starts_from_a_file_and_says_once_what_it_assumes(run, tmp_path, capsys, kind):
    rounds._say_once.cache_clear()
    folder = run[0]
    path = tmp_path / f"x.{kind}"
    write_weights(path, read_weights(folder, Given(channels="BGR")).file)
    expected = model_of_run(folder).variables
    for _ in range(2):
        jax.tree.map(np.testing.assert_array_equal, start(**NETWORK, weights=str(path)), expected)
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("weights")]
    assert "BGR, (x - 127.5) / 127.5, 16 pixels; as recorded in the file" in line
    assert "global model after 1 rounds" in line


def test_what_is_not_recorded_is_called_a_default(run, tmp_path, capsys):
    rounds._say_once.cache_clear()
    path = tmp_path / "x.npz"
    file = read_weights(run[0]).file
    write_weights(path, WeightFile(file.arrays))
    start(**NETWORK, weights=str(path))
    assert "not recorded, the default of spherenet" in capsys.readouterr().out
    write_weights(path, file)
    with pytest.raises(InputError, match=r"holds weights of spherenet.*--config\.model\.depth=4"):
        start(name="iresnet_adaface", depth=18, weights=str(path))
    write_weights(path, dataclasses.replace(file, preprocessing=Preprocessing(mean=0)))
    with pytest.raises(InputError, match="mean 0 subtracted"):
        start(**NETWORK, weights=str(path))


def test_a_run_starts_from_another_run_as_before(run, capsys):
    rounds._say_once.cache_clear()
    start(**NETWORK, weights=str(run[0]))
    assert "of a run, whose images are RGB" in capsys.readouterr().out


def test_pytorch_files_are_to_be_converted_first(tmp_path):
    with pytest.raises(InputError, match=r"python -m fedfr_jax\.convert .*x\.pth .*x\.safetensors"):
        start(**NETWORK, weights=str(tmp_path / "x.pth"))
