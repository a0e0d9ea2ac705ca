"""Compares the results of several methods over several seeds: tables, plots, report.

It reads the plain dictionaries of the runs' ``summary.json``
(see :mod:`fedfr_jax.reporting.tables`).
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from fedfr_jax.atomic import write_text
from fedfr_jax.evaluation import HEADLINE_FAR, HEADLINE_FPIR
from fedfr_jax.reporting import html as report
from fedfr_jax.reporting import plots, result_table, tables
from fedfr_jax.reporting.result_table import Cell, ResultTable, render
from fedfr_jax.reporting.tables import headline_rate

Summary = Mapping[str, Any]
FLOPS, SENT, RECEIVED = "arithmetic (GFLOP)", "sent (MB)", "received (MB)"
_COST = (RECEIVED, SENT, FLOPS)
_NOT_RANKED = ("std over clients", "worse off")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Methods, seeds and metrics.

    Attributes:
      reference: the row that the others are compared with.
      values: row -> metric -> (seeds,) values, in percent except for the costs; NaN if a seed
        is missing or the metric is undefined.
      seeds: in the order of the values.
      groups: title -> the metrics of one table.
      sent: row -> what a client sends.
      failures: cell -> error message, for the cells run in this call.
    """

    reference: str
    values: dict[str, dict[str, np.ndarray]]
    seeds: tuple[int, ...]
    groups: dict[str, tuple[str, ...]]
    sent: dict[str, str] = dataclasses.field(default_factory=dict)
    failures: dict[str, str] = dataclasses.field(default_factory=dict)

    def tables(self) -> list[ResultTable]:
        """Accuracy, fairness and costs; a notebook shows each as a table."""
        return result_tables(self)

    def rows(self) -> list[dict[str, Any]]:
        """One flat dictionary per row and seed, as pandas and ``table.csv`` take them."""
        return [
            {"method": row, "seed": seed, **{m: float(v[i]) for m, v in metrics.items()}}
            for row, metrics in self.values.items()
            for i, seed in enumerate(self.seeds)
            if not all(np.isnan(v[i]) for v in metrics.values())
        ]


def metrics_of(summary: Summary) -> dict[str, dict[str, float]]:
    """Table title -> metric -> value of one run.

    Shares are in percent. Personalized metrics are those of the personalized models, at the
    rates nearest to FAR 1e-3 and FPIR 1e-2; the generic ones those of the global model.
    """
    models, costs = summary["models"], summary.get("costs", {"down": {}, "up": {}, "flops": 0})
    own, shared = models["personalized"]["personalized"], models["global"]["personalized"]
    accuracy = {
        f"{name}: accuracy": 100 * found["accuracy"]
        for name, found in models["global"].get("generic", {}).items()
    }
    fairness: dict[str, float] = {}
    for label, short, key, aim in (
        ("1:1 TAR @ FAR", "1:1", "verification_tar", HEADLINE_FAR),
        ("1:N open set TPIR @ FPIR", "1:N", "identification_openset", HEADLINE_FPIR),
        ("1:N pair rule TPIR @ FPIR", "", "identification_pair", HEADLINE_FPIR),
    ):
        rate = headline_rate(own[key], aim)
        accuracy[f"{label} {tables.rate_label(rate)}"] = 100 * _number(own[key][rate]["mean"])
        if short:
            fairness |= {
                f"{short}: {name}": 100 * _number(own[key][rate].get(part))
                for name, part in (
                    ("std over clients", "std"),
                    ("worst tenth", "worst10"),
                    ("worse off", "worse"),
                )
            }
    accuracy["rank-1"] = 100 * _number(own["rank1"]["mean"])
    rate = headline_rate(shared["verification_tar"], HEADLINE_FAR)
    accuracy[f"global model, 1:1 TAR @ FAR {tables.rate_label(rate)}"] = 100 * _number(
        shared["verification_tar"][rate]["mean"]
    )
    return {
        "Accuracy": accuracy,
        "Fairness: how the clients differ": fairness,
        "Cost of a round for a client": {
            RECEIVED: sum(costs["down"].values()) / 1e6,
            SENT: sum(costs["up"].values()) / 1e6,
            FLOPS: costs["flops"] / 1e9,
        },
    }


def _number(value) -> float:
    return float("nan") if value is None else float(value)


def compare(summaries: Mapping[str, Mapping[int, Summary]], reference: str) -> Comparison:
    """Combines the results of runs.

    Args:
      summaries: row -> seed -> ``summary.json`` as a dictionary; seeds may be missing.
      reference: a row, which need not be there yet.
    """
    seeds = tuple(sorted({seed for runs in summaries.values() for seed in runs}))
    found = {
        row: {seed: metrics_of(s) for seed, s in runs.items()} for row, runs in summaries.items()
    }
    groups: dict[str, dict[str, None]] = {}
    for runs in found.values():
        for run in runs.values():
            for title, metrics in run.items():
                groups.setdefault(title, {}).update(dict.fromkeys(metrics))
    values = {
        row: {
            metric: np.array(
                [runs.get(seed, {}).get(title, {}).get(metric, np.nan) for seed in seeds]
            )
            for title, metrics in groups.items()
            for metric in metrics
        }
        for row, runs in found.items()
    }
    sent = {
        row: ", ".join(next(iter(runs.values())).get("costs", {}).get("up", {})) or "nothing"
        for row, runs in summaries.items()
    }
    return Comparison(reference, values, seeds, {t: tuple(m) for t, m in groups.items()}, sent)


def _mean_std(values: np.ndarray) -> tuple[float, float] | None:
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    return values.mean(), values.std(ddof=1) if len(values) > 1 else float("nan")


def difference(found: Comparison, row: str, metric: str) -> tuple[float, float] | None:
    """(mean, standard deviation) over seeds of a row's gain over the reference, seed by seed.

    The standard deviation of one seed is NaN.
    """
    reference = found.values.get(found.reference, {}).get(metric)
    if row == found.reference or reference is None:
        return None
    return _mean_std(found.values[row][metric] - reference)


def is_beyond_noise(found: Comparison, row: str, metric: str) -> bool:
    """Whether a row's gain over the reference is significant (paired t-test over seeds, 5 %)."""
    reference = found.values.get(found.reference, {}).get(metric)
    if row == found.reference or reference is None:
        return False
    gains = found.values[row][metric] - reference
    gains = gains[~np.isnan(gains)]
    if len(gains) < 2:
        return False
    bound = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
    return bool(abs(gains.mean()) > bound)


def _label(found: Comparison, row: str) -> str:
    """A row's name, with its number of seeds if some are missing."""
    there = sum(
        not all(np.isnan(v[i]) for v in found.values[row].values()) for i in range(len(found.seeds))
    )
    return row if there == len(found.seeds) else f"{row} ({there} of {len(found.seeds)} seeds)"


def _cell(found: Comparison, row: str, metric: str, best: set[str]) -> Cell:
    spread = _mean_std(found.values[row][metric])
    if spread is None:
        return Cell("–")
    if metric in _COST:
        return Cell(f"{spread[0]:,.0f}" if spread[0] >= 1000 else f"{spread[0]:.3g}")
    text, gain = _plus_minus(*spread), difference(found, row, metric)
    if gain is not None:
        mark = "*" if is_beyond_noise(found, row, metric) else ""
        text += f" ({_plus_minus(*gain, sign='+')}{mark})"
    return Cell(text, row in best)


def _plus_minus(mean: float, std: float, sign: str = "") -> str:
    return f"{mean:{sign}.2f}" + ("" if np.isnan(std) else f" ± {std:.2f}")


def _best(found: Comparison, metric: str) -> set[str]:
    """Rows with the best mean; empty for metrics without a meaningful best value.

    These are costs, the spread over clients (a model equally bad for all would win), and the
    share of clients that are worse off (0 for any model shared by all).
    """
    means = {
        row: round(spread[0], 2)
        for row, m in found.values.items()
        if (spread := _mean_std(m[metric])) is not None
    }
    if metric in _COST or metric.endswith(_NOT_RANKED) or len(set(means.values())) < 2:
        return set()
    best = max(means.values())
    return {row for row, mean in means.items() if mean == best}


def result_tables(found: Comparison) -> list[ResultTable]:
    """One table per group of metrics, rows in the order of the grid."""
    result = []
    spread = (
        f"Mean ± standard deviation over {len(found.seeds)} seeds; in brackets the "
        f"difference to {found.reference}, seed by seed; * beyond their noise (paired "
        "t-test, 5 %). "
    )
    notes = {
        "Accuracy": spread + "In percent. Accuracy (on people not used for training) and the "
        "last column are those of the global model; the others are of the "
        "personalized models.",
        "Cost of a round for a client": "From the tensors' sizes in float32 and the passes "
        "through the backbone, mean over rounds and clients.",
    }
    fairness = spread + "In percent. Worse off: clients whose own model is below the global one."
    for title, metrics in found.groups.items():
        best = {metric: _best(found, metric) for metric in metrics}
        rows = {
            row: tuple(_cell(found, row, metric, best[metric]) for metric in metrics)
            for row in found.values
        }
        columns = metrics
        if SENT in metrics:
            columns = (*metrics, "what is sent")
            rows = {row: (*cells, Cell(found.sent.get(row, ""))) for row, cells in rows.items()}
        result.append(
            ResultTable(
                title,
                columns,
                tuple((_label(found, row), cells) for row, cells in rows.items()),
                (notes.get(title, fairness),),
            )
        )
    return result


def csv_text(found: Comparison) -> str:
    """``table.csv``: one line per row and seed."""
    rows = found.rows()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["method", "seed"])
    writer.writeheader()
    writer.writerows(
        {k: "" if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()}
        for row in rows
    )
    return text.getvalue()


def markdown(found: Comparison) -> str:
    """``table.md``: all tables under their titles."""
    return "\n".join(
        f"### {table.title}\n\n{result_table.markdown(table)}" for table in result_tables(found)
    )


@plots.styled
def drawings(found: Comparison) -> list[plots.Plot]:
    """One plot per metric of accuracy and fairness."""
    drawn = [
        plots.comparison(
            metric, {row: m[metric] for row, m in found.values.items()}, found.reference
        )
        for metrics in found.groups.values()
        for metric in metrics
        if metric not in _COST
    ]
    return [plot for plot in drawn if plot is not None]


def write_tables(found: Comparison, folder: str | os.PathLike) -> None:
    """Writes ``table.csv`` and ``table.md``."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.csv", csv_text(found))
    write_text(folder / "table.md", markdown(found))


def write_report(
    found: Comparison,
    folder: str | os.PathLike,
    title: str,
    changes: Mapping[str, str],
    failures: Mapping[str, str],
) -> None:
    """Writes ``report.html`` and ``plots/``.

    Args:
      changes: row -> the settings it changes, for the report.
      failures: cell -> what went wrong.
    """
    folder = pathlib.Path(folder)
    drawn = drawings(found)
    text = report.template("ablation.html.j2").render(
        title=title,
        lead=f"{len(found.values)} rows, {len(found.seeds)} seeds, compared with "
        f"{found.reference}.",
        tables=result_tables(found),
        figures=report.with_svg(drawn),
        changes=list(changes.items()),
        failures=list(failures.items()),
    )
    write_text(folder / "report.html", text)
    (folder / "plots").mkdir(exist_ok=True)
    for plot in drawn:
        plots.png(plot, folder / "plots")


def show(found: Comparison) -> None:
    """Prints the tables."""
    render(result_tables(found))
