"""From a released data set to an answer, by commands alone, each in a process of its own."""

import csv
import json
import os
import pickle
import subprocess
import sys

import pytest
from PIL import Image
from small import DATA, ROOT

from fedfr_jax.data.recordio import open_recordio
from fedfr_jax.data.split_file import load_split

LFW, WEIGHTS = DATA / "lfw", DATA / "mobilefacenet" / "mobilefacenet.npz"
PAIRS = 60  # of lfw.bin: all of them take minutes

CONFIG = """
from fedfr_jax import load_config

def get_config():
    c = load_config({path!r})
    c.data.degrade.low_light = 0.0
    c.data.split.held_out_pairs = 40
    c.data.split.public_identities = 20
    c.data.split.tuning_fraction = 0.0
    c.model.weights = {weights!r}
    c.fed.num_clients = 2
    c.fed.rounds = 1
    c.fed.local_epochs = (1,)
    c.eval.every = 0
    c.engine.lanes, c.engine.conv = 1, "custom"
    return c
"""


def run(command, *arguments):
    """The output of a command of the package."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}  # optimized programs
    done = subprocess.run(
        [sys.executable, "-m", f"fedfr_jax.{command}", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": str(ROOT)},
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def some_pairs(path):
    """The first pairs of the real ``lfw.bin``, in the same format."""
    with open(LFW / "lfw.bin", "rb") as file:
        images, same = pickle.load(file, encoding="bytes")
    # Same and different people take turns in blocks of 300.
    chosen = [*range(PAIRS // 2), *range(300, 300 + PAIRS // 2)]
    images = [bytes(images[2 * pair + k]) for pair in chosen for k in range(2)]
    path.write_bytes(pickle.dumps((images, [bool(same[pair]) for pair in chosen])))


def write_people(root, client):
    """A client's people: their training images to enrol, the others to be found."""
    source = open_recordio(LFW, 112)
    kinds = {
        "gallery": (client.train_images, client.train_labels),
        "probes": (client.verification_images, client.verification_labels),
    }
    for folder, (numbers, labels) in kinds.items():
        for number, label, pixels in zip(numbers, labels, source.read(numbers), strict=True):
            path = root / folder / f"person {label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(not ((LFW / "train.rec").exists() and WEIGHTS.exists()), reason=f"no {LFW}")
def test_from_recordio_to_the_right_people(tmp_path):
    config, data, work = tmp_path / "config.py", tmp_path / "data", tmp_path / "run"
    path = str(ROOT / "configs" / "lfw_mobilefacenet.py")
    config.write_text(CONFIG.format(path=path, weights=str(WEIGHTS)))
    flags = [f"--config={config}", f"--config.data.root={LFW}"]
    told = run("prepare", *flags, "--describe", f"--out={tmp_path / 'plots'}")
    assert "13,233" in told and list((tmp_path / "plots").glob("*.png"))
    run("prepare", *flags, f"--out={data}")
    some_pairs(tmp_path / "lfw.bin")
    run(
        "train",
        f"--config={config}",
        "--config.data.source=prepared",
        f"--config.data.root={data}",
        f"--config.data.verification_sets=({str(tmp_path / 'lfw.bin')!r},)",
        f"--workdir={work}",
    )
    summary = json.loads((work / "summary.json").read_text())
    assert "lfw" in json.dumps(summary["models"]["global"])
    run("export", f"--workdir={work}", "--client=1", f"--out={tmp_path / 'model'}")
    write_people(tmp_path, load_split(work / "split.npz").clients[1])
    run(
        "identify",
        f"--model={tmp_path / 'model'}",
        f"--gallery={tmp_path / 'gallery'}",
        f"--probes={tmp_path / 'probes'}",
        f"--out={tmp_path / 'result'}",
    )
    found = json.loads((tmp_path / "result" / "summary.json").read_text())
    assert found["accuracy"]["first"] > 0.9
    with open(next((tmp_path / "result").glob("*.csv")), newline="", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) > 10
