"""When does personalization pay? Rows with a shift of growing strength, and their plot.

rows = shift_rows((0.0, 0.5, 1.0), {"low_light": 0.48, "blur": 0.8, "colour": 1.0})
found = run_grid(make_cells(base, rows, seeds), folder)
gain_plot(found)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fedfr_jax.ablation.comparison import Comparison
from fedfr_jax.ablation.metrics import GLOBAL
from fedfr_jax.ablation.rows import Row
from fedfr_jax.evaluation.intervals import Interval, paired_bootstrap
from fedfr_jax.reporting.figures import Plot, styled
from fedfr_jax.reporting.sweep_plot import gain_against

_PREFIX = "shift "


def row_name(strength: float) -> str:
    """The name of a row of :func:`shift_rows`."""
    return f"{_PREFIX}{strength:g}"


def shift_rows(strengths: Sequence[float], degrade: Mapping[str, float]) -> list[Row]:
    """Rows in which every client has a camera of its own, and public people a plain one.

    Args:
      strengths: factors of the degradations.
      degrade: settings of ``data.degrade`` at strength 1.
    """
    return [
        (
            row_name(strength),
            {
                "data": {
                    "degrade": {
                        **{name: strength * value for name, value in degrade.items()},
                        "per_client": True,
                        "public": False,
                    }
                }
            },
        )
        for strength in strengths
    ]


def gains(found: Comparison, row: str) -> dict[str, Interval]:
    """Metric -> personalized minus global model, in points, with a paired bootstrap interval."""
    of_row = found.clients.get(row, {})
    result = {}
    for metric, own in of_row.items():
        shared = of_row.get(GLOBAL + metric, {})
        interval = paired_bootstrap([own[seed] - shared[seed] for seed in own if seed in shared])
        if interval is not None:
            result[metric] = interval
    return result


def strengths_of(found: Comparison) -> list[float]:
    """The strengths of the rows that :func:`shift_rows` made, ascending."""
    names = [row.removeprefix(_PREFIX) for row in found.values if row.startswith(_PREFIX)]
    return sorted(float(name) for name in names if re.fullmatch(r"[0-9.e+-]+", name))


@styled
def gain_plot(found: Comparison) -> Plot | None:
    """Personalized minus global against the strength of the shift; None without results.

    Args:
      found: a comparison with rows of :func:`shift_rows`.
    """
    series: dict[str, list[tuple[float, Interval]]] = {}
    for strength in strengths_of(found):
        for metric, interval in gains(found, row_name(strength)).items():
            if metric.startswith(("1:1", "1:N open set")):
                series.setdefault(metric, []).append((strength, interval))
    return gain_against("strength of the clients' cameras", series)
