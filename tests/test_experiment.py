"""The interface for notebooks: step by step, in one call, and what comes out."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from small import ROOT, SETTINGS, final_state, settings

from fedfr_jax import experiment as experiment_module
from fedfr_jax.config import default_config, resolve
from fedfr_jax.engine import devices, use_cpu_devices
from fedfr_jax.errors import ConfigError, InputError
from fedfr_jax.experiment import Experiment, open_run, run, settings_of, train
from fedfr_jax.reporting.result import Result
from fedfr_jax.runtime.embedding import make_embed
from fedfr_jax.runtime.workdir import read_metrics

pytestmark = pytest.mark.usefixtures("blank_figures")


def test_settings_of_any_kind():
    assert settings_of(method="moon").method.name == "moon"
    config = default_config()
    config.fed.rounds = 3
    assert settings_of(config, fed={"lr": 0.5}).fed == settings_of(fed={"lr": 0.5, "rounds": 3}).fed
    assert settings_of(resolve({"seed": 3})).seed == 3
    path = ROOT / "configs" / "quickstart.py"
    found = settings_of(path, "fedavg", fed={"rounds": 4})
    assert (found.method.name, found.fed.rounds, found.data.image_size) == ("fedavg", 4, 48)
    with pytest.raises(InputError, match=r"nowhere\.py is not there"):
        settings_of("nowhere.py")
    with pytest.raises(ConfigError, match=r"fed\.roundz"):
        settings_of(fed={"roundz": 3})


@pytest.mark.slow
def test_round_by_round_is_a_run_at_once(tmp_path):
    train(settings(), tmp_path / "at-once")
    with Experiment(settings(), tmp_path / "steps") as experiment:
        assert experiment.round == 0
        with pytest.raises(KeyError, match="client 1 has not taken part"):
            experiment.head(1)
        first = experiment.run(rounds=1)
        assert [row["round"] for row in first] == [1] and experiment.round == 1
        assert experiment.head(1)["has_trained"]
        assert [row["round"] for row in experiment.run()] == [2, 3]
        assert experiment.run() == []
        images = experiment.sim.held_out.images[:5]
        shared, own = experiment.embed(images), experiment.embed(images, client=1)
        assert shared.shape == own.shape == (5, 8) and np.abs(shared - own).max() > 1e-6
        assert experiment.faces(2, 3).ndim == 3
        kept = experiment.model(1)
        np.testing.assert_array_equal(kept(images), own)
        for wrong in (-1, 3, "1", 1.0):
            with pytest.raises(InputError, match="clients 0 to 2"):
                experiment.embed(images, client=wrong)
        with pytest.raises(InputError, match="uint8 is needed"):
            experiment.embed(images / 255)
    with open_run(tmp_path / "steps") as again:  # as it was left
        assert again.round == 3
        np.testing.assert_array_equal(again.embed(images, client=1), own)
    with pytest.raises(InputError, match=r"has done 3 rounds, more than fed\.rounds=2"):
        Experiment(settings(fed={"rounds": 2}), tmp_path / "steps", resume=True)
    config = settings()
    states = [final_state(tmp_path / name, config) for name in ("at-once", "steps")]
    chex.assert_trees_all_equal(*states)


def test_a_client_that_never_took_part_has_the_global_model():
    with Experiment(settings(population={"cohort": 1}, fed={"rounds": 1})) as experiment:
        [row] = experiment.run()
        images = experiment.sim.held_out.images[:5]
        shared = experiment.embed(images)
        assert row["clients"] == 1
        same = [
            bool(np.array_equal(experiment.embed(images, client=i), shared))
            for i in range(experiment.config.fed.num_clients)
        ]
        assert sorted(same) == [False] + [True] * (len(same) - 1)
        before = make_embed(experiment.sim)(experiment.pretrained, images)
        assert np.abs(before - shared).max() > 1e-6


def test_rounds_transfer_nothing_unasked(monkeypatch):
    real, guarded = experiment_module.compile_programs, []

    def compile_programs(*args):
        programs = real(*args)

        def one_round(*state):
            with jax.transfer_guard("disallow"):
                guarded.append(0)
                return programs.round(*state)

        return dataclasses.replace(programs, round=one_round)

    monkeypatch.setattr(experiment_module, "compile_programs", compile_programs)
    with Experiment(
        SETTINGS,
        population={"cohort": 2},
        data={"images": "stream"},
        fed={"rounds": 2},
        pretrain={"epochs": 0},
    ) as experiment:
        experiment.run()
    assert len(guarded) == 2


def test_a_method_in_one_call(tmp_path):
    result = run("fedavg", SETTINGS, tmp_path / "x", fed={"rounds": 2})
    assert result.summary["run"]["method"] == "FedAvg"
    assert [row["round"] for row in result.history if row["kind"] == "round"] == [1, 2]
    assert {table.title for table in result.tables()} >= {"Cost of a round for a client"}
    assert "**model**" in result.tables()[0]._repr_markdown_() or (
        "| model |" in result.tables()[0]._repr_markdown_()
    )
    drawn = result.plots()
    assert drawn["loss"]._repr_png_().startswith(b"\x89PNG")
    assert set(result.per_client) and set(result.rocs)
    again = run("fedavg", SETTINGS, tmp_path / "x", fed={"rounds": 2})  # nothing left to do
    assert again.summary["models"] == Result(tmp_path / "x").summary["models"]
    rounds, clients = again.rounds(), again.clients()
    assert list(rounds.index) == list(range(1, len(rounds) + 1)) and rounds["loss"].notna().all()
    models = {model for _, model in clients.columns}
    assert models == {"pretrained", "global", "personalized", "own/global mean"}
    assert len(clients) == again.summary["evaluated"]["clients"]
    assert set(again.evaluations().index.get_level_values("model")) >= {"global", "personalized"}
    assert again.figures().keys() == again.plots().keys()


def test_temporary_folders_go_with_the_experiment():
    with Experiment(SETTINGS, fed={"rounds": 1}, pretrain={"epochs": 0}) as experiment:
        folder = experiment.folder
        experiment.run()
        assert [row["kind"] for row in read_metrics(folder)] == ["round"]
    assert not folder.exists()


@pytest.mark.parametrize(
    "method",
    [
        "ditto",
        "fedface",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("pretrained", "local", "centralized", "finetune")
        ),
    ],
)
def test_methods_from_data_to_report(method, tmp_path):
    result = run(method, SETTINGS, tmp_path / "x", fed={"rounds": 2})
    models = result.summary["models"]
    tar = {m: found["personalized"]["verification_tar"] for m, found in models.items()}
    if method in ("pretrained", "local"):  # the server learns nothing
        assert tar["global"] == tar["pretrained"]
    if method == "centralized":  # everybody has the same model
        assert {k: v["mean"] for k, v in tar["global"].items()} == {
            k: v["mean"] for k, v in tar["personalized"].items()
        }
        assert result.summary["costs"]["up"] == {}
    if method == "pretrained":
        assert {k: v["mean"] for k, v in tar["personalized"].items()} == {
            k: v["mean"] for k, v in tar["global"].items()
        }
    assert result.summary["run"]["method"] in (tmp_path / "x" / "report.html").read_text()


def test_asking_for_devices_when_jax_is_in_use_changes_nothing(monkeypatch, caplog):
    monkeypatch.delenv("XLA_FLAGS")  # which would decide
    there = len(jax.devices())
    with pytest.raises(RuntimeError):
        jax.config.update("jax_num_cpu_devices", there + 1)
    devices._warn_once.cache_clear()
    with caplog.at_level("WARNING", logger="absl"):
        for _ in range(2):  # the runs of a grid
            use_cpu_devices(there + 1)
    assert len(jax.devices()) == there
    assert [record.message.split(":")[0] for record in caplog.records] == ["JAX is in use already"]
