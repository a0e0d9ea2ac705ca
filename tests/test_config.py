"""Settings: one clear error with the setting's name, before anything else happens."""

import pytest
from ml_collections import ConfigDict
from small import ROOT

from fedfr_jax.config import Config, ConfigError, default_config, load_config, resolve, to_dict

CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def test_defaults_survive_the_round_trip():
    defaults = resolve({})
    assert resolve(default_config()) == defaults
    assert resolve(to_dict(defaults)) == defaults


def test_a_method_decides_what_is_left_to_it():
    assert resolve({}).fed.public_data == "hard"
    fedavg = {"method": {"name": "fedavg"}}
    assert resolve(fedavg).fed.public_data == "off"
    assert resolve(fedavg | {"fed": {"public_data": "all"}}).fed.public_data == "all"
    assert resolve({"method": {"name": "pretrained"}}).fed.rounds == 0
    assert resolve({"method": {"name": "fedprox", "fedprox": {"weight": 2}}}).options.weight == 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_settings_are_valid(path):
    settings = load_config(path)
    if "base" in settings:  # an ablation; its rows are looked at in test_ablate
        settings = settings.base
    if settings.data.source == "recordio":
        with pytest.raises(ConfigError, match=r"data\.root"):
            resolve(settings)
        settings.data.root = "somewhere"
    assert isinstance(resolve(settings), Config)


@pytest.mark.parametrize("change, name", [
    ({"fed": {"roundz": 3}}, "fed.roundz"),
    ({"fed": 3}, "fed"),
    ({"fed": {"rounds": 2.5}}, "fed.rounds"),
    ({"fed": {"rounds": True}}, "fed.rounds"),
    ({"fed": {"rounds": -1}}, "fed.rounds"),
    ({"method": {"name": "fedmagic"}}, "method.name"),
    ({"method": {"fedprox": {"mu": 1.0}}}, "method.fedprox.mu"),
    ({"method": {"name": "fedprox", "fedprox": {"weight": -1.0}}}, "method.fedprox.weight"),
    ({"method": {"name": "fedper"}, "population": {"previous": "off"}}, "population.previous"),
    ({"population": {"previous": "off"}}, "population.previous"),
    ({"method": {"name": "centralized"}, "population": {"cohort": 3}}, "population.cohort"),
    ({"fed": {"server_optimizer": "rmsprop"}}, "fed.server_optimizer"),
    ({"loss": {"identification": "sphereface"}}, "loss.identification"),
    ({"fed": {"lr": -1.0}}, "fed.lr"),
    ({"fed": {"local_epochs": 3}}, "fed.local_epochs"),
    ({"fed": {"local_epochs": (2, "x")}}, "fed.local_epochs"),
    ({"fed": {"local_epochs": ()}}, "fed.local_epochs"),
    ({"fed": {"public_data": "some"}}, "fed.public_data"),
    ({"fed": {"hard_threshold": 1.5}}, "fed.hard_threshold"),
    ({"data": {"source": "folder"}}, "data.root"),
    ({"data": {"source": "ftp"}}, "data.source"),
    ({"data": {"generated": {"people": 5}}}, "data.generated.people"),
    ({"data": {"verification_sets": ("a.bin", "b.bin"), "verification_labels": ("x",)}},
     "data.verification_labels"),
    ({"loss": {"binary_weight": 0.0, "binary_detached": True}}, "loss.binary_detached"),
    ({"loss": {"binary_balance": 1.2}}, "loss.binary_balance"),
    ({"eval": {"fars": (0.1, 0.01)}}, "eval.fars"),
    ({"eval": {"fars": (0.0,)}}, "eval.fars"),
    ({"model": {"dtype": "float16"}}, "model.dtype"),
    ({"engine": {"conv": "winograd"}}, "engine.conv"),
])
def test_bad_settings_are_named(change, name):
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        resolve(change)


def test_whole_numbers_pass_for_rates_and_lists_for_tuples():
    config = resolve({"fed": {"lr": 1, "local_epochs": [2, 1]}})
    assert config.fed.lr == 1.0 and config.fed.local_epochs == (2, 1)


def test_config_files_cannot_invent_settings():
    config = default_config()
    with pytest.raises(AttributeError, match="roundz"):
        config.fed.roundz = 3
    assert isinstance(config, ConfigDict)
