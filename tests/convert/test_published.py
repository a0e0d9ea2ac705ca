"""A published MobileFaceNet and real faces, where they are at hand."""

import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from small import DATA, ROOT

from fedfr_jax.convert.files import read_weights
from fedfr_jax.models.weight_file import read_weight_file

WEIGHTS = DATA / "mobilefacenet" / "mobilefacenet.npz"
PAIRS = DATA / "lfw" / "lfw.bin"


def run(*arguments):
    """The command in a process of its own: with optimization, unlike the tests."""
    flags = {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fedfr_jax.convert", *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, **flags}, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.real
@pytest.mark.skipif(not WEIGHTS.exists(), reason=f"no {WEIGHTS}")
def test_published_arrays_stay_as_they_are(tmp_path):
    out = run(WEIGHTS, tmp_path / "x.safetensors")
    assert "RGB, (x - 127.5) / 128, 112 pixels" in out and "found: mobilefacenet" in out
    run(tmp_path / "x.safetensors", tmp_path / "y.npz")
    first, last = read_weight_file(WEIGHTS), read_weight_file(tmp_path / "y.npz")
    assert set(first.arrays) == set(last.arrays)
    assert all(np.array_equal(last.arrays[name], array) for name, array in first.arrays.items())
    assert last.preprocessing == read_weights(WEIGHTS).preprocessing


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(not (WEIGHTS.exists() and PAIRS.exists()), reason=f"no {WEIGHTS} or {PAIRS}")
def test_accuracy_on_some_pairs_of_lfw_in_both_orders_of_the_channels(tmp_path):
    """All 6,000 pairs take minutes; their accuracy is in docs/weights.md and tested with ONNX."""
    with open(PAIRS, "rb") as file:
        images, same = pickle.load(file, encoding="bytes")
    chosen = [*range(50), *range(300, 350)]  # same and different people take turns in blocks
    some = [bytes(images[2 * pair + k]) for pair in chosen for k in range(2)]
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps((some, [bool(same[pair]) for pair in chosen])))
    out = run(WEIGHTS, tmp_path / "x.safetensors", f"--check={path}")
    accuracy = {
        order: float(value) for order, value in re.findall(r"(RGB|BGR): accuracy ([\d.]+) %", out)
    }
    assert accuracy["RGB"] >= 98
    assert 50 < accuracy["BGR"] <= 100
    assert "warning" not in out
