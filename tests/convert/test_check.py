"""Which order of the channels weights expect, as the accuracy on pairs shows it."""

import numpy as np
import pytest
from networks import draw

from fedfr_jax.convert import check
from fedfr_jax.convert.files import Weights
from fedfr_jax.data.types import VerificationSet
from fedfr_jax.evaluation.verification import PairResult
from fedfr_jax.models import build, to_torch
from fedfr_jax.models.preprocessing import Preprocessing
from fedfr_jax.models.weight_file import Structure, WeightFile


def result(accuracy, std):
    nothing = np.zeros(0)
    return PairResult(accuracy, std, 1.0, nothing, nothing, nothing, (nothing, nothing), nothing)


@pytest.mark.parametrize(
    ("rgb", "bgr", "assumed", "warns"),
    [
        (0.9945, 0.9850, "RGB", False),
        (0.9945, 0.9850, "BGR", True),
        (0.9945, 0.9940, "BGR", False),  # within noise
        (0.9850, 0.9945, "RGB", True),
    ],
)
def test_a_better_order_is_reported_beyond_noise(rgb, bgr, assumed, warns):
    results = {"RGB": result(rgb, 0.005), "BGR": result(bgr, 0.005)}
    lines = check.verdict(results, assumed)
    assert f"RGB: accuracy {100 * rgb:.2f} % ± 0.50" in lines[0]
    assert [assumed in line and "as recorded" in line for line in lines[:2]].count(True) == 1
    other = "BGR" if assumed == "RGB" else "RGB"
    assert (len(lines) == 3 and f"--channels={other}" in lines[2]) == warns


def test_accuracies_are_those_of_both_orders(monkeypatch):
    """Pairs that differ in the red of their images alone, for a network that sees only red."""
    structure = Structure("spherenet", 4, (4, 4, 4, 4), 12, 1e-5)
    backbone = build(structure.config(), 16)
    arrays = to_torch(draw(backbone, gain=2.0), backbone)
    kernel = np.zeros_like(arrays["layer1.0.weight"])
    kernel[:, 0] = arrays["layer1.0.weight"][:, 0]
    file = WeightFile(
        arrays | {"layer1.0.weight": kernel},
        Preprocessing(image_size=16),
        structure,
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)
    same = np.arange(40) % 2 == 0
    images[1::2][same, :, :, 0] = images[::2][same, :, :, 0]
    pairs = VerificationSet("made up", images, same)
    monkeypatch.setattr(check, "read_bin", lambda path, size: pairs)
    results = check.check(Weights(file, ()), "pairs.bin")
    assert results["RGB"].accuracy > results["BGR"].accuracy + 0.1
