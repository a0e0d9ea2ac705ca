"""The plots of the report: pure functions from records and arrays to matplotlib figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from fedfr_jax.reporting.by_time import evaluated
from fedfr_jax.reporting.figures import (
    BLUE,
    INK,
    VERMILLION,
    Plot,
    model_style,
    new_figure,
    ordered,
    percent_axis,
    png,
    slug,
    styled,
    svg,
    thin,
)
from fedfr_jax.reporting.labels import metric_label, rate_label
from fedfr_jax.runtime.simulated_time import clock

__all__ = [
    "Plot",
    "comparison",
    "evaluations",
    "hard_negatives",
    "loss_terms",
    "png",
    "pretraining",
    "roc",
    "styled",
    "svg",
]


def _column(rows: Sequence[Mapping], key: str) -> np.ndarray:
    """One field of records as floats; NaN if a record lacks it."""
    return np.array([math.nan if row.get(key) is None else float(row[key]) for row in rows])


def _rounds_axis(axes: Axes, label: str = "round") -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_xlabel(label)


def _marker(count: int) -> str | None:
    return "o" if count <= 25 else None


def pretraining(rows: Sequence[Mapping]) -> Plot | None:
    """Loss and accuracy over the steps of pretraining ("pretrain" records)."""
    rows = [row for row in rows if row.get("kind") == "pretrain"]
    panels = [
        (key, name)
        for key, name in (
            ("loss", "CosFace loss"),
            ("accuracy", "accuracy on the training batches"),
        )
        if np.isfinite(_column(rows, key)).sum() > 1
    ]
    if not panels:
        return None
    figure, axes = new_figure(1, len(panels), 3.0)
    steps = _column(rows, "step")
    for panel, (key, name) in zip(axes, panels, strict=True):
        x, y = thin(steps, _column(rows, key))
        panel.plot(x, y, color=BLUE)
        panel.set_title(name)
        _rounds_axis(panel, "step")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        if key == "accuracy":
            percent_axis(panel.yaxis)
        else:
            panel.set_ylim(bottom=0)
    loss = _column(rows, "loss")
    loss = loss[np.isfinite(loss)]
    ends = f" from {loss[0]:.3g} to {loss[-1]:.3g}" if loss.size else ""
    return Plot(
        "pretraining",
        figure,
        "Pretraining on the public identities",
        f"Line plot of the pretraining loss over steps{ends}.",
        "Classification of the public identities with the CosFace margin, on the training "
        "batches. The verification results show how well the embedding works on people "
        "it has not seen.",
    )


def loss_terms(rows: Sequence[Mapping]) -> Plot | None:
    """The loss of local training and its terms over rounds ("round" records)."""
    rows = [row for row in rows if row.get("kind") == "round"]
    panels = [
        (key, name)
        for key, name in (
            ("loss", "total"),
            ("identification", "identification"),
            ("contrastive", "contrastive"),
            ("binary", "binary (one-vs-all)"),
        )
        if np.isfinite(_column(rows, key)).sum() > 1
    ]
    if not panels:
        return None
    lines = -(-len(panels) // 2)
    figure, axes = new_figure(lines, min(2, len(panels)), 1.0 + 1.3 * lines)
    rounds = _column(rows, "round")
    for panel, (key, name) in zip(axes, panels, strict=False):
        panel.plot(rounds, _column(rows, key), color=BLUE, marker=_marker(len(rows)), markersize=3)
        panel.set_title(name)
        _rounds_axis(panel)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    first, last = rows[0].get("loss"), rows[-1].get("loss")
    ends = f"; the total goes from {first:.3g} to {last:.3g}" if first and last else ""
    return Plot(
        "loss",
        figure,
        "Local training, mean over the clients",
        f"Small line plots of the loss terms over rounds{ends}.",
        "Each panel has its own scale. The contrastive term pulls a client's features "
        "towards the global model and away from the client's previous one; it starts once "
        "clients have trained.",
    )


def hard_negatives(rows: Sequence[Mapping]) -> Plot | None:
    """Public images kept as hard negatives per client over rounds ("round" records)."""
    rows = [row for row in rows if row.get("kind") == "round"]
    mean = _column(rows, "hard_negatives_mean")
    if np.isfinite(mean).sum() < 2:
        return None
    figure, (axes,) = new_figure(height=2.6)
    rounds = _column(rows, "round")
    axes.fill_between(
        rounds,
        _column(rows, "hard_negatives_min"),
        _column(rows, "hard_negatives_max"),
        color=BLUE,
        alpha=0.18,
        linewidth=0,
        label="fewest to most",
    )
    axes.plot(rounds, mean, color=BLUE, marker=_marker(len(rows)), markersize=3, label="mean")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("public images kept")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    total = _column(rows, "public_images")
    if np.isfinite(total).all() and total.max() == total.min() > 0:
        share = axes.secondary_yaxis(
            "right", functions=(lambda n: n / total[0], lambda s: s * total[0])
        )
        percent_axis(share.yaxis)
        share.set_ylabel("share of all public images")
    axes.legend(loc="best")
    _rounds_axis(axes)
    return Plot(
        "hard-negatives",
        figure,
        "Hard negatives per client",
        f"Line plot of the public images kept per client: mean {mean[0]:.0f} in the first "
        f"and {mean[-1]:.0f} in the last round, with a band from fewest to most.",
        "Public images that are similar to one of the client's own images under the global "
        "model. A falling number means that the embedding separates these people better; "
        "the band spans the clients.",
    )


def evaluations(rows: Sequence[Mapping]) -> list[Plot]:
    """One plot per main metric that was evaluated in two rounds or more ("evaluation" records).

    Where time was simulated, a second one of each has it as its axis.
    """
    found, seconds = evaluated(rows), clock(rows)
    keep = [key for key in found if max(map(len, found[key].values())) > 1]
    return [_evaluation(key, found[key]) for key in keep] + [
        _evaluation(key, found[key], seconds) for key in keep if seconds
    ]


def _evaluation(
    key: str,
    models: Mapping[str, Mapping[int, float]],
    seconds: Mapping[int, float] | None = None,
) -> Plot:
    """A metric by round, or by simulated time."""
    figure, (axes,) = new_figure(height=2.6)
    label = metric_label(key)
    measured = (
        "Measured on people whom no model has seen."
        if key.startswith("generic/")
        else "Measured on held-out images of each client's own people; mean over the clients."
    )
    names = ordered(models)
    ends = []
    for name, style in model_style(names).items():
        points: list[tuple[float, float]] = sorted(models[name].items())
        ends.append(f"{name} {100 * points[-1][1]:.1f} %")
        if len(points) == 1:
            axes.axhline(points[0][1], label=name, **style)
            continue
        if seconds is not None:
            points = [(seconds[int(r)], value) for r, value in points if int(r) in seconds]
        axes.plot(
            *zip(*points, strict=True),
            label=name,
            marker=_marker(len(points)),
            markersize=3,
            **style,
        )
    percent_axis(axes.yaxis)
    _rounds_axis(axes, "round" if seconds is None else "simulated time (s)")
    axes.legend(loc="best")
    over = "rounds" if seconds is None else "simulated time"
    return Plot(
        f"by-{'round' if seconds is None else 'time'}-{slug(key)}",
        figure,
        label[:1].upper() + label[1:] + ("" if seconds is None else ", by simulated time"),
        f"Line plot of {label} over {over}; in the end {', '.join(ends)}.",
        f"{measured} {'Round' if seconds is None else 'Time'} 0 is before the first"
        f"{'' if seconds is None else ' round'}; a horizontal line is a model that does not "
        "change.",
    )


def roc(protocol: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Plot | None:
    """ROC curves on a logarithmic false-accept axis: model -> (far, tar)."""
    clean = {}
    for name in ordered(curves):
        far, tar = (np.asarray(part, np.float64) for part in curves[name])
        good = np.isfinite(far) & np.isfinite(tar) & (far > 0)
        if good.sum() > 1:
            clean[name] = (far[good], tar[good])
    if not clean:
        return None
    figure, (axes,) = new_figure()
    for name, style in model_style(list(clean)).items():
        axes.plot(*clean[name], label=name, **style)
    lowest = min(far.min() for far, _ in clean.values())
    axes.set_xscale("log")
    axes.set_xlim(lowest, 1.0)
    decades = 10.0 ** np.arange(math.ceil(math.log10(lowest) - 1e-9), 1)
    axes.xaxis.set_major_locator(FixedLocator(list(decades)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: rate_label(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    bottom = min(tar.min() for _, tar in clean.values())
    axes.set_ylim(max(0.0, bottom - 0.04 * (1.02 - bottom)), 1.0 + 0.02 * (1.0 - bottom) + 1e-3)
    percent_axis(axes.yaxis)
    axes.set_xlabel("false accept rate")
    axes.set_ylabel("true accept rate")
    axes.legend(loc="lower right")
    ends = ", ".join(
        f"{name} {100 * np.interp(-3, np.log10(far), tar):.1f} %"
        for name, (far, tar) in clean.items()
        if far.min() <= 1e-3
    )
    return Plot(
        f"roc-{slug(protocol)}",
        figure,
        protocol,
        f"ROC curves of {', '.join(clean)}" + (f"; at FAR 1e-3: {ends}." if ends else "."),
        "Higher and further left is better: the share of genuine pairs that are accepted "
        "when the threshold accepts this share of impostor pairs. The left end is based "
        "on the fewest impostor pairs.",
    )


def comparison(metric: str, rows: Mapping[str, np.ndarray], reference: str) -> Plot | None:
    """Methods one under the other: a dot per seed, a line at the mean (in percent).

    Args:
      metric: its name.
      rows: method -> (seeds,) values in percent, NaN where there is none.
      reference: the method whose mean is drawn through all rows.
    """
    values = {name: v[np.isfinite(v)] for name, v in rows.items()}
    values = {name: v for name, v in values.items() if v.size}
    if len(values) < 2:
        return None
    figure, (axes,) = new_figure(height=0.9 + 0.24 * len(values))
    if reference in values:
        axes.axvline(values[reference].mean(), color=VERMILLION, linewidth=0.9, linestyle=":")
    for place, (name, array) in enumerate(reversed(values.items())):
        color = VERMILLION if name == reference else BLUE
        axes.plot(
            array,
            np.full(array.size, place),
            "o",
            color=color,
            alpha=0.5,
            markersize=4,
            markeredgewidth=0,
        )
        axes.plot([array.mean()] * 2, [place - 0.3, place + 0.3], color=color, linewidth=2)
    axes.set_yticks(range(len(values)), list(reversed(values)))
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g} %"))
    means = ", ".join(f"{name} {v.mean():.1f} %" for name, v in values.items())
    return Plot(
        f"compare-{slug(metric)}",
        figure,
        metric[:1].upper() + metric[1:],
        f"Dot plot of {metric} by method. Means: {means}.",
        f"A dot is a seed, a bar the mean; the dotted line is {reference}.",
    )
