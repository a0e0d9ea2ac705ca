"""What came out of a run, in words: the sentences that open the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedfr_jax.evaluation import HEADLINE_FAR, HEADLINE_FPIR
from fedfr_jax.evaluation.intervals import Interval, paired_bootstrap
from fedfr_jax.reporting.tables import headline_rate, rate_label

PerClient = Mapping[str, Mapping[str, np.ndarray]]  # metric -> model -> (C,) shares
_PROTOCOLS = (
    ("verification_tar", "1:1 TAR at FAR", HEADLINE_FAR),
    ("identification_openset", "open-set 1:N TPIR at FPIR", HEADLINE_FPIR),
)


def headline(summary: Mapping[str, Any], per_client: PerClient) -> list[str]:
    """Sentences that compare the personalized, the global and the pretrained model.

    Args:
      summary: as ``summary.json`` has it.
      per_client: the clients' values, as ``evaluation.npz`` has them.

    Returns:
      One sentence for each protocol that has values, none without any.
    """
    models, found = summary.get("models", {}), []
    if not {"global", "personalized"} <= models.keys():
        return []
    for key, title, aim in _PROTOCOLS:
        rates = models["global"].get("personalized", {}).get(key)
        if not rates:
            continue
        rate = headline_rate(rates, aim)
        values = per_client.get(f"{key}@{float(rate):g}", {})
        if {"global", "personalized"} <= values.keys():
            found.append(_sentence(f"{title} {rate_label(rate)}", values))
    return found


def _sentence(title: str, values: Mapping[str, np.ndarray]) -> str:
    own, shared = (100 * np.asarray(values[name], float) for name in ("personalized", "global"))
    defined = ~(np.isnan(own) | np.isnan(shared))
    gain = paired_bootstrap([own - shared])
    if gain is None:
        return f"{title}: no client has a value."
    worse = int((own < shared)[defined].sum())
    text = (
        f"{title}: the clients' own models reach {own[defined].mean():.1f} %, the global model "
        f"{shared[defined].mean():.1f} % ({_gain(gain)}); {worse} of {int(defined.sum())} clients "
        f"{'is' if worse == 1 else 'are'} worse off with their own."
    )
    if "pretrained" not in values:
        return text
    before = 100 * np.asarray(values["pretrained"], float)
    over = paired_bootstrap([shared - before])
    if over is None:
        return text
    return (
        f"{text} Before the rounds the pretrained model had {np.nanmean(before):.1f} % "
        f"(global: {_gain(over)})."
    )


def _gain(found: Interval) -> str:
    noise = "beyond noise" if found.is_beyond_noise else "within noise"
    return f"{found.mean:+.1f} [{found.low:.1f}, {found.high:.1f}], {noise} over the clients"
