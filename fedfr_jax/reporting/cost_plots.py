"""Plots of what accuracy costs: communication and arithmetic."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedfr_jax.reporting.figures import (
    BLUE,
    GREEN,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Plot,
    new_figure,
    slug,
)

_COLORS = (BLUE, GREEN, ORANGE, SKY, PURPLE, MUTED)
_LINES = ("-", "--", ":")


def against_cost(
    metric: str,
    curves: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    reference: str,
) -> Plot | None:
    """A metric after every round, against what the rounds have cost so far.

    Args:
      metric: its name.
      curves: axis label, such as "MB sent" -> method -> (cost (R + 1,), percent (R + 1,)).
      reference: the method drawn in the foreground.
    """
    names = list(dict.fromkeys(name for of_axis in curves.values() for name in of_axis))
    if len(names) < 2:
        return None
    figure, axes = new_figure(1, len(curves), 3.2 + 0.17 * -(-len(names) // 2))
    others = [name for name in names if name != reference]
    styles = {
        name: {"color": _COLORS[i % 6], "linestyle": _LINES[i // 6 % 3], "linewidth": 1.1}
        for i, name in enumerate(others)
    } | {reference: {"color": VERMILLION, "linewidth": 2.0, "zorder": 3}}
    for panel, (label, of_axis) in zip(axes, curves.items(), strict=True):
        for name in names:
            if name in of_axis:
                panel.plot(*of_axis[name], label=name, marker="o", markersize=2.5, **styles[name])
        panel.set_xlabel(label)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=5))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g} %"))
    handles = {
        text: line
        for panel in axes
        for line, text in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        [handles[name] for name in names if name in handles],
        [name for name in names if name in handles],
        loc="outside lower center",
        ncols=2,
        fontsize=7.5,
    )
    ends = ", ".join(
        f"{name} {of_axis[name][1][-1]:.1f} %"
        for of_axis in [next(iter(curves.values()))]
        for name in of_axis
    )
    return Plot(
        f"cost-{slug(metric)}",
        figure,
        f"{metric[:1].upper()}{metric[1:]}, against its cost",
        f"Line plots of {metric} against the cost of the rounds. In the end: {ends}.",
        "A dot is a round, mean over seeds. What a client has sent, and the arithmetic it has "
        "done, since the first round.",
    )
