"""Epsilon of noise that rounds share, and runs with it."""

import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import _simulation, compiled_once, quick, rounds_only, same  # noqa: F401
from small import write_run

from fedfr_jax.errors import ConfigError
from fedfr_jax.experiment import Experiment
from fedfr_jax.population.participation import (
    least_separation,
    most_rounds,
    tree_sensitivities,
)
from fedfr_jax.population.sampling import sample_cohorts
from fedfr_jax.reporting.privacy_table import privacy_table
from fedfr_jax.runtime import accounting, workdir
from fedfr_jax.runtime.accounting import gaussian_epsilon
from fedfr_jax.settings import PopulationConfig

TREE = {"clip_norm": 1.0, "noise_multiplier": 3.0, "mechanism": "tree"}


def released(rounds):
    """Every node of a sum over some of the first rounds, as the set of its rounds."""
    found = set()
    for done in range(1, rounds + 1):
        start = 0
        for level in reversed(range(done.bit_length())):
            if done - start >= 1 << level:
                found.add(frozenset(range(start, start + (1 << level))))
                start += 1 << level
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), unique=True, max_size=3), min_size=1, max_size=13))
def test_the_sensitivity_is_that_of_all_nodes_written_out(lists):
    cohorts = np.full((len(lists), 3), -1)
    for row, ids in zip(cohorts, lists, strict=True):
        row[: len(ids)] = sorted(ids)
    found = tree_sensitivities(cohorts)
    assert found[0] == 0
    for done in range(1, len(lists) + 1):
        nodes = released(done)
        squares = [
            sum(len({r for r in node if c in cohorts[r]}) ** 2 for node in nodes) for c in range(5)
        ]
        assert found[done] == pytest.approx(math.sqrt(max(squares)))


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 7, 8, 20])
def test_a_client_of_one_round_is_in_as_many_nodes_as_the_tree_is_high(rounds):
    cohorts = np.arange(rounds)[:, None]  # each round another client
    height = math.floor(math.log2(rounds)) + 1
    assert tree_sensitivities(cohorts)[-1] == pytest.approx(math.sqrt(height))
    assert most_rounds(cohorts) == 1 and least_separation(cohorts) == 0


def test_epsilon_is_that_of_a_gaussian_with_the_root_of_the_height(tmp_path):
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps([[0], [1], [2], [3]]))
    config = quick(
        privacy=TREE,
        fed={"aggregation": "uniform"},
        population={"cohort": 0, "sampling": "schedule", "schedule": str(path)},
    )
    schedule = _simulation(config).schedule
    for rounds, height in ((1, 1), (2, 2), (3, 2), (4, 3)):
        expected = gaussian_epsilon(3.0 / math.sqrt(height), 1e-5)
        found = accounting.spent(config, schedule, rounds)["epsilon"]
        assert found == pytest.approx(expected, rel=1e-9)
    assert accounting.spent(config, schedule, 0)["epsilon"] == 0


def test_it_agrees_with_the_accountant_of_google():
    dp_accounting = pytest.importorskip("dp_accounting")
    from dp_accounting import rdp  # noqa: PLC0415

    for rounds in (1, 5, 16):
        event = dp_accounting.SingleEpochTreeAggregationDpEvent(3.0, rounds)
        theirs = rdp.RdpAccountant(
            accounting._ORDERS, dp_accounting.NeighboringRelation.REPLACE_SPECIAL
        ).compose(event)
        sensitivity = tree_sensitivities(np.arange(rounds)[:, None])[-1]
        ours = accounting.Mechanism(3.0 / sensitivity, 1e-5, "participation", 1, 9, "rdp")
        assert ours.epsilon(1) == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-6)
        exact = gaussian_epsilon(3.0 / sensitivity, 1e-5)
        assert exact <= theirs.get_epsilon(1e-5)


def test_cyclic_cohorts_come_again_after_the_whole_population():
    cohorts = sample_cohorts(10, 12, PopulationConfig(cohort=4, sampling="cyclic"), seed=3)
    assert least_separation(cohorts) == 2  # 10 clients, 4 at a time
    assert sorted(cohorts[:5].reshape(-1)) == sorted([*range(10)] * 2)
    np.testing.assert_array_equal(cohorts[5:10], cohorts[:5])
    np.testing.assert_array_equal(
        cohorts[:3], sample_cohorts(10, 3, PopulationConfig(cohort=4, sampling="cyclic"), seed=3)
    )
    other = sample_cohorts(10, 12, PopulationConfig(cohort=4, sampling="cyclic"), seed=4)
    assert (cohorts != other).any()


@pytest.mark.usefixtures("compiled_once", "blank_figures")
def test_a_resumed_run_has_the_same_noise_and_spends_the_same(tmp_path):
    config = quick(
        privacy=TREE,
        fed={"aggregation": "uniform"},
        population={"cohort": 2, "sampling": "cyclic"},
    )
    whole = rounds_only(tmp_path / "whole", config=config)
    with Experiment(config, tmp_path / "parts") as run:
        run.run(rounds=1)
    with Experiment(config, tmp_path / "parts", resume=True) as run:
        run.run(rounds=2)
    with Experiment(config, tmp_path / "parts", resume=True) as run:
        run.run()
        summary = write_run(run)
    assert same(whole[0], jax.device_get(run.server))

    def epsilons(folder):
        return [r["epsilon"] for r in workdir.read_metrics(folder) if r["kind"] == "round"]

    spent = epsilons(tmp_path / "whole")
    assert spent == epsilons(tmp_path / "parts") == sorted(spent)
    schedule = _simulation(config).schedule
    found = summary["run"]["privacy"]
    assert found["epsilon"] == spent[-1]
    assert found["participations"] == most_rounds(schedule.cohorts) == 2
    assert found["least_separation"] == 2
    table = privacy_table(summary)
    assert "at most 2 of the rounds, which were at least 2 apart" in " ".join(table.notes)
    assert "tree aggregation" in table.rows[0][1][-1].text


def test_a_target_is_met_by_the_noise_that_is_found(tmp_path):
    config = quick(
        privacy={"clip_norm": 1.0, "target_epsilon": 4.0, "mechanism": "tree"},
        fed={"aggregation": "uniform"},
        population={"cohort": 2, "sampling": "cyclic"},
    )
    sim = _simulation(config)
    found = accounting.spent(sim.config, sim.schedule, 4)["epsilon"]
    assert 3.99 < found <= 4.0 and sim.config.privacy.noise_multiplier > 0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"privacy": {"mechanism": "tree"}}, "there is no noise"),
        ({"privacy": {**TREE, "clip_quantile": 0.5}}, "rounds share noise"),
        ({"privacy": {**TREE, "sampling": "poisson"}}, "gains nothing by sampling"),
        ({"privacy": TREE, "population": {"sampling": "weighted"}}, "'weighted'"),
        ({"privacy": TREE, "simulated_time": {"speed": 1.0, "first": 2}}, "does not account for"),
        ({"privacy": {**TREE, "mechanism": "matrix"}}, "use one of gaussian, tree"),
    ],
)
def test_what_cannot_be_accounted_for_is_refused(changes, match):
    with pytest.raises(ConfigError, match=match):
        quick(fed={"aggregation": "uniform"}, **changes)
