"""The shift of the clients' cameras against the gain by personalization."""

import numpy as np
import pytest
from made_up import compared_summary

from fedfr_jax.ablation import comparison, sweep
from fedfr_jax.ablation.cells import make_cells

STRENGTHS = (0.0, 0.5, 1.0)


def test_rows_scale_the_cameras_of_the_clients_alone():
    cells = make_cells({}, sweep.shift_rows(STRENGTHS, {"blur": 0.8, "colour": 0.4}), (0,))
    degrade = [cell.config.data.degrade for cell in cells]
    assert [d.blur for d in degrade] == pytest.approx([0.0, 0.4, 0.8])
    assert [d.colour for d in degrade] == pytest.approx([0.0, 0.2, 0.4])
    assert all(d.per_client and not d.public for d in degrade)


def compared(gain):
    """Two seeds of four clients; at strength s the own models are ``gain(s)`` points better."""
    rng, per_client, summaries = np.random.default_rng(0), {}, {}
    for s in STRENGTHS:
        for seed in (0, 1):
            shared = rng.uniform(0.3, 0.6, 4)
            values = {"personalized": shared + gain(s) / 100, "global": shared}
            row = sweep.row_name(s)
            per_client.setdefault(row, {})[seed] = {"verification_tar@0.001": values}
            summaries.setdefault(row, {})[seed] = compared_summary(0.9, 0.5)
    return comparison.compare(summaries, sweep.row_name(0.0), per_client)


def test_the_plot_shows_the_gain_over_the_global_model():
    found = compared(lambda s: 10 * s - 5)
    assert sweep.gains(found, "shift 1")["1:1 TAR @ FAR 1e-3"].mean == pytest.approx(5.0)
    plot = sweep.gain_plot(found)
    line = plot.figure.axes[0].lines[1]
    np.testing.assert_allclose(line.get_data(), [STRENGTHS, [-5, 0, 5]], atol=1e-9)
    assert "-5.0 at 0, +0.0 at 0.5, +5.0 at 1" in plot.alt


def test_without_results_there_is_no_plot():
    found = comparison.compare({"shift 1": {0: compared_summary(0.9, 0.5)}}, "shift 1")
    assert sweep.strengths_of(found) == [1.0]
    assert sweep.gain_plot(found) is None
