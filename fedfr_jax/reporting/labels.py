"""How rates, shares and metrics are written."""

from __future__ import annotations

import math

from fedfr_jax.reporting.result_table import NONE


def rate_label(rate: str | float) -> str:
    """An error rate as it is written in the field: 0.001 -> "1e-3", 0.25 -> "0.25"."""
    value = float(rate)
    if value <= 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = value / 10.0**exponent
    if abs(mantissa - round(mantissa)) < 1e-6 and exponent < 0:
        return f"{round(mantissa)}e{exponent}"
    return f"{value:g}"


def percent(value: float | None, std: float | None = None) -> str:
    """A share in percent with two decimals, "91.20 ± 3.10"; "–" if there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    spread = "" if std is None or not math.isfinite(std) else f" ± {100 * std:.2f}"
    return f"{100 * value:.2f}{spread}"


def metric_label(key: str) -> str:
    """The readable name of a metric, from its flat key in ``metrics.jsonl``.

    "generic/lfw/accuracy" -> "generic verification (lfw), accuracy";
    "personal/verification_tar@0.001" -> "personalized 1:1, TAR @ FAR 1e-3"; other
    keys stay as they are.
    """
    base, _, rate = key.removeprefix("personal/").partition("@")
    try:
        rate = rate_label(rate) if rate else ""
    except ValueError:
        return key
    names = {
        "verification_tar": "personalized 1:1, TAR @ FAR",
        "identification_pair": "personalized 1:N (pair rule), TPIR @ FPIR",
        "identification_openset": "personalized 1:N (open set), TPIR @ FPIR",
    }
    if base in names and rate:
        return f"{names[base]} {rate}"
    if base == "rank1":
        return "personalized 1:N, rank-1"
    if base.startswith("generic/") and base.count("/") >= 2:
        _, rest = base.split("/", 1)
        set_name, metric = rest.rsplit("/", 1)
        metric = {"tar": "TAR @ FAR", "tpir": "TPIR @ FPIR", "accuracy_std": "std of accuracy"}.get(
            metric, metric
        )
        return f"generic verification ({set_name}), {metric} {rate}".rstrip()
    return key
