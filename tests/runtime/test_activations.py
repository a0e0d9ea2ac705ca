"""Runs that train the upper part of a network, and the file of activations."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
import small
from small import settings, write_run

from fedfr_jax.experiment import Experiment
from fedfr_jax.models import build
from fedfr_jax.reporting.reevaluation import evaluate
from fedfr_jax.runtime import activations
from fedfr_jax.runtime.activations import FOLDER, ActivationFile

pytestmark = pytest.mark.usefixtures("blank_figures")


def upper(**groups):
    changes = {"model": {"name": "tiny_norm"}, "fed": {"trainable": "norm", "rounds": 2}}
    return settings(**{k: changes.get(k, {}) | groups.get(k, {}) for k in changes | groups})


def state(experiment):
    return jax.device_get((experiment.server, experiment.head(0)))


@pytest.fixture(scope="module")
def resident(tmp_path_factory):
    """(folder, final state, summary) of an uninterrupted run with activations on the devices."""
    folder = tmp_path_factory.mktemp("resident") / "run"
    with Experiment(upper(), folder) as experiment:
        experiment.run()
        write_run(experiment)
        return folder, state(experiment), experiment.evaluate()


def test_only_what_trains_travels_and_is_kept(resident):
    folder, (server, head), summary = resident
    assert set(server.backbone["params"]) == {"norm", "output"}
    assert set(head["previous"]["params"]) == {"norm", "output"}
    network = build(upper().model, 16)
    whole = sum(x.size for x in jax.tree.leaves(small.variables(network)))
    sent = sum(x.size for x in jax.tree.leaves(server.backbone))
    assert summary["costs"]["up"]["backbone"] == 4 * sent < 4 * whole
    assert not (folder / FOLDER).exists()


def test_a_resumed_run_from_a_file_equals_one_on_the_devices(resident, tmp_path):
    _, expected, _ = resident
    streamed = upper(data={"images": "stream"})
    with Experiment(streamed) as experiment:
        experiment.run()
        uninterrupted = state(experiment)
    chex.assert_trees_all_close(uninterrupted, expected, rtol=1e-5, atol=1e-5)
    with Experiment(streamed, tmp_path / "run") as experiment:
        experiment.run(rounds=1)
    assert (tmp_path / "run" / FOLDER / "rows.bin").stat().st_size > 0
    with Experiment(streamed, tmp_path / "run", resume=True) as experiment:
        experiment.run()
        chex.assert_trees_all_equal(state(experiment), uninterrupted)
        summary = experiment.evaluate()
    assert evaluate(tmp_path / "run")["models"] == summary["models"]


def test_features_are_those_of_the_whole_network(resident):
    folder, _, _ = resident
    with Experiment(upper(), folder, resume=True) as experiment:
        sim, images = experiment.sim, experiment.sim.held_out.images
        whole = sim.parts.joined(sim.frozen, jax.device_get(experiment.server.backbone))
        inputs = images.astype(np.float32) / 127.5 - 1
        expected = sim.network.apply(whole, inputs, False)[0]
        np.testing.assert_allclose(experiment.embed(images), expected, rtol=1e-4, atol=1e-5)
        assert experiment.faces().dtype == np.uint8


@pytest.mark.parametrize("gib, computed", [(1.0, 2), (0.0, 3)])
def test_evaluating_several_models_computes_the_lower_part_once(
    resident, monkeypatch, gib, computed
):
    folder, _, _ = resident
    with Experiment(upper(data={"resident_gib": 2.0}), folder, resume=True) as experiment:
        sim, calls, images = experiment.sim, [], experiment.sim.held_out.images
    data = dataclasses.replace(sim.config.data, resident_gib=gib)
    sim = dataclasses.replace(sim, config=dataclasses.replace(sim.config, data=data))

    def lower(images):
        calls.append(len(images))
        return images[:, 0].astype(np.float32)

    monkeypatch.setattr(activations, "lower_part", lambda sim: lower)
    run = activations.remembered(sim)
    first = run(images)
    np.testing.assert_array_equal(run(images.copy()), first)
    np.testing.assert_array_equal(run(images[:, :, ::-1]), lower(images[:, :, ::-1]))
    assert len(calls) - 1 == computed


def test_a_file_computes_what_it_lacks_and_what_is_damaged(tmp_path):
    asked = []

    def compute(numbers):
        asked.extend(numbers.tolist())
        return np.stack([np.full((2, 3), n, np.float32) for n in numbers])

    def opened(key="a"):
        return ActivationFile(tmp_path, {"variables": key}, 10, compute)

    found = opened().read(np.array([3, 5, 3]))
    assert found.shape == (3, 2, 3) and found[:, 0, 0].tolist() == [3, 5, 3]
    asked.clear()
    file = opened()
    assert file.read(np.array([5, 7]))[:, 1, 2].tolist() == [5, 7]
    assert sorted(set(asked)) == [5, 7]  # 5 as an example of the shape
    raw = np.memmap(tmp_path / "rows.bin", np.uint8, "r+")
    raw[5 * 24] ^= 1
    raw.flush()
    assert (opened().read(np.array([5, 7]))[0] == 5).all()
    asked.clear()
    assert opened("b").read(np.array([3]))[0, 0, 0] == 3 and 3 in asked  # of another network
