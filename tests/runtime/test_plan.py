"""Automatic layouts: measured once, kept, and never against the user's word."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from fedfr_jax.config import resolve
from fedfr_jax.runtime import autotune as plan

SETTINGS = {
    "data": {"image_size": 16, "split": {"identities_per_client": (2, 3)}},
    "model": {"depth": 4, "widths": (4, 4, 8, 8), "embedding": 8, "dtype": "auto"},
    "fed": {"num_clients": 6, "batch_size": 4},
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDFR_PLANS", str(tmp_path / "plans.json"))
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))


def settings(**engine):
    return resolve(SETTINGS | {"engine": engine})


def test_a_plan_is_measured_once_and_told():
    lines = []
    first = plan.settle(settings(plan_seconds=600.0), report=lines.append)
    assert not plan.is_automatic(first)
    assert first.engine.lanes in (1, 3, 4) and first.engine.conv in ("custom", "patches")
    assert "measured" in lines[0] and "against" in lines[0]
    again = plan.settle(settings(plan_seconds=600.0), report=lines.append)
    assert again == first and "measured before" in lines[1]


def test_what_a_busy_machine_measures_is_not_kept(monkeypatch):
    monkeypatch.setattr(
        plan,
        "measure",
        lambda config, seeds: (plan.Candidate(1, "custom", 0, "float32"), "measured"),
    )
    lines = []
    monkeypatch.setattr("os.getloadavg", lambda: (100.0, 0.0, 0.0))
    plan.settle(settings(), report=lines.append)
    assert "busy" in lines[0] and not plan.cache_file().exists()
    monkeypatch.setattr("os.getloadavg", lambda: (0.5, 0.0, 0.0))
    plan.settle(settings(), report=lines.append)
    assert "busy" not in lines[1] and plan.cache_file().exists()


def test_what_the_user_gives_stays(monkeypatch):
    given = resolve(
        SETTINGS
        | {
            "model": SETTINGS["model"] | {"dtype": "float32"},
            "engine": {"lanes": 2, "conv": "patches"},
        }
    )
    monkeypatch.setattr(plan, "measure", None)
    assert plan.settle(given) is given
    seen = [c for group in plan.candidates(settings(lanes=2), 2, "gpu") for c in group]
    assert {c.lanes for c in seen} == {2}
    assert {c.dtype for c in seen} == {"float32", "bfloat16"}
    # On a CPU bfloat16 is slower, so it is used only if it is asked for.
    seen = [c for group in plan.candidates(settings(), 2, "cpu") for c in group]
    assert {c.dtype for c in seen} == {"float32"}


def test_more_lanes_are_tried_only_while_they_pay(monkeypatch):
    config = dataclasses.replace(
        resolve(SETTINGS), model=dataclasses.replace(resolve(SETTINGS).model, dtype="float32")
    )
    config = dataclasses.replace(config, fed=dataclasses.replace(config.fed, num_clients=64))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    tried = []

    def fake(config, candidate, mesh):
        tried.append(candidate)
        if candidate.conv == "grouped":
            return np.inf  # out of memory
        return {1: 8.0, 2: 4.0, 4: 2.0, 8: 1.0}.get(candidate.lanes, 1.01)

    monkeypatch.setattr(plan, "seconds_per_step", fake)
    best, note = plan.measure(config)
    assert (best.lanes, best.conv) == (8, "patches")
    assert "out of memory" in note
    assert max(c.lanes for c in tried if c.conv == "patches") == 16


def test_measuring_ends_with_its_time_but_not_before_one_layout_fits(monkeypatch):
    seconds = iter((np.inf, 2.0, 1.0))
    now = [0.0]

    def fake(config, candidate, mesh):
        now[0] += 8.0  # each takes eight seconds, most of them to compile
        return next(seconds)

    monkeypatch.setattr(plan, "seconds_per_step", fake)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    best, note = plan.measure(settings(plan_seconds=5.0), clock=lambda: now[0])
    assert best.conv == "grouped" and now[0] == 16.0
    assert "would take longer than engine.plan_seconds=5" in note


def test_without_time_for_measuring_rules_decide(monkeypatch):
    monkeypatch.setattr(plan, "seconds_per_step", None)
    lines = []
    found = plan.settle(settings(plan_seconds=0.0), report=lines.append)
    assert (found.engine.lanes, found.engine.conv) == (1, "custom")
    assert found.model.dtype == "float32"
    assert "by rule" in lines[0] and not plan.cache_file().exists()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert plan.settle(settings(plan_seconds=0.0)).engine.lanes > 1  # small networks side by side
    large = SETTINGS | {"model": SETTINGS["model"] | {"widths": (64, 128, 256, 512)}}
    large = plan.settle(resolve(large | {"engine": {"plan_seconds": 0.0}})).engine
    assert (large.lanes, large.conv) == (1, "grouped")


def test_nothing_fits(monkeypatch):
    monkeypatch.setattr(plan, "seconds_per_step", lambda *args: np.inf)
    with pytest.raises(MemoryError, match=r"engine\.gradient_batch"):
        plan.measure(settings())


def test_a_resumed_run_keeps_its_plan():
    earlier = {
        "engine": {"lanes": 4, "conv": "patches", "gradient_batch": 2},
        "model": {"dtype": "bfloat16"},
    }
    kept = plan.keep_settled(settings(), earlier)
    assert (kept.engine.lanes, kept.engine.conv, kept.engine.gradient_batch) == (4, "patches", 2)
    assert kept.model.dtype == "bfloat16"
    assert plan.keep_settled(settings(conv="custom"), earlier).engine.conv == "custom"


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float64"},
        {"dtype": "int8"},
        {"dtype": "bfloat16"},  # not tried on a CPU
        {"lanes": 0},
        {"lanes": 4096},
        {"lanes": "1"},
        {"lanes": 1.0},
        {"lanes": [1]},
        {"conv": "auto"},
        {"gradient_batch": 3},
        {"other": 1},
        None,
        "[" * 100_000,
        "{broken",
        "[1, 2]",
        "9" * 5000,
        " " * (2 << 20) + "{}",
    ],
)
def test_a_file_of_others_is_measured_anew(change, monkeypatch):
    best = plan.Candidate(3, "patches", 0, "float32")
    monkeypatch.setattr(plan, "measure", lambda config, seeds: (best, "measured"))
    kept = {"lanes": 1, "conv": "custom", "gradient_batch": 0, "dtype": "float32"}
    text = (
        change
        if isinstance(change, str)
        else json.dumps(
            {plan._key(settings(), 1): None if change is None else kept | change, "x": [1]}
        )
    )
    plan.cache_file().write_text(text)
    assert plan.settle(settings(), report=lambda line: None).engine.lanes == 3
    assert list(plan._read().values()) == [dataclasses.asdict(best)]  # written anew
    plan._write({plan._key(settings(), 1): kept})
    assert plan.settle(settings(), report=lambda line: None).engine.conv == "custom"


def test_accelerators_try_layers_that_choose_and_one_lane_first():
    small, large = (
        settings(),
        resolve(SETTINGS | {"model": SETTINGS["model"] | {"widths": (64, 128, 256, 512)}}),
    )
    for config in (small, large):
        for backend in ("gpu", "tpu"):
            groups = list(plan.candidates(config, 1, backend))
            assert [g[0].lanes for g in groups] == [1] * len(groups)
            convs = {c.conv for g in groups for c in g if c.lanes > 1}
            assert convs == {"layered", "patches"}
            assert not any(c.conv == "layered" for g in groups for c in g if c.lanes == 1)
    first = next(plan.candidates(large, 1, "gpu"))
    assert [(c.lanes, c.conv) for c in first][:2] == [(1, "grouped"), (2, "layered")]
    assert plan.by_rule(large, backend="gpu", devices=1)[0].lanes == 1
    given = resolve(SETTINGS | {"engine": {"conv": "layered"}})
    assert {c.conv for g in plan.candidates(given, 1, "gpu") for c in g} == {"layered"}
