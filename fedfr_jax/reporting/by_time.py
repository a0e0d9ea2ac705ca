"""Metrics by simulated time: when a model first was as good as it had to be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedfr_jax.reporting.labels import metric_label, percent
from fedfr_jax.reporting.result_table import NONE, Cell, ResultTable
from fedfr_jax.runtime.simulated_time import clock

SHARE = 0.95  # of the last value
Points = Mapping[int, float]  # rounds done -> value

_PERSONAL = (  # one rate of each: the nearest to this one
    ("verification_tar", 1e-3),
    ("identification_pair", 1e-2),
    ("identification_openset", 1e-2),
)


def evaluated(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[int, float]]]:
    """The course of the main metrics: key -> model -> rounds done -> value.

    All generic accuracies; personal metrics only at one error rate, 1e-3 for TAR and 1e-2 for TPIR
    if evaluated, else the nearest; and the rank-1 rate.

    Args:
      rows: of ``metrics.jsonl``.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    for row in rows:
        if row.get("kind") == "evaluation":
            for key, value in row.items():
                if isinstance(value, (int, float)) and key not in ("round", "kind", "model"):
                    found.setdefault(key, {}).setdefault(row["model"], {})[row["round"]] = value
    keep = [key for key in found if key.startswith("generic/") and key.endswith("/accuracy")]
    for base, aim in _PERSONAL:
        keys = [key for key in found if key.startswith(f"personal/{base}@")]
        keep += sorted(keys, key=lambda key: abs(math.log(float(key.split("@")[1]) / aim)))[:1]
    keep += [key for key in found if key == "personal/rank1"]
    return {key: found[key] for key in keep}


def seconds_to(points: Points, seconds: Mapping[int, float], level: float) -> float | None:
    """Simulated seconds until a metric, where it was evaluated, first reached a level.

    Args:
      points: the course; seconds: rounds done -> simulated seconds.

    Returns:
      None if it never did.
    """
    for done, value in sorted(points.items()):
        if value >= level and done in seconds:
            return seconds[done]
    return None


def time_to_accuracy(
    rows: Sequence[Mapping[str, Any]], levels: Iterable[float] = ()
) -> list[dict[str, Any]]:
    """When the global and the personalized model reached each level, for the summary.

    Before the first round the global model is the pretrained one. Only what was evaluated in two
    rounds or more has an entry.

    Args:
      rows: of ``metrics.jsonl``.
      levels: shares, beside 95 % of the last value.

    Returns:
      Per metric and model its flat key ``metric``, ``model``, ``last`` value, and ``seconds``:
      level, as text -> seconds, None if it was not reached. [] where time was not simulated.
    """
    seconds, found = clock(rows), []
    for key, models in evaluated(rows).items() if seconds else ():
        before = {r: v for r, v in models.get("pretrained", {}).items() if r == 0}
        for model in ("global", "personalized"):
            points = models.get(model, {})
            if len(points) < 2:
                continue
            last = points[max(points)]
            course = (before if model == "global" else {}) | points
            asked = {"95 % of the last": SHARE * last or math.inf}  # of nothing: never
            asked |= {f"{x:g}": x for x in levels}
            found.append(
                {
                    "metric": key,
                    "model": model,
                    "last": last,
                    "seconds": {k: seconds_to(course, seconds, x) for k, x in asked.items()},
                }
            )
    return found


def time_table(summary: Mapping[str, Any]) -> ResultTable | None:
    """Time to accuracy (``summary["time_to_accuracy"]``); None where there is none."""
    found = summary.get("time_to_accuracy")
    if not found:
        return None
    levels = list(found[0]["seconds"])
    rows = tuple(
        (
            f"{metric_label(row['metric'])}: {row['model']}",
            (
                Cell(percent(row["last"])),
                *(Cell(_seconds(row["seconds"].get(level))) for level in levels),
            ),
        )
        for row in found
    )
    headers = [level if level.startswith("95 %") else percent(float(level)) for level in levels]
    return ResultTable(
        "Time to accuracy",
        ("last (%)", *(f"to {header} (s)" for header in headers)),
        rows,
        (
            "Simulated seconds until the metric first was so high. It is known only after the "
            f"rounds that were evaluated (eval.every); {NONE}: never. 0: before the first round.",
        ),
    )


def _seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"
