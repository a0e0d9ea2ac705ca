"""The plot of a gain against a setting that is varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter

from fedfr_jax.evaluation.intervals import Interval
from fedfr_jax.reporting.figures import BLUE, GREEN, MUTED, ORANGE, VERMILLION, Plot, new_figure

_COLORS = (VERMILLION, BLUE, GREEN, ORANGE)


def gain_against(label: str, series: Mapping[str, Sequence[tuple[float, Interval]]]) -> Plot | None:
    """Personalized minus global model, with intervals, against a setting.

    Args:
      label: of the setting.
      series: metric -> (value of the setting, gain in points) in ascending order.
    """
    if not series:
        return None
    figure, (axes,) = new_figure()
    axes.axhline(0, color=MUTED, linewidth=0.8)
    texts = []
    for (metric, points), color in zip(series.items(), _COLORS, strict=False):
        x = np.array([value for value, _ in points])
        mean, low, high = (np.array([getattr(i, k) for _, i in points]) for k in _FIELDS)
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(x, mean, color=color, marker="o", markersize=4, label=metric)
        values = ", ".join(f"{m:+.1f} at {v:g}" for v, m in zip(x, mean, strict=True))
        texts.append(f"{metric}: {values}")
    axes.set_xlabel(label)
    axes.set_ylabel("personalized minus global, points")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.4g}"))
    axes.legend(loc="best")
    return Plot(
        "gain-against-shift",
        figure,
        "When personalization pays",
        f"Line plot of the gain by personalization against {label}. {'; '.join(texts)}.",
        "Above zero the clients' own models are better than the shared one. Bands are 95 % "
        "intervals: a paired bootstrap over seeds and clients.",
    )


_FIELDS = ("mean", "low", "high")
