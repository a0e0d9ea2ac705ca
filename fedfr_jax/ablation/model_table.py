"""The models of one method over several seeds: pretrained, global, personalized, the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedfr_jax.ablation.metrics import PROTOCOLS
from fedfr_jax.evaluation.intervals import Interval, paired_bootstrap
from fedfr_jax.reporting import tables
from fedfr_jax.reporting.result_table import Cell, ResultTable
from fedfr_jax.reporting.tables import headline_rate

PerClient = Mapping[str, Mapping[str, np.ndarray]]  # metric -> model -> (C,) shares


def model_table(row: str, runs: Sequence[tuple[Mapping[str, Any], PerClient]]) -> ResultTable:
    """A method's models; in brackets the gain over its global model.

    Args:
      row: the method's name.
      runs: (``summary.json``, values of the clients from ``evaluation.npz``) of each seed.
    """
    models = tables.model_names(runs[0][0])
    columns: dict[str, tuple[Cell, ...]] = {}
    for label, short, key, aim in PROTOCOLS:
        rate = headline_rate(runs[0][0]["models"]["global"]["personalized"][key], aim)
        columns[f"{label} {tables.rate_label(rate)}"] = tuple(
            _cell(runs, model, key, rate) for model in models
        )
        if short:
            columns[f"worse off, {short}"] = tuple(
                Cell(tables.percent(_mean(runs, model, key, rate, "worse"))) for model in models
            )
    return ResultTable(
        f"{row}: its models",
        tuple(columns),
        tuple(zip(models, zip(*columns.values(), strict=True), strict=True)),
        (
            f"In percent, mean over {len(runs)} seeds. In brackets the gain over the global model "
            "with a 95 % interval (paired bootstrap over seeds and clients); * beyond noise. "
            "Worse off: clients whose own model is below the global one. Pair rule and open set: "
            "the paper's rule for 1:N, and the standard one.",
        ),
    )


def gain(runs: Sequence[tuple[Any, PerClient]], model: str, metric: str) -> Interval | None:
    """A model's gain over the global one, in percent.

    Args:
      metric: a key of the clients' values.
    """
    gains = [
        100 * (found[metric][model] - found[metric]["global"])
        for _, found in runs
        if model in found.get(metric, {}) and "global" in found.get(metric, {})
    ]
    return paired_bootstrap(gains)


def _mean(runs, model: str, key: str, rate: str, part: str) -> float | None:
    found = [
        s["models"].get(model, {}).get("personalized", {}).get(key, {}).get(rate, {}).get(part)
        for s, _ in runs
    ]
    values = [float(v) for v in found if v is not None]
    return float(np.mean(values)) if values else None


def _cell(runs, model: str, key: str, rate: str) -> Cell:
    text = tables.percent(_mean(runs, model, key, rate, "mean"))
    found = None if model == "global" else gain(runs, model, f"{key}@{float(rate):g}")
    if found is None:
        return Cell(text)
    return Cell(f"{text} ({interval_text(found)})")


def interval_text(found: Interval) -> str:
    """ "+1.20 [0.40, 2.10]*": the mean, the interval, and whether it leaves out zero."""
    mark = "*" if found.is_beyond_noise else ""
    return f"{found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}]{mark}"
