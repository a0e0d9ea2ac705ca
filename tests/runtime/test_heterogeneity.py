"""Whole runs with people at several clients, and with clients of similar people."""

import hashlib
import json
import re

import numpy as np
import pytest
from quick import SETTINGS, compiled_once, quick, rounds_only, same  # noqa: F401

from fedfr_jax.data.split_file import describe_split, load_split
from fedfr_jax.errors import ConfigError, InputError
from fedfr_jax.evaluation.assess import assess_shared
from fedfr_jax.experiment import Experiment
from fedfr_jax.reporting.results import make_assessor
from fedfr_jax.runtime.simulation import build_simulation
from fedfr_jax.settings import SplitConfig

pytestmark = pytest.mark.usefixtures("compiled_once")


def split_settings(**changes):
    return SETTINGS["data"] | {"split": SETTINGS["data"]["split"] | changes}


SHARED = split_settings(shared_identities=0.5)


def test_a_run_with_shared_people(tmp_path):
    config = quick(data=SHARED, fed=SETTINGS["fed"] | {"rounds": 2})
    with Experiment(config, tmp_path) as run:
        run.run(1)
    with Experiment(config, tmp_path, resume=True) as run:
        assert run.round == 1
        run.run()
        found = assess_shared(make_assessor(run.sim), run.server.backbone)
    clients = load_split(tmp_path / "split.npz").clients
    counts = describe_split(run.sim.split, "")
    assert counts["shared_identities"] == 2
    assert counts["client_identities"] == len(np.unique(clients.identities)) == 8
    for client, (one, many) in enumerate(
        zip(found.verification, found.identification, strict=True)
    ):
        own = clients.identities[clients.entry_clients == client]
        mated = 2 * np.isin(clients.identities, own).sum()  # two probes of each at each client
        assert many.num_mated == mated and many.num_mated + many.num_non_mated == 20
        assert one.num_positives + one.num_negatives == 190 - (20 - mated) * (19 - mated) // 2


def test_a_central_run_has_one_class_for_a_shared_person():
    config = quick(data=SHARED, method={"name": "centralized"}, population={"cohort": 0})
    sim = build_simulation(config)
    people = len(np.unique(sim.split.clients.identities))
    assert sim.schedule.clients.identity_counts.tolist() == [people] == [8]
    assert sim.schedule.most_identities == 8
    rows = sim.schedule.rows(sim.schedule.assigned(0))
    assert rows.identities.max() == 8
    classes = rows.labels[0, : rows.sizes[0]]
    identities = sim.source.labels[rows.numbers[: rows.sizes[0]]]
    assert len(set(zip(classes.tolist(), identities.tolist(), strict=True))) == 8


def test_a_server_that_pushes_people_apart_is_refused():
    with pytest.raises(ConfigError, match=r"^data\.split\.shared_identities .*'fedface'.*apart"):
        quick(data=SHARED, method={"name": "fedface"})
    quick(method={"name": "fedface"})


def test_a_run_from_before_these_settings_goes_on(tmp_path):
    config = quick(fed=SETTINGS["fed"] | {"rounds": 1})
    first = rounds_only(tmp_path, config=config)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    fresh = [name for name in saved["data"]["split"] if re.match("s(hared|ites|kew)_", name)]
    assert len(fresh) == 6
    for name in fresh:
        del saved["data"]["split"][name]
    path.write_text(json.dumps(saved))
    (tmp_path / "config.json.sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    again = rounds_only(tmp_path, resume=True, config=config)
    assert same(first[0], again[0])
    with pytest.raises(InputError, match="who trains on whom"):
        Experiment(quick(data=SHARED), tmp_path, resume=True)


def test_a_file_of_features_may_move_but_not_change(tmp_path):
    def config(name):
        features = str(tmp_path / name)
        return quick(data=split_settings(skew_by="cluster", skew_groups=4, skew_features=features))

    array = np.random.default_rng(0).standard_normal((20, 3))
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", array)
    np.save(tmp_path / "c.npy", array[::-1])
    first = rounds_only(tmp_path / "run", config=config("a.npy"))
    again = rounds_only(tmp_path / "run", resume=True, config=config("b.npy"))
    assert same(first[0], again[0])
    with pytest.raises(InputError, match="who trains on whom"):
        Experiment(config("c.npy"), tmp_path / "run", resume=True)


def test_generated_faces_are_grouped_the_same_every_time():
    config = quick(data=split_settings(skew_by="cluster", skew_groups=3, skew_alpha=0.1))
    one, two = (build_simulation(config).split for _ in range(2))
    np.testing.assert_array_equal(one.clients.identities, two.clients.identities)
    np.testing.assert_array_equal(one.groups, two.groups)
    assert len(np.unique(one.groups)) > 1


def test_defaults_share_and_group_nobody():
    config = SplitConfig()
    assert (config.shared_identities, config.skew_by, config.skew_features) == (0.0, "", "")
