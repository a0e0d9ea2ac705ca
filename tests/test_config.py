"""Settings: one clear error with the setting's name, before anything else happens."""

import pytest
from ml_collections import ConfigDict
from small import ROOT

from fedfr_jax.config import Config, default_config, load_config, resolve, setting_names, to_dict
from fedfr_jax.config.moved import MOVED
from fedfr_jax.errors import ConfigError
from fedfr_jax.runtime.command_line import check_setting_flags

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


def test_the_authors_baselines_have_their_own_batches():
    found = {}
    for name in ("fedfr", "fedavg"):
        settings = load_config(ROOT / "configs" / "authors.py", name)
        settings.data.root = "somewhere"
        found[name] = resolve(settings).fed
    assert found["fedfr"].batch_size == 256 and not found["fedfr"].partial_batch
    assert found["fedavg"].batch_size == 64 and found["fedavg"].partial_batch
    assert found["fedavg"].lr_decay == 1.0 and found["fedavg"].class_embedding_init == "random"


@pytest.mark.parametrize(
    "clients, rounds, every, expected",
    [(64, 20, -1, 4), (64, 3, -1, 1), (65, 20, -1, 0), (65, 20, 7, 7), (3, 20, 0, 0)],
)
def test_few_clients_are_evaluated_some_five_times(clients, rounds, every, expected):
    config = resolve({"fed": {"num_clients": clients, "rounds": rounds}, "eval": {"every": every}})
    assert config.evaluate_every == expected


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_settings_are_valid(path):
    settings = load_config(path)
    if "base" in settings:  # an ablation; its rows are looked at in test_ablate
        settings = settings.base
    if settings.data.source in ("recordio", "folder"):
        with pytest.raises(ConfigError, match=r"data\.root"):
            resolve(settings)
        settings.data.root = "somewhere"
    assert isinstance(resolve(settings), Config)


@pytest.mark.parametrize(
    "change, name",
    [
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
        (
            {"data": {"verification_sets": ("a.bin", "b.bin"), "verification_labels": ("x",)}},
            "data.verification_labels",
        ),
        (
            {"method": {"fedfr": {"binary_weight": 0.0, "binary_detached": True}}},
            "method.fedfr.binary_detached",
        ),
        ({"method": {"fedfr": {"binary_balance": 1.2}}}, "method.fedfr.binary_balance"),
        ({"eval": {"fars": (0.1, 0.01)}}, "eval.fars"),
        ({"eval": {"fars": (0.0,)}}, "eval.fars"),
        ({"model": {"dtype": "float16"}}, "model.dtype"),
        ({"engine": {"conv": "winograd"}}, "engine.conv"),
    ],
)
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


def test_a_setting_that_moved_or_is_misspelt_is_told_its_name():
    with pytest.raises(ConfigError, match=r"loss\.temperature is now method\.fedfr\.temperature"):
        resolve({"loss": {"temperature": 0.1}})
    with pytest.raises(ConfigError, match=r"fed\.round is not a setting; did you mean fed\.rounds"):
        resolve({"fed": {"round": 3}})


def test_flags_are_looked_up_before_anything_is_read():
    check_setting_flags(["--config=x.py", "--config.fed.lr=1", "--config.fed.local_epochs[0]=2"])
    for flag, answer in (("fed.transform=none", "method.fedfr.transform"), ("sed=3", "seed")):
        with pytest.raises(ConfigError, match=answer):
            check_setting_flags([f"--config.{flag}"])


def test_flags_of_a_grid_change_its_base():
    check_setting_flags(["--config.base.fed.lr=1", "--config.seeds=(0,)"], grid=True)
    with pytest.raises(
        ConfigError, match=r"fed\.lr is not a setting; did you mean base\.fed\.lr\?"
    ):
        check_setting_flags(["--config.fed.lr=1"], grid=True)
    with pytest.raises(ConfigError, match=r"base\.fed\.lrr is not a setting"):
        check_setting_flags(["--config.base.fed.lrr=1"], grid=True)


def test_every_old_name_leads_to_a_setting():
    assert set(MOVED.values()) <= set(setting_names(default_config()))
    assert not set(MOVED) & set(setting_names(default_config()))


@pytest.mark.parametrize(
    "change, name",
    [
        ({"seed": -1}, "seed"),
        ({"data": {"seed": 2**31}}, "data.seed"),
        ({"fed": {"local_epochs": (2**32,)}}, "fed.local_epochs"),
        ({"fed": {"lr_decay_epochs": (-3,)}}, "fed.lr_decay_epochs"),
        ({"data": {"split": {"held_out_pairs": -1}}}, "data.split.held_out_pairs"),
        ({"fed": {"lr": float("nan")}}, "fed.lr"),
        ({"loss": {"scale": float("inf")}}, "loss.scale"),
        (
            {"method": {"name": "fedprox", "fedprox": {"weight": float("nan")}}},
            "method.fedprox.weight",
        ),
    ],
)
def test_numbers_that_nothing_can_be_done_with(change, name):
    with pytest.raises(ConfigError, match=f"^{name} is "):
        resolve(change)
