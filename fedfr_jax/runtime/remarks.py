"""Remarks on a run's settings, from its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_NEARLY_ALL = 0.9  # share of the public images


def remark(row: Mapping[str, Any]) -> str:
    """A warning about ``fed.hard_threshold``, from a round's hard negatives; "" if it is fine.

    Args:
      row: a record of ``metrics.jsonl``.
    """
    public, most = row.get("public_images"), row.get("hard_negatives_max")
    if not public or most is None or "hard_threshold" not in row:
        return ""
    share = row["hard_negatives_mean"] / public
    where = (
        f"round {row['round']}: with fed.hard_threshold={row['hard_threshold']:g} a client "
        f"keeps {row['hard_negatives_mean']:,.0f} of {public:,} public images on average"
    )
    if share > _NEARLY_ALL:
        return (
            f"{where} ({100 * share:.0f} %), so that hardly any are left out and every client "
            "trains on all of them; raise fed.hard_threshold"
        )
    if not most:
        return f"{where}: no client has a hard negative; lower fed.hard_threshold"
    return ""


def first_remark(rows: Sequence[Mapping[str, Any]]) -> str:
    """The first :func:`remark` of a run's records; "" if there is none."""
    return next((text for row in rows if (text := remark(row))), "")
