"""Folds of verification pairs, and sets that have none."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image
from small import settings

from fedfr_jax.data.folds import make_folds
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.verification import evaluate_pairs
from fedfr_jax.reporting import tables
from fedfr_jax.runtime.simulation import build_simulation
from fedfr_jax.runtime.workdir import open_run


def test_folds_are_contiguous_where_they_can_be():
    found = make_folds(np.arange(47) % 2 == 0, 10)
    assert not found.mixed
    np.testing.assert_array_equal(np.concatenate(found.parts), np.arange(47))
    assert [len(part) for part in found.parts] == [5] * 7 + [4] * 3


@pytest.mark.parametrize(("genuine", "impostor"), [(30, 30), (10, 10), (13, 99), (57, 12)])
def test_folds_that_lack_a_kind_are_mixed(genuine, impostor):
    is_same = np.arange(genuine + impostor) < genuine
    found = make_folds(is_same)
    assert found.mixed
    np.testing.assert_array_equal(np.sort(np.concatenate(found.parts)), np.arange(len(is_same)))
    assert all(0 < is_same[part].sum() < len(part) for part in found.parts)
    assert max(map(len, found.parts)) - min(map(len, found.parts)) <= 1
    again = make_folds(is_same)
    for one, other in zip(found.parts, again.parts, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("genuine", "impostor"), [(9, 90), (90, 9), (0, 20), (0, 0)])
def test_too_few_pairs_of_a_kind(genuine, impostor):
    with pytest.raises(InputError, match=rf"{genuine} genuine and {impostor} impostor"):
        make_folds(np.arange(genuine + impostor) < genuine)


def test_mixed_folds_score_and_the_table_says_so():
    rng = np.random.default_rng(0)
    is_same = np.arange(60) < 30
    left = rng.standard_normal((60, 8))
    right = np.where(is_same[:, None], left, rng.standard_normal((60, 8)))
    result = evaluate_pairs(np.stack([left, right], axis=1).reshape(-1, 8), is_same, [0.1])
    assert result.mixed_folds and result.accuracy > 0.95
    summary = {
        "models": {
            "global": {
                "generic": {"a": {"accuracy": 0.9, "mixed_folds": True}, "b": {"accuracy": 0.9}}
            }
        }
    }
    said = {
        table.title[-1]: any("mixed" in note for note in table.notes)
        for table in tables.closing_tables(summary)
    }
    assert said == {"a": True, "b": False}


def test_a_set_that_cannot_be_scored_is_refused_before_training(tmp_path):
    out = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(out, "PNG")
    path = tmp_path / "mine.bin"
    path.write_bytes(pickle.dumps(([out.getvalue()] * 80, [True] * 35 + [False] * 5)))
    with pytest.raises(InputError, match="set mine: 35 genuine and 5 impostor"):
        build_simulation(settings(data={"verification_sets": (str(path),)}))
    path.write_bytes(pickle.dumps(([out.getvalue()] * 80, [True] * 20 + [False] * 20)))
    sim = build_simulation(settings(data={"verification_sets": (str(path),)}))
    assert "mine" in [pairs.name for pairs in sim.generic]


def test_a_run_may_be_taken_up_with_other_verification_sets(tmp_path):
    data = {"verification_sets": ["a.bin"], "verification_labels": ["a.npy"], "seed": 0}
    with open_run(tmp_path, {"data": data}):
        pass
    with open_run(
        tmp_path, {"data": data | {"verification_sets": [], "verification_labels": []}}, resume=True
    ):
        pass
    with (
        pytest.raises(InputError, match=r"data\.seed"),
        open_run(tmp_path, {"data": data | {"seed": 1}}, resume=True),
    ):
        pass
