"""The sentences that open a report."""

import numpy as np

from fedfr_jax.reporting.headline import headline


def summary(*models):
    spread = {"0.001": {"mean": 0.5}}
    return {"models": {m: {"personalized": {"verification_tar": spread}} for m in models}}


def test_it_says_what_came_out_and_how_sure_it_is():
    rng = np.random.default_rng(0)
    shared = rng.uniform(0.4, 0.6, 30)
    own = shared + rng.uniform(0.05, 0.15, 30)
    own[0] = shared[0] - 0.1
    values = {"personalized": own, "global": shared, "pretrained": shared + 0 * own}
    [text] = headline(
        summary("pretrained", "global", "personalized"), {"verification_tar@0.001": values}
    )
    assert text.startswith("1:1 TAR at FAR 1e-3: the clients' own models reach ")
    assert f"{100 * own.mean():.1f} %, the global model {100 * shared.mean():.1f} %" in text
    assert "beyond noise over the clients); 1 of 30 clients is worse off" in text
    assert "(global: +0.0 [0.0, 0.0], within noise" in text


def test_there_is_none_without_both_models_or_values():
    assert headline({}, {}) == [] and headline(summary("global"), {}) == []
    nothing = {"personalized": np.array([np.nan]), "global": np.array([0.5])}
    assert headline(summary("global", "personalized"), {"verification_tar@0.001": nothing}) == [
        "1:1 TAR at FAR 1e-3: no client has a value."
    ]
