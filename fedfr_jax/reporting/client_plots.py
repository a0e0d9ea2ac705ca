"""The plots of the report that compare clients: their spread, and the gain of each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.ticker import MaxNLocator

from fedfr_jax.reporting.figures import (
    GREEN,
    INK,
    MUTED,
    ORANGE,
    Plot,
    model_style,
    new_figure,
    ordered,
    percent_axis,
    slug,
    thin,
)
from fedfr_jax.reporting.labels import metric_label

_MANY_CLIENTS = 150  # above this, outlines are drawn
_NAMED_CLIENTS = 40  # up to so many have their numbers under the bars


def distribution(metric: str, models: Mapping[str, np.ndarray]) -> Plot | None:
    """Box per model over the clients' values (C,), with the clients as dots if not too many."""
    label = metric_label(metric)
    values = {name: np.asarray(models[name], np.float64) for name in ordered(models)}
    values = {name: array[np.isfinite(array)] for name, array in values.items()}
    values = {name: array for name, array in values.items() if array.size > 1}
    if not values:
        return None
    figure, (axes,) = new_figure(height=0.9 + 0.55 * len(values))
    rng = np.random.default_rng(0)
    for place, (name, style) in enumerate(reversed(model_style(list(values)).items())):
        color, array = style["color"], values[name]
        line = {"color": color, "linewidth": 1.2}
        axes.boxplot(
            array,
            positions=[place],
            orientation="horizontal",
            widths=0.5,
            showfliers=array.size > _MANY_CLIENTS,
            boxprops=line,
            whiskerprops=line,
            capprops=line,
            medianprops={"color": color, "linewidth": 2},
            flierprops={
                "marker": ".",
                "markersize": 3,
                "markeredgecolor": color,
                "rasterized": True,
            },
        )
        if array.size <= _MANY_CLIENTS:
            axes.plot(
                array,
                place + rng.uniform(-0.16, 0.16, array.size),
                "o",
                color=color,
                alpha=0.45,
                markersize=3,
                markeredgewidth=0,
            )
    axes.set_yticks(range(len(values)), list(reversed(values)))
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.grid(visible=False, axis="y")
    percent_axis(axes.xaxis)
    medians = ", ".join(f"{name} {100 * np.median(array):.1f} %" for name, array in values.items())
    return Plot(
        f"clients-{slug(metric)}",
        figure,
        label[:1].upper() + label[1:],
        f"Box plot over the clients of {label}. Medians: {medians}.",
        "A dot is a client. The box holds the middle half of the clients, its line is the "
        "median, the whiskers reach 1.5 box lengths. If the mean rises but the left "
        "end does not, some clients are left behind.",
    )


def gains(
    metric: str,
    before: np.ndarray,
    after: np.ndarray,
    reference: str = "global",
    numbers: np.ndarray | None = None,
) -> Plot | None:
    """Sorted differences per client, personalized minus another model, the ``reference``.

    Args:
      metric: its key.
      before: (C,) values of the reference.
      after: (C,) values of the personalized models.
      reference: its name. The gain by personalization is the difference to the global model.
      numbers: (C,) of the clients, shown if there are few; None: 0 to C - 1.
    """
    label = metric_label(metric)
    gain = 100 * (np.asarray(after, np.float64) - np.asarray(before, np.float64))
    numbers = (np.arange(gain.size) if numbers is None else numbers)[np.isfinite(gain)]
    gain = gain[np.isfinite(gain)]
    numbers, gain = numbers[np.argsort(gain, kind="stable")], np.sort(gain)
    if gain.size < 2:
        return None
    figure, (axes,) = new_figure(height=2.6)
    place = np.arange(1, gain.size + 1)
    for part, color, name in (
        (np.minimum(gain, 0), ORANGE, "loses"),
        (np.maximum(gain, 0), GREEN, "gains"),
    ):
        if gain.size > _MANY_CLIENTS:
            axes.fill_between(*thin(place, part), color=color, linewidth=0, label=name)
        elif part.any():
            axes.bar(place[part != 0], part[part != 0], color=color, width=0.8, label=name)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    if gain.size <= _NAMED_CLIENTS:
        axes.set_xticks(place, [str(number) for number in numbers], fontsize=6.5)
        axes.set_xlabel("number of the client, sorted by gain")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.set_xlabel("clients, sorted by gain")
    axes.set_xlim(0, gain.size + 1)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("gain in percentage points")
    if gain.any():
        axes.legend(loc="upper left")
    wins, losses = int((gain > 0).sum()), int((gain < 0).sum())
    text = (
        f"{wins} of {gain.size} clients gain, {losses} lose; median "
        f"{np.median(gain):+.2f}, lowest {gain[0]:+.2f}, highest {gain[-1]:+.2f} points."
    )
    base = "" if reference == "global" else f"over-{slug(reference)}-"
    title = "Gain by personalization" if reference == "global" else "Gain by the whole training"
    return Plot(
        f"gains-{base}{slug(metric)}",
        figure,
        f"{title}, over the {reference} model: {label}",
        f"Bar plot. {text}",
        f"{text} Per client: its own personalized model minus the {reference} "
        "model on the same pairs.",
    )
