"""Equal communication and equal arithmetic: courses, what is affordable, the table, the plots."""

import numpy as np
import pytest
from made_up import compared_summary

from fedfr_jax.ablation import budgets, comparison

METRICS = ("1:1 TAR @ FAR 1e-3", "1:N open set TPIR @ FPIR 1e-2")


def history(gflop, own):
    """Rows of ``metrics.jsonl``: each round costs ``gflop``; ``own`` is the personalized TAR."""
    rows = [evaluation(0, "pretrained", 0.1)]
    for done, value in enumerate(own, start=1):
        rows.append({"kind": "round", "round": done, "flops_per_client": 1e9 * gflop})
        rows += [evaluation(done, "global", value - 0.05), evaluation(done, "personalized", value)]
    return rows


def evaluation(done, model, value):
    return {
        "kind": "evaluation",
        "round": done,
        "model": model,
        "personal/verification_tar@0.001": value,
        "personal/identification_openset@0.01": value + 0.02,
    }


def course(gflop, own, mega_bytes=2.0):
    summary = compared_summary(0.9, 0.5)
    summary["costs"] = {"up": {"backbone": mega_bytes * 1e6}, "down": {}, "flops": 0.0}
    return budgets.course(summary, history(gflop, own))


def test_a_course_adds_up_costs_and_begins_with_the_pretrained_model():
    found = course(3.0, [0.3, 0.5])
    np.testing.assert_allclose(found.sent, [0, 2, 4])
    np.testing.assert_allclose(found.flops, [0, 3, 6])
    np.testing.assert_allclose(found.values["personalized", METRICS[0]], [10, 30, 50])
    np.testing.assert_allclose(found.values["global", METRICS[1]], [12, 27, 47])


def test_without_evaluations_between_rounds_there_is_no_course():
    assert budgets.course(compared_summary(0.9, 0.5), history(1.0, [0.3])) is None


def test_each_row_is_shown_at_what_the_reference_spends():
    courses = {
        # Both seeds spend 4 MB; 1 and 3 GFLOP.
        "cheap": {0: course(0.5, [0.3, 0.5]), 1: course(1.5, [0.3, 0.5])},
        "dear": {0: course(1.0, [0.4, 0.9], mega_bytes=4.0), 1: course(2.0, [0.2, 0.9])},
        "other seed": {2: course(1.0, [0.3, 0.5])},
    }
    table = budgets.budget_table(courses, "cheap")
    assert table.columns == ("rounds, 4 MB sent", *METRICS, "rounds, 2 GFLOP", *METRICS)
    rows = {name: [cell.text for cell in cells] for name, cells in table.rows}
    assert rows["cheap"][0] == rows["cheap"][3] == "2"
    assert rows["cheap"][1] == "50.00 / 45.00"
    # One seed of the other can afford one round, one can afford both.
    assert rows["dear"][0] == "1.5" and rows["dear"][1] == "65.00 / 60.00"
    assert rows["dear"][3] == "1" and rows["dear"][4] == "30.00 / 25.00"
    assert budgets.budget_table(courses, "another") is None


@pytest.mark.parametrize("costs, axes", [(2.0, 2), (0.0, 1)])
def test_plots_have_an_axis_for_each_cost(costs, axes):
    runs = {name: {0: course(1.0, [0.3, 0.5], costs)} for name in ("a", "b")}
    summaries = {name: {0: compared_summary(0.9, 0.5)} for name in runs}
    found = comparison.compare(summaries, "a", courses=runs)
    drawn = {plot.name: plot for plot in comparison.drawings(found)}
    [plot] = [drawn[name] for name in drawn if name.startswith("cost-personalized-models-1-1")]
    assert len(plot.figure.axes) == axes
    [line] = [x for x in plot.figure.axes[-1].lines if x.get_label() == "a"]
    np.testing.assert_allclose(line.get_data(), [[0, 1, 2], [10, 30, 50]])
