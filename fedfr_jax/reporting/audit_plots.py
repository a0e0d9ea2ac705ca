"""The plots of a privacy audit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from fedfr_jax.reporting.figures import (
    BLUE,
    GREEN,
    MUTED,
    ORANGE,
    PURPLE,
    VERMILLION,
    Plot,
    new_figure,
    slug,
    styled,
)
from fedfr_jax.reporting.tables import rate_label

_STYLES = {
    "similarity": (BLUE, "--"),
    "calibrated": (GREEN, "-."),
    "loss": (ORANGE, ":"),
    "LiRA offline": (PURPLE, "-"),
    "LiRA online": (VERMILLION, "-"),
}
_SHOWN = 8  # columns of pictures


@styled
def membership_rocs(curves: Mapping[str, tuple]) -> list[Plot]:
    """One plot per model and question: the attacks' ROC curves, both axes logarithmic.

    Args:
      curves: "model/level/attack" -> (FPR, TPR).
    """
    groups: dict[tuple[str, str], dict[str, tuple]] = {}
    for name, curve in curves.items():
        model, level, attack = name.split("/")
        if model != "pretrained":
            groups.setdefault((model, level), {})[attack] = curve
    return [_roc(model, level, found) for (model, level), found in groups.items()]


def _roc(model: str, level: str, curves: Mapping[str, tuple]) -> Plot:
    figure, (axes,) = new_figure()
    lowest = min(float(np.min(fpr)) for fpr, _ in curves.values())
    lowest = min(lowest, 0.1)
    axes.plot([lowest, 1], [lowest, 1], color=MUTED, linewidth=0.9, linestyle=":", label="chance")
    for attack, (fpr, tpr) in curves.items():
        color, line = _STYLES.get(attack, (MUTED, "-"))
        seen = np.asarray(tpr) > 0
        axes.plot(
            np.asarray(fpr)[seen], np.asarray(tpr)[seen], color=color, linestyle=line, label=attack
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(lowest, 1)
    axes.set_ylim(lowest, 1.05)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: rate_label(value)))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    axes.legend(loc="lower right")
    return Plot(
        f"audit-membership-{slug(f'{model}-{level}')}",
        figure,
        f"Membership inference, {model} model: {level}",
        f"ROC curves of {', '.join(curves)} on two logarithmic axes.",
        "The share of members that an attack finds when it accuses this share of non-members. "
        "On the dotted line it knows nothing; the left end shows whom it finds for sure.",
    )


@styled
def reconstructions(pictures: Mapping[str, np.ndarray]) -> Plot | None:
    """Originals, and below them what was reconstructed from their messages."""
    if len(pictures) < 2:
        return None
    columns = min(_SHOWN, *(len(images) for images in pictures.values()))
    side = min(1.1, 5.0 / columns)  # inches
    figure, axes = new_figure(len(pictures), columns, 0.3 + (side + 0.2) * len(pictures))
    axes = axes.reshape(len(pictures), columns)
    for row, (name, images) in zip(axes, pictures.items(), strict=True):
        for place, image in zip(row, images, strict=False):
            place.imshow(image, interpolation="nearest")
            place.set_xticks([])
            place.set_yticks([])
            place.grid(visible=False)
        row[0].set_title(name)
    return Plot(
        "audit-reconstructions",
        figure,
        "Images from one message",
        f"Rows of faces: {', '.join(pictures)}.",
        "Above the images that a client trained on for one step, below what an attacker makes of "
        "the step's message. With several restarts the attacker keeps the one whose update fits "
        "best.",
    )
