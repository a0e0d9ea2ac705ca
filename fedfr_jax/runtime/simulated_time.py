"""Simulated time: what rounds took by the clients' pace, in records and for the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedfr_jax.errors import InputError

Row = Mapping[str, Any]


def of_round(metrics: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What a round's record tells of its duration; a round without clients takes no time.

    Args:
      metrics: (n,) arrays of the clients that were there, from
        :func:`fedfr_jax.algorithm.arrivals.arrivals`.

    Returns:
      ``round_seconds``; ``slowest_seconds``, of the slowest client; and, where messages can come
      too late, how many ``missed`` it and how many ``arrived``.
    """
    seconds = metrics.get("round_seconds", np.zeros(0))
    if not len(seconds):
        return {"round_seconds": 0.0, "slowest_seconds": 0.0}
    found: dict[str, Any] = {
        "round_seconds": float(seconds[0]),
        "slowest_seconds": float(metrics["simulated_seconds"].max()),
    }
    if "missed" in metrics:
        gone = [metrics[name].astype(bool) for name in ("missed", "late", "quarantined")]
        arrived = ~np.logical_or.reduce(gone)
        found |= {"missed": int(metrics["missed"].sum()), "arrived": int(arrived.sum())}
    return found


def elapsed(rows: Sequence[Row], rounds: int) -> float:
    """Simulated seconds after so many rounds, from the records.

    Raises:
      InputError: the record of the last round is missing.
    """
    if not rounds:
        return 0.0
    for row in reversed(rows):
        if row.get("kind") == "round" and row["round"] == rounds and "simulated_time" in row:
            return float(row["simulated_time"])
    raise InputError(
        f"metrics.jsonl has no record of round {rounds} with its simulated_time, after which the "
        "run would go on; restore the file from a copy, or start in another work directory"
    )


def clock(rows: Sequence[Row]) -> dict[int, float]:
    """Rounds done -> simulated seconds; {} where time was not simulated."""
    found = {
        row["round"]: float(row["simulated_time"])
        for row in rows
        if row.get("kind") == "round" and "simulated_time" in row
    }
    return {0: 0.0} | found if found else {}


def nobody_arrived(row: Row) -> bool:
    """Whether all clients of a round missed it or were lost, so that the model stayed."""
    return row.get("arrived") == 0 and row.get("clients", 0) > 0


def in_all(rows: Sequence[Row]) -> dict[str, Any]:
    """What a run's records tell of simulated time, for the summary; {} where there is none."""
    rounds = [row for row in rows if row.get("kind") == "round" and "simulated_time" in row]
    if not rounds:
        return {}
    found: dict[str, Any] = {"seconds": rounds[-1]["simulated_time"]}
    if any("missed" in row for row in rounds):
        found |= {
            "missed": sum(row.get("missed", 0) for row in rounds),
            "rounds_nobody_arrived": sum(map(nobody_arrived, rounds)),
        }
    return {"simulated_time": found}
