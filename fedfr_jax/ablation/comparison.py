"""Compares the results of several methods over several seeds: tables, plots, report.

It reads the plain dictionaries of the runs' ``summary.json``
(see :mod:`fedfr_jax.reporting.tables`).
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedfr_jax.ablation.budgets import Course, budget_table, curves
from fedfr_jax.ablation.metrics import FLOPS, GLOBAL, PROTOCOLS, RECEIVED, SENT, metrics_of
from fedfr_jax.ablation.model_table import PerClient, interval_text, model_table
from fedfr_jax.atomic import write_text
from fedfr_jax.evaluation.intervals import Interval, paired_bootstrap, paired_t
from fedfr_jax.reporting import html as report
from fedfr_jax.reporting import plots, result_table, tables
from fedfr_jax.reporting.cost_plots import against_cost
from fedfr_jax.reporting.result_table import Cell, ResultTable, render

Summary = Mapping[str, Any]
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
      clients: row -> metric -> seed -> (C,) values of the clients in percent, where they are known.
      models: the models of the reference, see :func:`fedfr_jax.ablation.model_table.model_table`.
      courses: row -> seed -> metrics and costs round by round, where they are known.
      chosen: how the rows' settings were chosen.
    """

    reference: str
    values: dict[str, dict[str, np.ndarray]]
    seeds: tuple[int, ...]
    groups: dict[str, tuple[str, ...]]
    sent: dict[str, str] = dataclasses.field(default_factory=dict)
    failures: dict[str, str] = dataclasses.field(default_factory=dict)
    clients: dict[str, dict[str, dict[int, np.ndarray]]] = dataclasses.field(default_factory=dict)
    models: ResultTable | None = None
    courses: dict[str, dict[int, Course]] = dataclasses.field(default_factory=dict)
    chosen: ResultTable | None = None

    @functools.cached_property
    def intervals(self) -> dict[tuple[str, str], Interval]:
        """(row, metric) -> gain over the reference, of those that have an interval."""
        found = {
            (row, metric): _interval(self, row, metric)
            for row in self.values
            for metrics in self.groups.values()
            for metric in metrics
            if metric not in _COST
        }
        return {place: of_row for place, of_row in found.items() if of_row is not None}

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


def compare(
    summaries: Mapping[str, Mapping[int, Summary]],
    reference: str,
    per_client: Mapping[str, Mapping[int, PerClient]] | None = None,
    courses: Mapping[str, Mapping[int, Course]] | None = None,
) -> Comparison:
    """Combines the results of runs.

    Args:
      summaries: row -> seed -> ``summary.json`` as a dictionary; seeds may be missing.
      reference: a row, which need not be there yet.
      per_client: row -> seed -> metric -> model -> (C,) values, as ``evaluation.npz`` has them.
      courses: row -> seed -> what :func:`fedfr_jax.ablation.budgets.course` finds.
    """
    per_client = per_client or {}
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
    of_reference = [
        (summary, per_client.get(reference, {}).get(seed, {}))
        for seed, summary in sorted(summaries.get(reference, {}).items())
    ]
    return Comparison(
        reference,
        values,
        seeds,
        {t: tuple(m) for t, m in groups.items()},
        sent,
        clients=_clients(per_client),
        models=model_table(reference, of_reference) if of_reference else None,
        courses={row: dict(runs) for row, runs in (courses or {}).items()},
    )


def _clients(
    per_client: Mapping[str, Mapping[int, PerClient]],
) -> dict[str, dict[str, dict[int, np.ndarray]]]:
    """row -> metric, as in the tables -> seed -> (C,) values of the clients."""
    found: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    for row, runs in per_client.items():
        for seed, metrics in runs.items():
            for key, models in metrics.items():
                for model, prefix in (("personalized", ""), ("global", GLOBAL)):
                    if model in models:
                        name = prefix + _metric_name(key)
                        of_metric = found.setdefault(row, {}).setdefault(name, {})
                        of_metric[seed] = 100 * np.asarray(models[model], float)
    return found


def _metric_name(key: str) -> str:
    """A metric of ``evaluation.npz`` as the tables call it."""
    name, _, rate = key.partition("@")
    titles = {key: label for label, _, key, _ in PROTOCOLS} | {"rank1": "rank-1"}
    return f"{titles.get(name, name)} {tables.rate_label(rate)}" if rate else titles[name]


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


def interval(found: Comparison, row: str, metric: str) -> Interval | None:
    """A row's gain over the reference with its interval, if it has one; not for costs."""
    return found.intervals.get((row, metric))


def _interval(found: Comparison, row: str, metric: str) -> Interval | None:
    """A paired bootstrap over seeds and clients if the clients' values are known, else a t interval
    over seeds.
    """
    reference = found.values.get(found.reference, {}).get(metric)
    if row == found.reference or reference is None:
        return None
    ours, theirs = (found.clients.get(r, {}).get(metric, {}) for r in (row, found.reference))
    gains = [
        ours[seed] - theirs[seed]
        for seed in ours.keys() & theirs.keys()
        if len(ours[seed]) == len(theirs[seed])
    ]
    if gains:
        return paired_bootstrap(gains)
    return paired_t(found.values[row][metric] - reference)


def is_beyond_noise(found: Comparison, row: str, metric: str) -> bool:
    """Whether the interval of a row's gain over the reference leaves out zero."""
    of_row = interval(found, row, metric)
    return of_row is not None and of_row.is_beyond_noise


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
    text, of_row = _plus_minus(*spread), interval(found, row, metric)
    if of_row is not None:
        text += f" ({interval_text(of_row)})"
    elif (gain := difference(found, row, metric)) is not None:
        text += f" ({_plus_minus(*gain, sign='+')})"
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
    """A table per group of metrics, rows as in the grid, and the models of the reference."""
    result = []
    spread = (
        f"Mean ± standard deviation over {len(found.seeds)} seeds; in brackets the "
        f"difference to {found.reference} with a 95 % interval: a paired bootstrap over seeds and "
        "clients where a metric has a value for each client, else a paired t interval over seeds; "
        f"* the interval leaves out zero. Of {len(found.intervals)} differences in all tables, one "
        "in 20 would by chance. "
    )
    notes = {
        "Accuracy": spread + "In percent. Accuracy (on people not used for training) is the global "
        "model's; where nothing is said, the others are those of the personalized models.",
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
    more = (found.models, budget_table(found.courses, found.reference), found.chosen)
    return result + [table for table in more if table is not None]


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
    for run in list(found.courses.get(found.reference, {}).values())[:1]:
        for model, metric in run.values:
            of_rows = curves(found.courses, model, metric)
            drawn.append(against_cost(f"{model} models, {metric}", of_rows, found.reference))
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
    first: Sequence[plots.Plot] = (),
) -> None:
    """Writes ``report.html`` and ``plots/``.

    Args:
      changes: row -> the settings it changes, for the report.
      failures: cell -> what went wrong.
      first: plots before the others.
    """
    folder = pathlib.Path(folder)
    drawn = [*first, *drawings(found)]
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
