"""Real faces with a published network: enrolment, thresholds, and the whole command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from small import DATA

from fedfr_jax.data.alignment import TEMPLATE, align
from fedfr_jax.data.recordio import open_recordio
from fedfr_jax.export.model import of_weights
from fedfr_jax.export.network import Architecture
from fedfr_jax.identify.__main__ import command
from fedfr_jax.models import build, load_weights
from fedfr_jax.protocols import model_arguments
from fedfr_jax.settings import ModelConfig

FACES, WEIGHTS = DATA / "lfw" / "train.rec", DATA / "mobilefacenet" / "mobilefacenet.npz"
PEOPLE, ENROLLED, PROBES, STRANGERS = 20, 3, 4, 150
pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (FACES.exists() and WEIGHTS.exists()), reason=f"no {FACES} or {WEIGHTS}"
    ),
]


def write_people(root):
    """Folders of people with enough images, and one image each of as many strangers."""
    source = open_recordio(FACES.parent, 112)
    counts = np.bincount(source.labels)
    rich = np.flatnonzero(counts >= ENROLLED + PROBES)[:PEOPLE]
    others = np.setdiff1d(np.arange(len(counts)), rich)[:STRANGERS]
    chosen = [(root / "impostors", person, 0, 1) for person in others]
    chosen += [(root / "gallery", person, 0, ENROLLED) for person in rich]
    chosen += [(root / "probes", person, ENROLLED, ENROLLED + PROBES) for person in rich]
    for folder, person, start, end in chosen:
        numbers = np.flatnonzero(source.labels == person)[start:end]
        for number, pixels in zip(numbers, source.read(numbers), strict=True):
            path = folder / str(person) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(name="mobilefacenet", embedding=128)
    weights = load_weights(WEIGHTS, build(config, 112))
    return of_weights(Architecture.of(config, 112), weights, {})


def test_twenty_people_are_identified(tmp_path, monkeypatch, model):
    write_people(tmp_path)
    monkeypatch.setattr(model_arguments, "open_model", lambda given: model)
    command(
        [
            "--model=net",
            f"--gallery={tmp_path / 'gallery'}",
            f"--probes={tmp_path / 'probes'}",
            f"--impostors={tmp_path / 'impostors'}",
            f"--out={tmp_path / 'out'}",
            "--far=0.01",
            "--batch-size=32",
        ]
    )
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    accuracy = found["accuracy"]
    assert accuracy["enrolled"] == PEOPLE * PROBES
    assert accuracy["first"] > 0.95 and accuracy["identified"] > 0.9
    assert accuracy["false_accepts"] < 0.05 < found["thresholds"]["pair"]["value"] < 0.6
    assert found["thresholds"]["search"]["resolved"]


def test_faces_that_were_turned_and_enlarged_are_cut_out_again(model):
    """A crop that is put into a larger picture, turned, has the same features after alignment."""
    faces = open_recordio(FACES.parent, 112).read(np.arange(0, 80, 10))
    again = []
    for k, face in enumerate(faces):
        scale, angle, shift = (0.9, 1.4, 3.7, 10.0)[k % 4], 0.5 * k, np.array([40 + k, 25.0])
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        side = int(160 * scale) + 80
        middle = np.array([side / 2, side / 2]) + shift - 30
        points = (TEMPLATE - 55.5) @ turn.T + middle
        # From a place in the picture back to the crop; Pillow counts from the corner of a pixel.
        back = np.linalg.inv(turn)
        start = 55.5 - back @ (middle + 0.5) + 0.5
        picture = Image.fromarray(face).transform(
            (side, side),
            Image.Transform.AFFINE,
            (*back[0], start[0], *back[1], start[1]),
            Image.Resampling.BICUBIC,
        )
        again.append(align(picture, points, 112))
    before = model.embed(faces, batch_size=8, mirror=False)
    after = model.embed(np.stack(again), batch_size=8, mirror=False)
    alike = (before * after).sum(1)
    assert alike.min() > 0.9 and (before @ after.T).argmax(1).tolist() == list(range(8)), alike
    print("cosines with the original crops:", alike.round(3))
