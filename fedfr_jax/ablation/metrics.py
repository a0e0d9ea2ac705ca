"""The metrics of one run that a comparison shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedfr_jax.evaluation import HEADLINE_FAR, HEADLINE_FPIR
from fedfr_jax.reporting import tables
from fedfr_jax.reporting.tables import headline_rate

Summary = Mapping[str, Any]
GLOBAL = "global model, "  # how its metrics begin
FLOPS, SENT, RECEIVED = "arithmetic (GFLOP)", "sent (MB)", "received (MB)"
# (label, short label where clients are compared, key in ``summary.json``, rate to show).
PROTOCOLS = (
    ("1:1 TAR @ FAR", "1:1", "verification_tar", HEADLINE_FAR),
    ("1:N open set TPIR @ FPIR", "1:N", "identification_openset", HEADLINE_FPIR),
    ("1:N pair rule TPIR @ FPIR", "", "identification_pair", HEADLINE_FPIR),
)


def metrics_of(summary: Summary) -> dict[str, dict[str, float]]:
    """Table title -> metric -> value of one run.

    Shares are in percent. Personalized metrics are those of the personalized models, at the
    rates nearest to FAR 1e-3 and FPIR 1e-2; the generic ones, and those whose name says so, are
    those of the global model.
    """
    models, costs = summary["models"], summary.get("costs", {"down": {}, "up": {}, "flops": 0})
    own, shared = models["personalized"]["personalized"], models["global"]["personalized"]
    accuracy = {
        f"{name}: accuracy": 100 * found["accuracy"]
        for name, found in models["global"].get("generic", {}).items()
    }
    fairness: dict[str, float] = {}
    for label, short, key, aim in PROTOCOLS:
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
    for label, short, key, aim in PROTOCOLS:
        if short:
            rate = headline_rate(shared[key], aim)
            name = f"{GLOBAL}{label} {tables.rate_label(rate)}"
            accuracy[name] = 100 * _number(shared[key][rate]["mean"])
    return {
        "Accuracy": accuracy,
        "Fairness: how the clients differ": fairness,
        "Cost of a round for a client": {
            RECEIVED: sum(costs["down"].values()) / 1e6,
            SENT: sum(costs["up"].values()) / 1e6,
            FLOPS: costs["flops"] / 1e9,
        },
    }


def tuning_score(summary: Summary) -> float:
    """What settings are chosen by, in percent: the mean of 1:1 TAR at FAR 1e-3 and open-set 1:N
    TPIR at FPIR 1e-2 (at the rates nearest to them), of the global or the personalized models,
    whichever are better: some methods are for one of them, some for the other.
    """

    def mean(model: str) -> float:
        found = summary["models"][model]["personalized"]
        shares = [
            _number(found[key][headline_rate(found[key], aim)]["mean"])
            for _, short, key, aim in PROTOCOLS
            if short
        ]
        return 100 * float(np.mean(shares))

    return max(mean("global"), mean("personalized"))


def _number(value) -> float:
    return float("nan") if value is None else float(value)
