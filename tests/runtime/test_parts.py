"""Rounds in parts (``engine.part``) have the results of whole rounds."""

import dataclasses

import jax
import numpy as np
import pytest
from quick import quick, rounds_only

from fedfr_jax.errors import ConfigError
from fedfr_jax.experiment import Experiment, settings_of
from fedfr_jax.population.parts import parts_of
from fedfr_jax.runtime.parts import capacity_for
from fedfr_jax.runtime.workdir import read_metrics

LOSSES = ("loss", "identification", "contrastive", "binary", "images", "hard_negatives_mean")


def in_both_ways(tmp_path, **changes):
    """(states, metrics) of a run with whole rounds and of one in parts, of the same settings."""
    engine = changes.pop("engine", {})
    found = []
    for part in (0, 1):
        config = quick(engine={**engine, "part": part}, **changes)
        state = rounds_only(tmp_path / str(part), config=config)
        rows = [row for row in read_metrics(tmp_path / str(part)) if row["kind"] == "round"]
        found.append((state, rows))
    return found


def assert_same(found):
    (whole, rows), (parts, in_parts) = found
    assert np.array_equal(whole[1], parts[1])
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(np.float64(a), np.float64(b), rtol=1e-5, atol=1e-5)
    assert len(rows) == len(in_parts)
    for a, b in zip(rows, in_parts, strict=True):
        assert a.keys() == b.keys()
        for name in LOSSES:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6)


FEDFR = {"method": {"name": "fedfr"}, "fed": {"hard_threshold": 0.9, "rounds": 3, "lr": 0.01}}


def test_fedfr(tmp_path):
    found = in_both_ways(tmp_path, **FEDFR)
    assert_same(found)
    kept = [row["hard_negatives_mean"] for row in found[0][1]]
    assert 0 < min(kept) < found[0][1][0]["public_images"]  # some, not all


def test_fedavg_with_a_server_optimizer_and_clipped_noisy_messages(tmp_path):
    fed = {"rounds": 2, "server_optimizer": "momentum", "aggregation": "uniform", "lr": 0.01}
    privacy = {"clip_norm": 0.05, "noise_multiplier": 0.1, "clip_quantile": 0.5}
    assert_same(in_both_ways(tmp_path, fed=fed, privacy=privacy, population={"cohort": 0}))


def test_a_method_with_private_tensors_and_simulated_time(tmp_path):
    fed = {"rounds": 2, "local_epochs": (2,), "lr": 0.01, "partial_batch": True}
    time = {"speed": 100.0, "deadline": 0.2}
    found = in_both_ways(tmp_path, method={"name": "fedper"}, fed=fed, simulated_time=time)
    assert_same(found)
    rows, in_parts = found[0][1], found[1][1]
    assert any(row["missed"] for row in rows)
    for name in ("round_seconds", "missed", "slowest_seconds"):
        assert [row[name] for row in rows] == [row[name] for row in in_parts]


def test_a_run_goes_on_in_the_middle_and_with_parts_of_another_size(tmp_path):
    config = quick(**FEDFR, engine={"part": 1})
    whole = rounds_only(tmp_path / "whole", config=config)
    with Experiment(config, tmp_path / "stopped") as run:
        run.run(1)
    with Experiment(config, tmp_path / "stopped", resume=True) as run:
        run.run(1)
    again = rounds_only(tmp_path / "stopped", resume=True, config=quick(**FEDFR))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(np.float64(a), np.float64(b), rtol=1e-5, atol=1e-5)
