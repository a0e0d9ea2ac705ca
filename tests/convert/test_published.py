"""A published MobileFaceNet and real faces, where they are at hand."""

import os
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
def test_accuracy_on_lfw_shows_the_order_of_the_channels(tmp_path):
    out = run(WEIGHTS, tmp_path / "x.safetensors", f"--check={PAIRS}")
    accuracy = {
        order: float(value) for order, value in re.findall(r"(RGB|BGR): accuracy ([\d.]+) %", out)
    }
    assert abs(accuracy["RGB"] - 99.45) <= 0.05
    assert accuracy["BGR"] < accuracy["RGB"]
    assert "warning" not in out
