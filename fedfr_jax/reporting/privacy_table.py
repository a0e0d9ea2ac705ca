"""The closing table of what a run's noise proves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedfr_jax.reporting.result_table import MARK, Cell, ResultTable


def privacy_table(summary: Mapping[str, Any]) -> ResultTable | None:
    """Epsilon with all that it depends on (``summary["run"]["privacy"]``); None without noise."""
    found = summary.get("run", {}).get("privacy")
    if not found:
        return None
    rounds, delta = summary["run"].get("rounds", 0), f"{found['delta']:g}"
    rows, notes = [], ["Lower is better protected. The unit is a client with all its images."]
    if "epsilon" in found:
        production = found.get("production_cohort", 0)
        multiplier = f"{found['noise_multiplier']:g}"
        rows.append(
            (
                f"central, after {rounds} rounds",
                (
                    Cell(f"{found['epsilon']:.3g}", unresolvable=bool(production)),
                    *map(Cell, (delta, found["unit"], multiplier, found["assumption"])),
                ),
            )
        )
        if (most := found.get("participations")) is not None:
            apart = found.get("least_separation")
            notes.append(
                f"A client took part in at most {most:,} of the rounds"
                + (f", which were at least {apart:,} apart." if apart else ".")
            )
        if other := found.get("otherwise"):
            cells = (f"{other['epsilon']:.3g}", delta, found["unit"], multiplier)
            rows.append(
                ("the same, otherwise assumed", tuple(map(Cell, (*cells, other["assumption"]))))
            )
        if production:
            notes.append(
                f"{MARK} the noise is that of an average over {production:,} clients "
                f"(privacy.production_cohort), not over this run's {found['cohort']:,}: epsilon is "
                "that of such a round, with the same share of a population as much larger, and "
                "not of this run."
            )
    if "local_epsilon" in found:
        cells = (f"{found['local_epsilon']:.3g}", delta, found["unit"], f"{found['local_noise']:g}")
        rows.append(
            (f"local, after {rounds} rounds", tuple(map(Cell, (*cells, "a client trusts nobody"))))
        )
    return ResultTable(
        "Differential privacy",
        ("epsilon", "delta", "unit", "noise multiplier", "assumption"),
        tuple(rows),
        tuple(notes),
    )
