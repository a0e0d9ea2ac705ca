"""Rounds that take simulated time: deadlines, records, resuming, time to accuracy."""

import dataclasses
import json
import logging
import math

import jax
import numpy as np
import pytest
from quick import _simulation, compiled_once, quick, rounds_only, same  # noqa: F401
from small import write_run

from fedfr_jax.errors import ConfigError, InputError
from fedfr_jax.experiment import Experiment
from fedfr_jax.population.pace import client_pace
from fedfr_jax.reporting.by_time import evaluated, seconds_to, time_table, time_to_accuracy
from fedfr_jax.runtime import simulated_time, workdir
from fedfr_jax.runtime.accounting import gaussian_epsilon

pytestmark = pytest.mark.usefixtures("compiled_once", "blank_figures")
PACE = {"speed": 10.0, "speed_sigma": 1.0, "bandwidth": 1.0}
LATE = {**PACE, "deadline": 2.0}


def rows_of(folder):
    return [row for row in workdir.read_metrics(folder) if row["kind"] == "round"]


def test_time_alone_changes_nothing_but_the_records(tmp_path):
    plain, _, _ = rounds_only(tmp_path / "plain")
    timed, _, _ = rounds_only(tmp_path / "timed", simulated_time=PACE)
    # Another program: the compiler may round otherwise.
    for a, b in zip(jax.tree.leaves(timed), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    rows = rows_of(tmp_path / "plain")
    assert not any("simulated_time" in row or "missed" in row for row in rows)


def test_rounds_take_as_long_as_their_slowest_client_by_hand(tmp_path):
    config = quick(simulated_time=PACE)
    rounds_only(tmp_path, config=config)
    sim, total = _simulation(config), 0.0
    size = 4 * sum(x.size for x in jax.tree.leaves(sim.network.init(jax.random.key(0))))
    pace = client_pace(config.simulated_time, 5, size)
    for row, cohort in zip(rows_of(tmp_path), sim.schedule.cohorts, strict=True):
        each = []
        for client in cohort[cohort >= 0]:
            images = len(sim.split.clients[int(client)].train_images) // 4 * 4
            each.append(images * pace.image[client] + pace.upload[client])
        assert row["round_seconds"] == pytest.approx(max(each), rel=1e-6)
        assert "missed" not in row  # there is nothing to miss
        total += row["round_seconds"]
        assert row["simulated_time"] == total


def test_a_deadline_is_kept_and_resuming_goes_on_from_the_same_time(tmp_path, monkeypatch):
    config = quick(simulated_time=LATE)
    whole = rounds_only(tmp_path / "whole", config=config)
    rows = rows_of(tmp_path / "whole")
    assert {row["round_seconds"] for row in rows} >= {2.0}
    assert sum(row["missed"] for row in rows) > 0
    for row in rows:
        assert row["missed"] + row["arrived"] == row["clients"] == 3
        late = row["slowest_seconds"] > 2
        assert row["round_seconds"] == (2.0 if late else row["slowest_seconds"])
        assert late == (row["missed"] > 0)
    with Experiment(config, tmp_path / "parts") as run:
        run.run(rounds=2)
    resumed = rounds_only(tmp_path / "parts", resume=True, config=config)
    assert same(whole[0], resumed[0]) and same(whole[2], resumed[2])
    keys = ("round", "round_seconds", "simulated_time", "missed", "arrived")
    assert [[row[k] for k in keys] for row in rows_of(tmp_path / "parts")] == [
        [row[k] for k in keys] for row in rows
    ]


def test_a_run_whose_time_is_lost_is_not_resumed(tmp_path):
    config = quick(simulated_time=LATE)
    with Experiment(config, tmp_path) as run:
        run.run(rounds=2)
    path = tmp_path / "metrics.jsonl"
    lines = [x for x in path.read_text().splitlines() if json.loads(x).get("round") != 2]
    path.write_text("".join(f"{line}\n" for line in lines))
    with (
        pytest.raises(InputError, match="no record of round 2 with its simulated_time"),
        Experiment(config, tmp_path, resume=True) as run,
    ):
        run.run()


def test_a_run_that_nobody_finishes_is_told_and_counted(tmp_path, caplog):
    config = quick(simulated_time={**PACE, "deadline": 1e-3}, fed={"rounds": 2})
    with caplog.at_level(logging.WARNING), Experiment(config, tmp_path) as run:
        before = jax.device_get(run.server.backbone)
        run.run()
        assert same(before, jax.device_get(run.server.backbone))
        summary = write_run(run)
    told = [r.getMessage() for r in caplog.records if "nobody of" in r.getMessage()]
    assert len(told) == 1 and "round 1: nobody of 3 clients arrived" in told[0]
    assert summary["run"]["simulated_time"] == {
        "seconds": pytest.approx(2e-3),
        "missed": 6,
        "rounds_nobody_arrived": 2,
    }


def test_an_edited_file_of_speeds_is_refused_and_a_moved_one_is_not(tmp_path):
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("1,2,3,4,5")
    second.write_text("1,2,3,4,5")
    rounds_only(tmp_path / "run", simulated_time={"speeds": str(first)}, fed={"rounds": 1})
    rounds_only(tmp_path / "run", True, simulated_time={"speeds": str(second)}, fed={"rounds": 2})
    third = tmp_path / "c.csv"
    third.write_text("1,2,3,4,6")
    with pytest.raises(InputError, match=r"simulated_time\.speeds"):
        rounds_only(
            tmp_path / "run", True, simulated_time={"speeds": str(third)}, fed={"rounds": 3}
        )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"simulated_time": {"deadline": 2.0}}, r"deadline is set, but without"),
        ({"simulated_time": {"first": 2}}, r"first is set, but without"),
        ({"simulated_time": {"bandwidth": 2.0}}, r"bandwidth is set, but without"),
        ({"simulated_time": {"speed": 1.0, "speeds": "x.csv"}}, "are both set"),
        ({"simulated_time": {"speed": -1.0}}, "must not be negative"),
        ({"simulated_time": {"speed": 1.0, "levels": (95.0,)}}, "give shares"),
        (
            {
                "simulated_time": PACE,
                "method": {"name": "centralized"},
                "population": {"cohort": 0},
            },
            "has one client",
        ),
        ({"simulated_time": LATE, "method": {"name": "local"}}, "deadline is set, but .*nothing"),
        ({"simulated_time": {**PACE, "first": 2}, "method": {"name": "fedface"}}, "first is set"),
        (
            {
                "simulated_time": {**PACE, "first": 2},
                "privacy": {"clip_norm": 1.0, "noise_multiplier": 1.0},
                "fed": {"aggregation": "uniform"},
            },
            "first is 2, but .*noise_multiplier does not account",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, match):
    with pytest.raises(ConfigError, match=match):
        quick(**changes)


def made_up():
    """Evaluations and rounds of a run whose global model goes up, down and up."""
    rows = [{"kind": "evaluation", "round": 0, "model": "pretrained", "personal/rank1": 0.5}]
    values = (0.55, 0.8, 0.7, 0.9)
    for r, value in enumerate(values, start=1):
        rows.append({"kind": "round", "round": r, "simulated_time": 10.0 * r})
        if r != 3:
            rows.append(
                {"kind": "evaluation", "round": r, "model": "global", "personal/rank1": value}
            )
    return rows


def test_time_to_accuracy_by_hand():
    [found] = time_to_accuracy(made_up(), (0.5, 0.8, 0.88, 0.99))
    assert found["model"] == "global" and found["last"] == 0.9
    assert found["seconds"] == {
        "95 % of the last": 40.0,  # 0.855: only the last
        "0.5": 0.0,  # the pretrained model
        "0.8": 20.0,
        "0.88": 40.0,
        "0.99": None,
    }
    assert time_to_accuracy([row for row in made_up() if row["kind"] != "round"]) == []
    assert simulated_time.clock([]) == {}


def test_time_to_a_level_is_that_of_the_first_evaluation_that_reached_it():
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = {int(r): float(v) for r, v in enumerate(rng.random(6))}
        seconds = dict(enumerate(np.cumsum(rng.random(6)).tolist()))
        level = float(rng.random())
        reached = [seconds[r] for r in points if points[r] >= level]
        assert seconds_to(points, seconds, level) == (min(reached) if reached else None)


def test_the_table_and_the_plots_have_the_times(tmp_path):
    config = quick(simulated_time={**LATE, "levels": (0.1,)}, eval={"every": 2, "fars": (0.1,)})
    with Experiment(config, tmp_path) as run:
        run.run()
        summary = run.evaluate()
    table = time_table(summary)
    assert table.columns[1:] == ("to 95 % of the last (s)", "to 10.00 (s)")
    assert len(table.rows) == len(summary["time_to_accuracy"]) > 0
    rows = workdir.read_metrics(tmp_path)
    assert {row["metric"] for row in summary["time_to_accuracy"]} == set(evaluated(rows))
    page = (tmp_path / "report.html").read_text()
    assert "Time to accuracy" in page and "by simulated time" in page
    assert sorted(tmp_path.glob("plots/by-time-*.png"))
    assert summary["run"]["simulated_time"]["missed"] > 0


def test_dropouts_before_the_work_take_no_time(tmp_path):
    config = quick(simulated_time=LATE, population={"cohort": 3, "dropout": 0.9})
    rounds_only(tmp_path, config=config)
    for row in rows_of(tmp_path):
        assert row["clients"] + row["dropped"] == 3
        assert (row["round_seconds"] == 0) == (row["clients"] == 0)


def test_private_rounds_keep_their_epsilon_whoever_is_late(tmp_path):
    private = {
        "privacy": {"clip_norm": 1.0, "noise_multiplier": 1.0},
        "fed": {"aggregation": "uniform", "rounds": 2},
        "population": {"cohort": 0},
    }
    rounds_only(tmp_path, config=quick(simulated_time={**PACE, "deadline": 2.0}, **private))
    rows = rows_of(tmp_path)
    assert [row["epsilon"] for row in rows] == [
        gaussian_epsilon(1 / math.sqrt(r), 1e-5) for r in (1, 2)
    ]
    assert sum(row["missed"] for row in rows) > 0


def test_off_is_the_default():
    settings = quick()
    assert not settings.simulated_time.is_active
    assert _simulation(settings).pace is None
    assert dataclasses.asdict(settings.simulated_time)["deadline"] == 0
