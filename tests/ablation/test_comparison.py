"""The tables and plots that compare the rows of a grid."""

import json

import numpy as np
import pytest
from made_up import compared_summary

from fedfr_jax.ablation import comparison


def test_differences_are_paired_and_the_best_is_marked():
    found = comparison.compare(
        {
            "A": {0: compared_summary(0.90, 0.5), 1: compared_summary(0.80, 0.6)},
            "B": {0: compared_summary(0.91, 0.4), 1: compared_summary(0.81, 0.4, 0.5)},
        },
        "A",
    )
    assert comparison.difference(found, "B", "lfw: accuracy") == pytest.approx((1.0, 0.0))
    assert comparison.difference(found, "A", "lfw: accuracy") is None
    table = comparison.result_tables(found)[0]
    cells = dict(table.rows)
    assert cells["B"][0].text == "86.00 ± 7.07 (+1.00 [1.00, 1.00]*)" and cells["B"][0].best
    assert cells["A"][1].best and not cells["B"][1].best
    fairness = comparison.result_tables(found)[1]
    worse_off = fairness.columns.index("1:1: worse off")
    assert not any(cells[worse_off].best for _, cells in fairness.rows)
    assert dict(comparison.result_tables(found)[2].rows)["A"][1].text == "2"
    assert json.loads(json.dumps(found.rows()))[0]["method"] == "A"
    assert comparison.is_beyond_noise(found, "B", "lfw: accuracy")
    assert not comparison.is_beyond_noise(found, "A", "lfw: accuracy")
    tar = found.groups["Accuracy"][1]  # -10 and -20: two seeds of that spread tell nothing
    assert not comparison.is_beyond_noise(found, "B", tar)
    # -10, -12, -14: t = 12 / (2 / sqrt(3)) = 10.4, against 4.30; but not -2, -12, -22 (2.08).
    seeds = [
        dict(enumerate(compared_summary(0.9, t) for t in values))
        for values in ((0.5, 0.5, 0.5), (0.4, 0.38, 0.36), (0.48, 0.38, 0.28))
    ]
    three = comparison.compare(dict(zip("ABC", seeds, strict=True)), "A")
    assert comparison.is_beyond_noise(three, "B", tar)
    assert not comparison.is_beyond_noise(three, "C", tar)
    noisy = comparison.compare(
        {
            "A": {0: compared_summary(0.9, 0.5), 1: compared_summary(0.9, 0.6)},
            "B": {0: compared_summary(0.9, 0.6), 1: compared_summary(0.9, 0.5)},
            "C": {1: compared_summary(0.9, 0.9)},
        },
        "A",
    )
    assert not comparison.is_beyond_noise(noisy, "B", tar)
    assert not comparison.is_beyond_noise(noisy, "C", tar)  # one seed tells nothing about seeds
    assert "C (1 of 2 seeds)" in dict(comparison.result_tables(noisy)[0].rows)
    # Where a rate is undefined for every client there is no mean.
    broken = compared_summary(0.9, 0.5)
    broken["models"]["personalized"]["personalized"]["rank1"] = {"mean": None}
    nothing = comparison.compare({"A": {0: broken}}, "A")
    table = comparison.result_tables(nothing)[0]
    assert dict(table.rows)["A"][table.columns.index("rank-1")].text == "–"
    # A row that has not run yet is left out, and so is its comparison. One seed has no spread.
    only = comparison.compare({"B": {0: compared_summary(0.9, 0.4)}}, "A")
    assert dict(comparison.result_tables(only)[0].rows)["B"][0].text == "90.00"


def test_plots_make_room_for_long_names():
    name = "FedFR, DFC without transform"
    found = comparison.compare(
        {"A": {0: compared_summary(0.90, 0.5)}, name: {0: compared_summary(0.91, 0.4)}}, "A"
    )
    for plot in comparison.drawings(found):
        assert plot._repr_png_().startswith(b"\x89PNG")
        assert plot.figure.axes[0].get_position().x0 > 0.25  # matplotlib's 0.125 would cut it off


def with_clients(tar, own, shared):
    values = {"personalized": np.asarray(own), "global": np.asarray(shared)}
    return compared_summary(0.9, tar), {"verification_tar@0.001": values}


def test_where_clients_are_known_intervals_are_over_seeds_and_clients():
    rng = np.random.default_rng(0)
    shared = rng.uniform(0.2, 0.6, (2, 40))
    better, noise = shared + rng.uniform(0.02, 0.08, (2, 40)), rng.normal(0, 0.2, (2, 40))
    runs = {
        "A": {s: with_clients(shared[s].mean(), shared[s], shared[s] - 0.1) for s in (0, 1)},
        "B": {s: with_clients(better[s].mean(), better[s], shared[s]) for s in (0, 1)},
        "C": {s: with_clients(shared[s].mean(), shared[s] + noise[s], shared[s]) for s in (0, 1)},
    }
    summaries, clients = (
        {row: {s: run[part] for s, run in by.items()} for row, by in runs.items()}
        for part in (0, 1)
    )
    found = comparison.compare(summaries, "A", clients)
    tar = "1:1 TAR @ FAR 1e-3"
    assert tar in found.groups["Accuracy"]
    of_b = comparison.interval(found, "B", tar)
    assert of_b.mean == pytest.approx(100 * (better - shared).mean()) and of_b.is_beyond_noise
    assert 3 < of_b.low < of_b.mean < of_b.high < 7
    assert not comparison.is_beyond_noise(found, "C", tar)
    models = comparison.result_tables(found)[-1]
    assert models.title == "A: its models"
    own = dict(models.rows)["personalized"][models.columns.index(tar)].text
    assert own.endswith("(+10.00 [10.00, 10.00]*)")
    assert "(" not in dict(models.rows)["global"][models.columns.index(tar)].text
