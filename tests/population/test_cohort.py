"""Who takes part: sampling, schedules, availability; placement on devices."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from fedfr_jax.errors import InputError
from fedfr_jax.population.sampling import assign, needed_slots, read_schedule, sample_cohorts


@dataclasses.dataclass(frozen=True)
class Settings:
    cohort: int = 0
    sampling: str = "uniform"
    schedule: str = ""
    availability: str = ""


def cohorts_of(population, rounds, seed=0, weights=None, **settings):
    return sample_cohorts(population, rounds, Settings(**settings), seed=seed, weights=weights)


def check(cohorts, population):
    """In range, without replacement, ascending, nobody last."""
    assert cohorts.dtype == np.int64
    key = np.where(cohorts < 0, population, cohorts)
    assert (key <= population).all()
    assert ((np.diff(key, axis=1) > 0) | (key[:, 1:] == population)).all()
    assert (cohorts >= -1).all()


def saved(tmp_path, array):
    path = tmp_path / "saved.npy"
    np.save(path, array)
    return str(path)


def test_all_clients_take_part_by_default():
    np.testing.assert_array_equal(cohorts_of(7, 3), np.tile(np.arange(7), (3, 1)))
    np.testing.assert_array_equal(cohorts_of(7, 3, cohort=7), np.tile(np.arange(7), (3, 1)))
    assert cohorts_of(7, 0, cohort=2).shape == (0, 2)


@pytest.mark.parametrize("population", [50, 3000])  # a race; proposals
@pytest.mark.parametrize("sampling", ["uniform", "weighted"])
@pytest.mark.parametrize("available", [False, True])
def test_rounds_depend_on_seed_and_number_alone(tmp_path, population, sampling, available):
    settings = {"cohort": 20, "sampling": sampling, "weights": np.arange(population) + 1.0}
    if available:
        mask = np.random.default_rng(0).random((5, population)) < 0.7
        settings["availability"] = saved(tmp_path, mask)
    cohorts = cohorts_of(population, 30, **settings)
    check(cohorts, population)
    assert (cohorts >= 0).all()
    np.testing.assert_array_equal(cohorts_of(population, 12, **settings), cohorts[:12])
    assert len(np.unique(cohorts, axis=0)) == 30
    other = cohorts_of(population, 30, seed=1, **settings)
    assert (other != cohorts).any(axis=1).all()


def test_uniform_draws_everybody_equally_often():
    cohorts = cohorts_of(100, 4000, cohort=10)
    counts = np.bincount(cohorts.ravel(), minlength=100)
    # 400 each; the sum of squares is about chi-squared with 99 degrees of freedom.
    chi = ((counts - 400) ** 2).sum() / (400 * 0.9)
    assert 60 < chi < 150
    pairs = sum(({3, 50} <= set(row)) for row in cohorts.tolist())
    assert abs(pairs - 4000 * 10 * 9 / (100 * 99)) < 4 * 36**0.5


def inclusion(weights, size):
    """P(client in a cohort) of successive sampling, by going through all orders."""
    total, found = weights.sum(), np.zeros(len(weights))
    for order in itertools.permutations(range(len(weights)), size):
        p, left = 1.0, total
        for i in order:
            p, left = p * weights[i] / left, left - weights[i]
        found[list(order)] += p
    return found


@pytest.mark.parametrize("padding", [0, 200])  # a race; proposals, clients of weight 0 between
def test_weighted_inclusion_is_that_of_successive_draws(padding):
    weights = np.array([1.0, 2.0, 4.0, 8.0, 0.5])
    expected = inclusion(weights, 3)
    spread = np.zeros(5 + padding)
    where = np.linspace(0, len(spread) - 1, 5).astype(int)
    spread[where] = weights
    rounds = 6000
    cohorts = cohorts_of(len(spread), rounds, cohort=3, sampling="weighted", weights=spread)
    check(cohorts, len(spread))
    assert set(np.unique(cohorts)) == set(where)
    found = np.bincount(cohorts.ravel(), minlength=len(spread))[where] / rounds
    error = np.sqrt(expected * (1 - expected) / rounds)
    assert (abs(found - expected) < 4 * error).all()


def test_weighted_with_few_repeats_is_proportional():
    rng = np.random.default_rng(3)
    weights = rng.lognormal(0, 1, 20_000)
    cohorts = cohorts_of(20_000, 2000, cohort=20, sampling="weighted", weights=weights)
    check(cohorts, 20_000)
    # Groups of clients of like weight, by how often they were drawn.
    order = np.argsort(weights).reshape(10, -1)
    counts = np.bincount(cohorts.ravel(), minlength=20_000)[order].sum(axis=1)
    expected = 40_000 * weights[order].sum(axis=1) / weights.sum()
    assert (abs(counts - expected) < 4 * np.sqrt(expected) + 0.005 * expected).all()


def test_extreme_weights():
    weights = np.array([1e300, 1.0, 1e-300, 0.0, 5e-324] * 100)
    cohorts = cohorts_of(500, 3, cohort=410, sampling="weighted", weights=weights)
    assert ((cohorts >= 0).sum(axis=1) == 400).all()
    assert not np.isin(cohorts, np.arange(3, 500, 5)).any()
    cohorts = cohorts_of(500, 3, cohort=100, sampling="weighted", weights=weights)
    np.testing.assert_array_equal(cohorts, np.tile(np.arange(0, 500, 5), (3, 1)))
    cohorts = cohorts_of(500, 3, cohort=20, sampling="weighted", weights=weights)
    assert (cohorts % 5 == 0).all()


def test_availability_repeats_and_limits_who_is_drawn(tmp_path):
    rng = np.random.default_rng(4)
    mask = rng.random((4, 2000)) < np.array([0.5, 0.01, 0.3, 0.0])[:, None]
    path = saved(tmp_path, mask)
    for sampling in ("uniform", "weighted"):
        cohorts = cohorts_of(
            2000, 40, cohort=50, sampling=sampling, availability=path, weights=np.ones(2000)
        )
        check(cohorts, 2000)
        sizes = (cohorts >= 0).sum(axis=1)
        np.testing.assert_array_equal(sizes, np.tile(np.minimum(50, mask.sum(axis=1)), 10))
        for r, row in enumerate(cohorts):
            assert mask[r % 4, row[row >= 0]].all()
    everybody = cohorts_of(2000, 4, availability=path)
    for r, row in enumerate(everybody):
        np.testing.assert_array_equal(row[row >= 0], np.flatnonzero(mask[r]))


def test_uniform_among_the_available(tmp_path):
    mask = np.zeros((1, 1000), bool)
    mask[0, ::4] = True
    cohorts = cohorts_of(1000, 5000, cohort=10, availability=saved(tmp_path, mask))
    counts = np.bincount(cohorts.ravel(), minlength=1000)[::4]
    chi = ((counts - 200) ** 2).sum() / 200
    assert 180 < chi < 330  # 249 degrees of freedom


def test_a_schedule_starts_over(tmp_path):
    expected = np.array([[1, 2, 5], [0, -1, -1], [-1, -1, -1], [7, 9, -1], [1, 2, 5]])
    lists = [[5, 1, 2], [0], [], [9, 7]]
    files = {
        "whole.json": json.dumps(lists, indent=1),
        "lines.jsonl": "\n".join(json.dumps(ids) for ids in lists) + "\n",
        "lines.txt": "5 1, 2\n0\n\n[]\n  9,7\n",
        "nobody.txt": "5\t1 2\n0 -1\n-1\n9 7",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    np.save(tmp_path / "array.npy", [[5, 1, 2], [0, -1, -1], [-1, -1, -1], [9, -1, 7]])
    for name in (*files, "array.npy"):
        path = str(tmp_path / name)
        cohorts = cohorts_of(10, 5, sampling="schedule", schedule=path)
        np.testing.assert_array_equal(cohorts, expected, err_msg=name)
        # The width does not depend on how many rounds there are.
        assert cohorts_of(10, 1, sampling="schedule", schedule=path, cohort=4).shape == (1, 4)
        assert cohorts_of(10, 1, sampling="schedule", schedule=path).shape == (1, 3)
    mask = np.ones((2, 10), bool)
    mask[0, [1, 9]] = mask[1, 0] = False
    cohorts = cohorts_of(
        10, 5, sampling="schedule", schedule=path, availability=saved(tmp_path, mask)
    )
    np.testing.assert_array_equal(
        cohorts, [[2, 5, -1], [-1, -1, -1], [-1, -1, -1], [7, 9, -1], [2, 5, -1]]
    )


def test_bad_schedules(tmp_path):
    cases = {
        "0 1\n2 10": "round 1: client 10 is not among the 10 clients",
        "0\n1\n-2": "round 2: client -2",
        "3 4 3": "round 0: client 3 occurs more than once",
        "1 2\nthree": "round 1: 'three' is no list",
        "[1, 2]\n[3, 4": r"round 1: '\[3, 4' is no list",
        "[[1], [2.5]]": "round 1: client ids must be whole numbers",
        "[[true]]": "round 0: client ids must be whole numbers",
        "": "no rounds",
        "[]": "no rounds",
    }
    path = tmp_path / "schedule.txt"
    for text, message in cases.items():
        path.write_text(text)
        with pytest.raises(InputError, match=f"^{path}: .*{message}"):
            read_schedule(path, 10)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=f"^{path}: cannot be read"):
        read_schedule(path, 10)
    with pytest.raises(InputError, match="absent: cannot be read as a schedule"):
        read_schedule(tmp_path / "absent", 10)
    for array in (np.zeros((2, 2)), np.zeros(3, int), np.array([[[1]]])):
        with pytest.raises(InputError, match=r"saved\.npy: .*must be whole numbers"):
            read_schedule(saved(tmp_path, array), 10)
    with pytest.raises(InputError, match="round 1: client 3 occurs"):
        read_schedule(saved(tmp_path, np.array([[1, 2], [3, 3]])), 10)
    path.write_text("1 2 3\n4")
    with pytest.raises(InputError, match=r"population.cohort: 2, but round 0"):
        cohorts_of(10, 3, cohort=2, sampling="schedule", schedule=str(path))
    with pytest.raises(InputError, match=r"population.schedule"):
        cohorts_of(10, 3, sampling="schedule")


def test_bad_settings(tmp_path):
    for cohort in (11, -1):
        with pytest.raises(InputError, match=rf"^population\.cohort: {cohort}"):
            cohorts_of(10, 3, cohort=cohort)
    with pytest.raises(InputError, match=r"^population\.sampling: 'some'"):
        cohorts_of(10, 3, sampling="some")
    for weights in (
        None,
        np.ones(9),
        np.zeros(10),
        np.full(10, np.nan),
        np.arange(10) - 1.0,
        np.full(10, 1e308),
    ):
        with pytest.raises(InputError, match="weights"):
            cohorts_of(10, 3, sampling="weighted", weights=weights)
    bad = {
        "must be bool": (np.ones((2, 10)), np.ones(10, bool), np.ones((0, 10), bool)),
        "for 9 clients": (np.ones((2, 9), bool),),
    }
    for message, arrays in bad.items():
        for array in arrays:
            with pytest.raises(InputError, match=rf"saved\.npy: .*{message}"):
                cohorts_of(10, 3, availability=saved(tmp_path, array))
    path = tmp_path / "text.npy"
    for content in (b"", b"no array"):
        path.write_bytes(content)
        for settings in (
            {"availability": str(path)},
            {"sampling": "schedule", "schedule": str(path)},
        ):
            with pytest.raises(InputError, match=f"^{path}: cannot be read"):
                cohorts_of(10, 3, **settings)
    with pytest.raises(InputError, match=r"absent\.npy: no such file"):
        cohorts_of(10, 3, availability=str(tmp_path / "absent.npy"))


def test_the_longest_go_first_to_the_least_loaded():
    placed = assign(np.array([3, 8, 1, 4, 6]), np.array([5, 9, 5, 1, 2]), devices=2, slots=3)
    assert placed.tolist() == [8, 6, -1, 1, 3, 4]
    full = assign(np.arange(4), np.array([9, 1, 1, 1]), devices=2, slots=2)
    assert full.tolist() == [0, 3, 1, 2]  # device 1 is full
    unsigned = assign(np.array([0, 1, 2]), np.array([0, 7, 2], np.uint8), devices=1, slots=4)
    assert unsigned.tolist() == [1, 2, 0, -1]
    nobody = assign(np.array([5, -1, -1]), np.ones(3), devices=1, slots=1)
    assert nobody.tolist() == [5]
    assert assign(np.array([-1]), np.ones(1), devices=2, slots=0).tolist() == []


def test_placement_does_not_depend_on_the_order_of_clients():
    rng = np.random.default_rng(6)
    clients, work = rng.permutation(100)[:40], rng.integers(1, 4, 40)
    order = rng.permutation(40)
    np.testing.assert_array_equal(
        assign(clients, work, devices=4, slots=12),
        assign(clients[order], work[order], devices=4, slots=12),
    )


@pytest.mark.parametrize("slots", [16, 32])
def test_lognormal_work_is_balanced(slots):
    rng = np.random.default_rng(5)
    clients, work = np.arange(128), rng.lognormal(0, 1, 128)
    loads = np.zeros((20, 8))
    for trial in loads:
        work = rng.lognormal(0, 1, 128)
        placed = assign(clients, work, devices=8, slots=slots)
        assert sorted(placed[placed >= 0].tolist()) == list(range(128))
        for k in range(8):
            there = placed[k * slots : (k + 1) * slots]
            trial[k] = work[there[there >= 0]].sum()
    worst = loads.max(axis=1) / loads.mean(axis=1)
    # Nothing is lost while no single client has more than a device's share.
    assert np.median(worst) < 1.05


def test_clients_stay_on_their_process():
    rng = np.random.default_rng(7)
    cohorts = np.stack([rng.permutation(1000)[:48] for _ in range(50)])
    slots = needed_slots(cohorts, 12, 3)
    for clients in cohorts:
        placed = assign(clients, rng.lognormal(0, 1, 48), devices=12, slots=slots, processes=3)
        assert sorted(placed[placed >= 0].tolist()) == sorted(clients.tolist())
        for p, there in enumerate(placed.reshape(3, 4 * slots)):
            assert (there[there >= 0] % 3 == p).all()


def test_needed_slots_are_the_fewest():
    cohorts = np.array([[0, 2, 4, 6, 8], [1, 3, 5, -1, -1], [0, 1, -1, -1, -1]])
    assert needed_slots(cohorts, 1) == 5
    assert needed_slots(cohorts, 2) == 3
    assert needed_slots(cohorts, 2, 2) == 5
    assert needed_slots(cohorts, 4, 2) == 3
    assert needed_slots(np.full((2, 3), -1), 2) == 1
    assert needed_slots(np.zeros((0, 3), np.int64), 2) == 1
    for clients in cohorts:
        assign(clients, np.ones(5), devices=4, slots=3, processes=2)
    with pytest.raises(ValueError, match="too few"):
        assign(cohorts[0], np.ones(5), devices=4, slots=2, processes=2)
    with pytest.raises(ValueError, match="shared evenly"):
        needed_slots(cohorts, 3, 2)
    with pytest.raises(ValueError, match="shared evenly"):
        assign(cohorts[0], np.ones(5), devices=3, slots=5, processes=2)
    with pytest.raises(ValueError, match=r"must both be \(n,\)"):
        assign(cohorts[0], np.ones(4), devices=1, slots=5)
