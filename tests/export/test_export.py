"""Models out of a run and back: as a folder, a program of jax.export, ONNX."""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small import ROOT, SETTINGS

import fedfr_jax
from fedfr_jax.errors import DamagedError, InputError
from fedfr_jax.evaluation import variants
from fedfr_jax.evaluation.names import PRETRAINED
from fedfr_jax.evaluation.streaming import unit_rows
from fedfr_jax.experiment import Experiment
from fedfr_jax.export.card import CARD, PROGRAM, README, WEIGHTS, card_text, read_card
from fedfr_jax.export.network import Architecture, flat
from fedfr_jax.export.saved import open_saved
from fedfr_jax.export.write import write_model
from fedfr_jax.runtime.embedding import make_transform
from fedfr_jax.runtime.workdir import RunWriter

HAS_FLATBUFFERS = importlib.util.find_spec("flatbuffers") is not None
HAS_PROGRAMS = pytest.mark.skipif(not HAS_FLATBUFFERS, reason="flatbuffers is not installed")
HAS_ONNX = HAS_FLATBUFFERS and all(
    importlib.util.find_spec(n) for n in ("jax2onnx", "onnx", "onnxruntime")
)
SPHERENET = {"name": "spherenet", "depth": 4, "widths": (4, 4, 8, 8), "embedding": 8}
IRESNET = {"name": "iresnet", "depth": 18, "widths": (4, 4, 6, 8), "embedding": 8}
CLIENT = 1
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8)


def trained(folder, method="fedfr", model=None, **fed):
    """A short run, and features of ``IMAGES`` under its models."""
    changes = {
        "method": {"name": method},
        "model": model or {"name": "tiny_norm"},
        "fed": {"rounds": 1, "local_epochs": (1,), "public_data": "off", **fed},
        "pretrain": {"epochs": 0},
    }
    with Experiment(SETTINGS, folder, **changes) as run:
        run.run()
        RunWriter(folder).write_summary(
            {"run": {"rounds": 1}, "models": {"global": {"generic": {"lfw": {"accuracy": 0.5}}}}}
        )
        found = {"global": run.embed(IMAGES), "personalized": run.embed(IMAGES, client=CLIENT)}
        own, head = run._personal()(CLIENT)
        (lower, embed, _), transform = run._programs_of_models, make_transform(run.sim)
        lower = lower(IMAGES)
        found[variants.OWN_BACKBONE] = embed(own, lower)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, own, run.server.backbone)
        found[variants.MEAN] = embed(mean, lower)
        found[PRETRAINED] = embed(run.pretrained, lower)
        if transform is not None:
            found[variants.GLOBAL_TRANSFORM] = transform(head, found["global"])
        variables = jax.device_get(own)
        with open_saved(folder) as saved:  # while the run has its lock
            assert saved.round == run.round
    features = {name: unit_rows(rows) for name, rows in found.items()}
    return SimpleNamespace(folder=folder, features=features, variables=variables)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Both models in the formats that can be written here, by the command."""
    out = tmp_path_factory.mktemp("exported")
    formats = "folder" + ",jax" * HAS_FLATBUFFERS + ",onnx" * HAS_ONNX
    done = in_a_process(
        COMMAND, f"--workdir={run.folder}", f"--out={out}", f"--format={formats}", "--license=MIT",
        f"--clients=global,{CLIENT}",
    )  # fmt: skip
    assert f"{formats.replace(',', ', ')} of round 1: wrote 2 of 2" in done.stdout, done.stderr
    return {"global": out / "global", "personalized": out / f"client-{CLIENT}"}


HEAD = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import small\n"
COMMAND = HEAD + (
    "import runpy; sys.argv[0] = 'export'; runpy.run_module('fedfr_jax.export', "
    "run_name='__main__')"
)


def in_a_process(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )


def features_of(code, *folders, tmp_path):
    """What a script makes of ``IMAGES``: per folder, for batches of 1, 3 and 64."""
    np.save(tmp_path / "images.npy", IMAGES)
    code = code + (
        "\nimport numpy as np"
        "\nimages, *folders = sys.argv[1:]"
        "\nimages, out = np.load(images), {}"
        "\nfor number, folder in enumerate(folders):"
        "\n    embed = opened(folder)"
        "\n    for n in (1, 3, 64):"
        "\n        out[f'{number} {n}'] = np.asarray(embed(images[:n]))"
        f"\nnp.savez({str(tmp_path / 'out.npz')!r}, **out)"
    )
    done = in_a_process(code, tmp_path / "images.npy", *folders)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "out.npz") as found:
        return [{n: found[f"{k} {n}"] for n in (1, 3, 64)} for k in range(len(folders))]


def compare(found, wanted, atol):
    for n, rows in found.items():
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, wanted[:n], atol=atol, rtol=0)


OPEN_FOLDER = HEAD + (
    "import fedfr_jax\n"
    "def opened(folder):\n"
    "    model = fedfr_jax.load_model(folder)\n"
    "    return lambda images: model.embed(images, mirror=False)\n"
)
OPEN_PROGRAM = (
    "import sys, jax\n"
    "def opened(folder):\n"
    "    content = open(folder + '/model.jaxexport', 'rb').read()\n"
    "    program = jax.export.deserialize(bytearray(content))\n"
    "    assert not any(name.startswith(('fedfr', 'flax')) for name in sys.modules)\n"
    "    return lambda images: program.call(images)['features']\n"
)
OPEN_ONNX = (
    "import sys, onnxruntime\n"
    "def opened(folder):\n"
    "    session = onnxruntime.InferenceSession(folder + '/model.onnx')\n"
    "    assert not any(name.startswith(('fedfr', 'jax')) for name in sys.modules)\n"
    "    return lambda images: session.run(['features'], {'images': images})[0]\n"
)
FORMATS = [
    pytest.param(OPEN_FOLDER, 1e-5, id="folder"),
    pytest.param(OPEN_PROGRAM, 1e-5, id="jax", marks=HAS_PROGRAMS),
    pytest.param(
        OPEN_ONNX, 1e-4, id="onnx",
        marks=pytest.mark.skipif(not HAS_ONNX, reason="the extra 'onnx' is not installed"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("code", "atol"), FORMATS)
def test_a_fresh_process_has_the_features_of_the_run(run, exported, code, atol, tmp_path):
    found = features_of(code, *exported.values(), tmp_path=tmp_path)
    for name, rows in zip(exported, found, strict=True):
        compare(rows, run.features[name], atol)
    assert np.abs(found[0][3] - found[1][3]).max() > 1e-3  # two models


def test_models_of_a_run_are_those_of_the_experiment(run):
    for name, wanted in run.features.items():
        client = None if name in ("global", PRETRAINED) else CLIENT
        model = fedfr_jax.load_model(run.folder, client=client, variant=name)
        compare({64: model.embed(IMAGES, mirror=False)}, wanted, 1e-6)
        assert model.card["model"] == {"variant": name, "client": client}
    default = fedfr_jax.load_model(run.folder, client=CLIENT)
    compare({64: default.embed(IMAGES, mirror=False)}, run.features["personalized"], 1e-6)
    for wrong, message in (
        ({"client": 3}, "clients 0 to 2"),
        ({"client": True}, "clients 0 to 2"),
        ({"variant": "personalized"}, "without a client there are global, pretrained"),
        ({"client": 0, "variant": "global"}, "with a client there are personalized"),
    ):
        with pytest.raises(InputError, match=message):
            fedfr_jax.load_model(run.folder, **wrong)


def test_embedding_any_number_of_images(exported):
    model = fedfr_jax.load_model(exported["personalized"])
    assert (model.image_size, model.embedding) == (16, 8)
    raw = model.features(IMAGES) + model.features(IMAGES[:, :, ::-1])
    whole = model.embed(IMAGES)
    np.testing.assert_allclose(whole, unit_rows(raw), atol=1e-6)  # the mirror is added
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
    for n, batch in ((1, 64), (5, 3), (64, 64)):
        np.testing.assert_allclose(model.embed(IMAGES[:n], batch_size=batch), whole[:n], atol=1e-6)
    with pytest.raises(InputError, match="single image"):
        model.embed(IMAGES[0])
    with pytest.raises(InputError, match="uint8 is needed"):
        model.embed(IMAGES / 255)
    with pytest.raises(InputError, match="batch_size is 0"):
        model.embed(IMAGES, batch_size=0)


@HAS_PROGRAMS
def test_a_program_opens_as_a_model_with_and_without_its_card(exported, tmp_path):
    folder, content = exported["personalized"], (exported["personalized"] / PROGRAM).read_bytes()
    (tmp_path / PROGRAM).write_bytes(content)
    wanted = fedfr_jax.load_model(folder)
    for path in (folder / PROGRAM, tmp_path, tmp_path / PROGRAM):
        model = fedfr_jax.load_model(path)
        assert (model.image_size, model.embedding) == (16, 8)
        known = path.parent == folder
        assert model.card["model"] == {
            "variant": "personalized" if known else "unknown",
            "client": CLIENT if known else None,
        }
    np.testing.assert_allclose(model.embed(IMAGES), wanted.embed(IMAGES), atol=1e-5)
    (tmp_path / PROGRAM).write_bytes(content[:-100])
    with pytest.raises(DamagedError, match="damaged"):
        fedfr_jax.load_model(tmp_path)


def written(function, *shape, path):
    like = jax.ShapeDtypeStruct(shape, np.float32)
    path.write_bytes(jax.export.export(jax.jit(function))(like).serialize())


@HAS_PROGRAMS
def test_other_programs_are_refused(tmp_path):
    path = tmp_path / "x.jaxexport"
    written(lambda x: x + 1, 2, 16, 16, 3, path=path)
    with pytest.raises(InputError, match="not a face model"):
        fedfr_jax.load_model(path)
    # Factorizations are code of the CPU's own, as a callback to Python would be.
    written(lambda x: jax.numpy.linalg.qr(x)[0], 4, 4, path=path)
    with pytest.raises(InputError, match="calls code outside of itself"):
        fedfr_jax.load_model(path)
    path.write_bytes(b"\0" * 1000)
    with pytest.raises(DamagedError, match="cannot be read as a program"):
        fedfr_jax.load_model(path)


def test_the_card_says_what_the_model_is(exported):
    card = fedfr_jax.load_model(exported["global"]).card
    assert card["license"] == "MIT" and card["training"]["method"] == "fedfr"
    assert card["training"]["rounds"] == 1 and len(card["training"]["config_sha256"]) == 64
    assert card["metrics"] == {"generic": {"lfw": {"accuracy": 0.5}}}
    assert card["architecture"]["transform"] == "none"
    shapes = Architecture(**{**card["architecture"], "widths": (64, 128, 256, 512)}).shapes()
    assert "params/norm/scale" in shapes and "batch_stats/norm/var" in shapes
    mean, scale = (card["preprocessing"][name] for name in ("mean", "scale"))
    assert ((255 - mean) * scale, (0 - mean) * scale) == (1, -1)
    assert np.shape(card["preprocessing"]["template"]) == (5, 2)
    text = (exported["personalized"] / README).read_text()
    assert "personalized model of client 1" in text and "License: MIT" in text


def copy_of(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_flipped_bit_is_refused(exported, tmp_path):
    folder = copy_of(exported["personalized"], tmp_path)
    for name in (WEIGHTS, CARD):
        whole = (folder / name).read_bytes()
        for place in (9, len(whole) // 2, len(whole) - 9):
            (folder / name).write_bytes(
                whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
            )
            with pytest.raises(InputError, match=name):
                fedfr_jax.load_model(folder)
        (folder / name).write_bytes(whole[:-9])
        with pytest.raises(InputError, match=name):
            fedfr_jax.load_model(folder)
        (folder / name).write_bytes(whole)
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {"license": "CC-BY"}))  # by hand
    assert fedfr_jax.load_model(folder).card["license"] == "CC-BY"
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"safetensors is missing"):
        fedfr_jax.load_model(folder)


def change(folder, **groups):
    """Rewrites a card, with a checksum that is right."""
    card = read_card(folder)
    for name, values in groups.items():
        card[name] = {**card[name], **values}
    (folder / CARD).write_text(card_text(card))


@pytest.mark.parametrize(
    ("group", "values", "message"),
    [
        ("architecture", {"embedding": 10**9}, "embedding is 1000000000; it must be a whole"),
        ("architecture", {"embedding": 9}, r"array params/output/bias has shape \(8,\).*\(9,\)"),
        ("architecture", {"image_size": 32}, "preprocessing is not that"),
        ("architecture", {"name": "tiny"}, "array batch_stats/norm/mean is not part"),
        ("architecture", {"name": "nothing"}, "must be registered first"),
        ("architecture", {"name": ["tiny"]}, "name must be a short text"),
        ("architecture", {"transform": "none"}, "array transform/bias is not part"),
        ("architecture", {"transform": "bottleneck"}, "array transform/down is missing"),
        ("architecture", {"widths": [1] * 99}, "at most 16 whole numbers"),
        ("architecture", {"extra": 1}, "has, or lacks, extra"),
        ("preprocessing", {"mean": 0}, "preprocessing is not that"),
        ("model", {"client": "../x"}, "a variant and a client's number"),
        ("files", {"../../etc/passwd": {"bytes": 1, "sha256": "0" * 64}}, "files names"),
        ("files", {WEIGHTS: {"bytes": 1 << 40, "sha256": "0" * 64}}, "do not belong together"),
    ],
)
def test_cards_are_not_trusted(exported, tmp_path, group, values, message):
    folder = copy_of(exported["personalized"], tmp_path)
    change(folder, **{group: values})
    with pytest.raises(InputError, match=message):
        fedfr_jax.load_model(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "{}", '{"format": "fedfr_jax model"}', "[" * 10**5]
)
def test_other_files_are_no_cards(tmp_path, text):
    (tmp_path / CARD).write_text(text)
    with pytest.raises(InputError, match=CARD):
        fedfr_jax.load_model(tmp_path)


def test_weights_come_back_exactly(run, exported):
    from safetensors.numpy import load_file  # noqa: PLC0415

    arrays = load_file(exported["personalized"] / WEIGHTS)
    for name, value in flat(run.variables).items():
        np.testing.assert_array_equal(arrays[name], value)
        assert arrays[name].dtype == np.asarray(value).dtype


def test_an_export_is_kept_or_replaced_and_nothing_else_is(run, tmp_path):
    with open_saved(run.folder) as saved:
        model = saved.weights(CLIENT)
        assert write_model(saved, model, tmp_path / "x")
        assert not write_model(saved, model, tmp_path / "x")
        assert write_model(saved, model, tmp_path / "x", license="MIT")
        (tmp_path / "x" / WEIGHTS).write_bytes(b"")
        assert write_model(saved, model, tmp_path / "x", license="MIT")
        assert write_model(saved, saved.weights(), tmp_path / "x")
        for name in (README, "photograph.jpg"):
            folder = tmp_path / name.partition(".")[0]
            folder.mkdir()
            (folder / name).write_text("mine")
            with pytest.raises(InputError, match=f"{name}'.* no part of an exported model"):
                write_model(saved, model, folder)
            assert (folder / name).read_text() == "mine"
    with pytest.raises(InputError, match="one exported model"):
        fedfr_jax.load_model(tmp_path / "x", client=1)
    assert fedfr_jax.load_model(tmp_path / "x" / WEIGHTS).card["model"]["client"] is None
    with pytest.raises(InputError, match="is not there"):
        fedfr_jax.load_model(tmp_path / "y")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InputError, match="is for onnxruntime"):
        fedfr_jax.load_model(tmp_path / "model.onnx")
    with pytest.raises(InputError, match="and no run"):
        fedfr_jax.load_model(tmp_path)


def test_a_network_of_which_a_part_trains_is_exported_whole(tmp_path):
    run = trained(tmp_path / "run", "fedavg", trainable="output")
    for client, name in ((None, "global"), (CLIENT, "personalized")):
        with open_saved(tmp_path / "run") as saved:
            write_model(saved, saved.weights(client), tmp_path / name)
        model = fedfr_jax.load_model(tmp_path / name)
        compare({64: model.embed(IMAGES, mirror=False)}, run.features[name], 1e-6)
    assert np.abs(run.features["global"] - run.features["personalized"]).max() > 1e-4
    with pytest.raises(InputError, match="has no transform"):
        fedfr_jax.load_model(tmp_path / "run", client=1, variant="own backbone")


@pytest.mark.slow
def test_a_method_without_rounds_is_exported(tmp_path):
    run = trained(tmp_path / "run", "pretrained")
    with open_saved(tmp_path / "run") as saved:
        assert saved.round == 0
    for client, name in ((None, "global"), (None, PRETRAINED), (CLIENT, "personalized")):
        model = fedfr_jax.load_model(tmp_path / "run", client=client, variant=name)
        compare({64: model.embed(IMAGES, mirror=False)}, run.features[name], 1e-6)


def test_a_run_that_goes_on_meanwhile_is_noticed(run, monkeypatch):
    from fedfr_jax.export import saved as module  # noqa: PLC0415

    with open_saved(run.folder) as saved:
        monkeypatch.setattr(module, "saved_rounds", lambda folder: [2, 3])
        with pytest.raises(InputError, match="has gone on since, and its state of round 1"):
            saved.weights(CLIENT)


def test_a_missing_converter_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, extra in (("onnx", "onnx"), ("jax", "export")):
        with (
            open_saved(run.folder) as saved,
            pytest.raises(InputError, match=rf"fedfr_jax\[{extra}\]"),
        ):
            write_model(saved, saved.weights(), tmp_path / "x", formats=[name])
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(not HAS_ONNX, reason="the extra 'onnx' is not installed")
def test_a_wrong_onnx_file_is_not_kept(run, tmp_path, monkeypatch):
    from fedfr_jax.export import onnx_file  # noqa: PLC0415

    real = onnx_file.unit_features
    monkeypatch.setattr(
        onnx_file,
        "unit_features",
        lambda *args: lambda images: real(*args)(images.astype(np.float32) * 1.05),
    )
    with open_saved(run.folder) as saved, pytest.raises(InputError, match="differs from the model"):
        write_model(saved, saved.weights(), tmp_path / "x", formats=["onnx"])
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "trainable", "method"),
    [
        (SPHERENET, "all", "fedfr"),
        (IRESNET, "last_stage", "fedavg"),
        ({"name": "mobilefacenet", "embedding": 8}, "embedding", "fedavg"),
    ],
    ids=["spherenet", "iresnet", "mobilefacenet"],
)
def test_every_network_in_every_format(tmp_path, model, trainable, method):
    run = trained(tmp_path / "run", method, model, trainable=trainable)
    folders = {"global": None, "personalized": CLIENT}
    with open_saved(tmp_path / "run") as saved:
        for name, client in folders.items():
            write_model(
                saved,
                saved.weights(client),
                tmp_path / name,
                formats=["folder", *["jax"] * HAS_FLATBUFFERS, *["onnx"] * HAS_ONNX],
            )
    for code, atol in ((OPEN_FOLDER, 1e-5), (OPEN_PROGRAM, 1e-5), (OPEN_ONNX, 1e-4)):
        if (code == OPEN_ONNX and not HAS_ONNX) or (code == OPEN_PROGRAM and not HAS_FLATBUFFERS):
            continue
        found = features_of(code, *(tmp_path / name for name in folders), tmp_path=tmp_path)
        for name, rows in zip(folders, found, strict=True):
            compare(rows, run.features[name], atol)
