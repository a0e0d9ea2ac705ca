"""Shared by all plots: colours, styles, and figures as SVG and PNG.

Colours are those of Okabe and Ito, which colour-blind people can
distinguish; models also differ in line style. :func:`svg` turns the colours into CSS
variables, so that one drawing suits light and dark pages.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import matplotlib
import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from fedfr_jax.atomic import write_file

INK, MUTED, GRID = "#1b1d21", "#6b7078", "#e1e4e9"
BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#e69f00",
    "#56b4e9",
    "#cc79a7",
)
_CSS_NAMES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    BLUE: "blue",
    VERMILLION: "vermillion",
    GREEN: "green",
    ORANGE: "orange",
    SKY: "sky",
    PURPLE: "purple",
}
_MODELS = {"pretrained": (MUTED, "--"), "global": (BLUE, "-"), "personalized": (VERMILLION, "-")}
_OTHERS = ((GREEN, "-."), (PURPLE, ":"), (ORANGE, "-."), (SKY, ":"))
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_STYLE = {
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "text.color": INK,
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.03,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "figure.facecolor": "white",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "fedfr_jax",
    # Names of models and data sets may hold dollar signs.
    "text.parse_math": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
}
_WIDTH, HEIGHT = 5.3, 3.2  # inches
_LETTERS = 12.5  # letters of a title per inch
_MANY_POINTS = 600  # above this, averages are drawn


def styled(draw: Callable) -> Callable:
    """Decorator of functions that make or save figures: the user's settings have no effect."""

    @functools.wraps(draw)
    def wrapper(*args, **kwargs):
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return wrapper


@dataclasses.dataclass(frozen=True)
class Plot:
    """A drawing: file name without ending, figure, title, and texts for the reader.

    ``alt`` describes the plot for people who cannot see it; ``caption`` says how to read it.
    """

    name: str
    figure: Figure
    title: str
    alt: str
    caption: str

    def _repr_png_(self) -> bytes:
        """The figure under its title, for notebooks."""
        buffer = io.BytesIO()
        _save_png(self, buffer)
        return buffer.getvalue()


@styled
def _save_png(plot: Plot, target: str | IO[bytes]) -> None:
    title = textwrap.fill(plot.title, int(_LETTERS * plot.figure.get_figwidth()))
    plot.figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
    plot.figure.savefig(target, format="png", metadata={"Software": None})


def slug(text: str) -> str:
    """A file name without ending from any text."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "plot"


def model_style(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and line of each model; the standard models look the same in every plot."""
    others = iter(_OTHERS * (1 + len(models) // len(_OTHERS)))
    styles = {}
    for model in models:
        color, line = _MODELS.get(model) or next(others)
        styles[model] = {"color": color, "linestyle": line}
    return styles


def ordered(models: Mapping[str, Any]) -> list[str]:
    """Names of models: the standard ones in their usual order, then the others."""
    return [name for name in _MODELS if name in models] + [
        name for name in models if name not in _MODELS
    ]


def new_figure(rows: int = 1, columns: int = 1, height: float = HEIGHT):
    """(figure of the report's width, its axes row by row); the height is in inches."""
    figure = Figure(figsize=(_WIDTH, height))
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Averages neighbours so that at most ``_MANY_POINTS`` remain."""
    if len(x) <= _MANY_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), _MANY_POINTS)
    return (
        np.array([x[part].mean() for part in parts]),
        np.array([y[part].mean() for part in parts]),
    )


def percent_axis(axis: Axis) -> None:
    """Labels shares in percent."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))


@styled
def svg(plot: Plot) -> str:
    """The figure as an ``<svg>`` element for an HTML page, in its CSS colours."""
    buffer = io.StringIO()
    plot.figure.savefig(
        buffer,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        r'<svg viewBox="\1" aria-hidden="true" focusable="false">',
        text,
        count=1,
    )
    text = re.sub(r"font-family: [^;\"]*", f"font-family: {_FONT}", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'(\bid="|href="#|url\(#)', lambda found: f"{found[1]}{plot.name}-", text)
    for color, name in _CSS_NAMES.items():
        text = text.replace(color, f"var(--{name})")
    return re.sub(r"\n\s*", "\n", text)


def png(plot: Plot, folder: str | os.PathLike) -> str:
    """Writes the figure as ``<name>.png`` on white into ``folder`` and returns the path.

    It adds the title, which an HTML page shows above the plot: call :func:`svg` first.
    """
    path = os.path.join(folder, f"{plot.name}.png")
    write_file(path, lambda file: _save_png(plot, file))
    return path
