"""What ``metrics.jsonl`` and the progress tell of a round's messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedfr_jax.runtime import accounting, simulated_time
from fedfr_jax.runtime.simulation import Simulation

_NAMED = 5  # clients, at most, that the progress names


def trained_well(metrics: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n,) bool, the clients of a round whose losses count: those that are not quarantined."""
    count = len(next(iter(metrics.values()), ()))
    return (
        ~metrics["quarantined"].astype(bool) if "quarantined" in metrics else np.ones(count, bool)
    )


def about_messages(
    sim: Simulation, round_index: int, clients: np.ndarray, metrics: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Norms, clients that were quarantined, lost or slow, and epsilon, as the settings have them.

    Args:
      round_index: rounds done.
      clients: (n,) numbers; metrics: (n,) arrays.
    """
    config = sim.config
    found: dict[str, Any] = {}
    if config.population.dropout:
        found["dropped"] = int(sim.schedule.dropped[round_index - 1])
    if "update_norm" in metrics:
        bad = metrics["quarantined"].astype(bool)
        norms = metrics["update_norm"][~bad]
        found |= {
            "quarantined": int(bad.sum()),
            "quarantined_clients": clients[bad].tolist(),
            "late_dropouts": int(metrics["late"].sum()),
        }
        if len(norms):
            found["update_norm"] = float(np.median(norms))
    if config.simulated_time.is_active:
        found |= simulated_time.of_round(metrics)
    if "clip_norm" in metrics and len(clients):
        found["clip_norm"] = float(metrics["clip_norm"][0])
        found["clipped"] = float(metrics["clipped"].mean())
    privacy = accounting.spent(config, sim.schedule, round_index)
    if privacy:
        found |= privacy | {
            "delta": config.privacy.delta,
            "noise_multiplier": config.privacy.noise_multiplier,
        }
    return found


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the progress shows of a round's record."""
    found: dict[str, Any] = {}
    if row.get("quarantined"):
        named = ", ".join(map(str, row["quarantined_clients"][:_NAMED]))
        more = "" if row["quarantined"] <= _NAMED else ", ..."
        found["quarantined"] = f"{row['quarantined']} (client {named}{more})"
    if row.get("missed"):
        found["too slow"] = f"{row['missed']} of {row['clients']}"
    if "epsilon" in row:
        found["epsilon"] = row["epsilon"]
    return found


def in_all(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a run's records tell of quarantined, lost and slow clients, for the summary."""
    rounds = [row for row in rows if row.get("kind") == "round"]
    found: dict[str, Any] = {}
    if any(row.get("quarantined") for row in rounds):
        clients = sorted({c for row in rounds for c in row.get("quarantined_clients", ())})
        found["quarantined"] = {
            "messages": sum(row.get("quarantined", 0) for row in rounds),
            "clients": clients,
        }
    for name in ("dropped", "late_dropouts"):
        if total := sum(row.get(name, 0) for row in rounds):
            found[name] = total
    return found | simulated_time.in_all(rows)


def refuse_bad(round_index: int, clients: np.ndarray, bad: np.ndarray) -> None:
    """Raises an error if a client's difference is bad and the settings say to stop.

    Args:
      clients: (C,) numbers, -1 for an empty slot; bad: (C,) bool.

    Raises:
      FloatingPointError: one is.
    """
    named = clients[(clients >= 0) & bad.astype(bool)]
    if len(named):
        raise FloatingPointError(
            f"round {round_index}: the difference of client {named[0]} is not finite, or longer "
            f"than fed.quarantine_norm ({len(named)} such clients). Lower fed.lr, or set "
            "fed.on_bad_update to 'quarantine', and continue with --resume: the last checkpoint is "
            "from before this round"
        )
