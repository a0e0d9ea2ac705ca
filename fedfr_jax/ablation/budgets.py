"""Methods at the same communication and at the same arithmetic, not only after the same rounds.

Rounds of one method may cost a multiple of another's. With ``eval.every`` the metrics are known
after each round, so each method can be shown at the last round that it can afford with what the
reference spends in all its rounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedfr_jax.ablation.metrics import PROTOCOLS
from fedfr_jax.reporting import tables
from fedfr_jax.reporting.result_table import Cell, ResultTable

MODELS = ("personalized", "global")
KINDS = {"MB sent": "sent", "GFLOP": "flops"}  # unit -> attribute of a course


@dataclasses.dataclass(frozen=True)
class Course:
    """One run, round by round; the first entry is the pretrained model.

    Attributes:
      sent: (R + 1,) MB that a client has sent so far.
      flops: (R + 1,) GFLOP that a client has done so far.
      values: (model, metric) -> (R + 1,) percent, NaN where not evaluated.
    """

    sent: np.ndarray
    flops: np.ndarray
    values: dict[tuple[str, str], np.ndarray]


def course(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Course | None:
    """The course of a run; None if it was not evaluated between its rounds.

    Args:
      summary: ``summary.json``.
      rows: of ``metrics.jsonl``.
    """
    rounds = sorted(
        {row["round"]: row["flops_per_client"] for row in rows if row["kind"] == "round"}.items()
    )
    evaluated = [row for row in rows if row["kind"] == "evaluation"]
    if len({row["round"] for row in evaluated}) < 3:
        return None
    up = sum(summary["costs"]["up"].values()) / 1e6
    flops = np.cumsum([0.0, *(flops for _, flops in rounds)]) / 1e9
    values = {}
    for model in MODELS:
        for label, short, key, aim in PROTOCOLS:
            if not short:
                continue
            rate = tables.headline_rate(summary["models"][model]["personalized"][key], aim)
            series = np.full(len(flops), np.nan)
            for row in evaluated:
                wanted = model if row["round"] else "pretrained"
                value = row.get(f"personal/{key}@{rate}")
                if row["model"] == wanted and value is not None and row["round"] < len(series):
                    series[row["round"]] = 100 * value
            values[model, f"{label} {tables.rate_label(rate)}"] = series
    return Course(up * np.arange(len(flops)), flops, values)


def affordable(spent: np.ndarray, budget: float, values: np.ndarray) -> int:
    """The last evaluated round whose cost is within the budget."""
    return int(np.flatnonzero((spent <= budget * (1 + 1e-9)) & np.isfinite(values))[-1])


def budget_table(courses: Mapping[str, Mapping[int, Course]], reference: str) -> ResultTable | None:
    """Every row at what the reference spends; None if no course of the reference is known.

    Args:
      courses: row -> seed -> course.
    """
    if not courses.get(reference):
        return None
    first = next(iter(courses[reference].values()))
    metrics = list(dict.fromkeys(metric for _, metric in first.values))
    totals = {
        unit: float(np.mean([getattr(c, name)[-1] for c in courses[reference].values()]))
        for unit, name in KINDS.items()
    }
    columns = [
        column for unit in KINDS for column in (f"rounds, {totals[unit]:,.3g} {unit}", *metrics)
    ]
    rows = []
    for row, runs in courses.items():
        cells: list[Cell] = []
        for name in KINDS.values():
            found = [
                _at(c, getattr(c, name), getattr(courses[reference][seed], name)[-1], metrics)
                for seed, c in runs.items()
                if seed in courses[reference]
            ]
            if not found:
                cells += [Cell("–")] * (1 + len(metrics))
                continue
            rounds = float(np.mean([done for done, _ in found]))
            cells.append(Cell(f"{rounds:.3g}"))
            means = np.mean([values for _, values in found], axis=0)
            cells += [Cell(f"{own:.2f} / {shared:.2f}") for own, shared in means]
        rows.append((row, tuple(cells)))
    return ResultTable(
        f"At what {reference} spends: equal communication, equal arithmetic",
        tuple(columns),
        tuple(rows),
        (
            "In percent, mean over seeds: personalized / global model after the last round that a "
            f"client can afford with what {reference} spends in all rounds, seed by seed.",
        ),
    )


def _at(
    of: Course, spent: np.ndarray, budget: float, metrics: Sequence[str]
) -> tuple[int, list[list[float]]]:
    """(rounds, per metric the values of ``MODELS``) at a budget."""
    done = affordable(spent, budget, next(iter(of.values.values())))
    return done, [[of.values[model, metric][done] for model in MODELS] for metric in metrics]


def curves(
    courses: Mapping[str, Mapping[int, Course]], model: str, metric: str
) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Axis label -> row -> (cost, percent), mean over seeds, for a plot."""
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for unit, name in KINDS.items():
        for row, runs in courses.items():
            rounds = min(len(c.sent) for c in runs.values())
            cost = np.mean([getattr(c, name)[:rounds] for c in runs.values()], axis=0)
            values = np.mean([c.values[model, metric][:rounds] for c in runs.values()], axis=0)
            seen = np.isfinite(values)
            if cost[-1] > 0:
                found.setdefault(unit, {})[row] = cost[seen], values[seen]
    return found
