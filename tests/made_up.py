"""Results made up for tests of the report and its tables."""

from __future__ import annotations

import dataclasses

import numpy as np

from fedfr_jax.config import Config
from fedfr_jax.reporting.html import ReportData

MODELS = {"pretrained": 0.0, "global": 0.06, "personalized": 0.1}


def spread(values: np.ndarray) -> dict:
    values = values[np.isfinite(values)]
    worst = np.sort(values)[: max(1, len(values) // 10)].mean()
    return {
        "mean": values.mean(),
        "std": values.std(),
        "worst10": worst,
        "min": values.min(),
        "max": values.max(),
    }


def faces(rng, *shape: int, size: int = 48) -> np.ndarray:
    """Smooth blobs: (…, size, size, 3) uint8."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    center = rng.uniform(-0.3, 0.3, (*shape, 2, 1, 1))
    blob = np.exp(-2 * ((x - center[..., 0, :, :]) ** 2 + (y - center[..., 1, :, :]) ** 2))
    color = rng.uniform(60, 255, (*shape, 1, 1, 3))
    return (blob[..., None] * color).astype(np.uint8)


def metrics(rng, rounds: int) -> list[dict]:
    rows = [
        {
            "kind": "pretrain",
            "epoch": i // 60,
            "step": i,
            "lr": 0.1,
            "loss": 18 * np.exp(-i / 300) + 2 + rng.normal(0, 0.4),
            "accuracy": 1 - np.exp(-i / 400),
            "images_per_second": 310.0,
        }
        for i in range(1200)
    ]
    for r in range(rounds + 1):
        for model, lift in MODELS.items():
            if model == "pretrained" and r > 0:
                continue
            share = 1 - np.exp(-r / 4)
            row = {
                "kind": "evaluation",
                "round": r,
                "model": model,
                "personal/verification_tar@0.001": 0.78 + lift * share,
                "personal/verification_tar@0.01": 0.88 + lift * share,
                "personal/rank1": 0.9 + lift * share / 2,
            }
            if model != "personalized":
                row["generic/held_out/accuracy"] = 0.93 + 0.3 * lift * share
            rows.append(row)
        if r:
            rows.append(
                {
                    "kind": "round",
                    "round": r,
                    "loss": 9 * np.exp(-r / 6) + 2,
                    "identification": 5 * np.exp(-r / 6) + 1,
                    "contrastive": 0.6 + 0.1 / r,
                    "binary": 0.3 / r,
                    "hard_negatives_mean": 900 / r + 40,
                    "hard_negatives_min": 500 / r,
                    "hard_negatives_max": 1500 / r + 60,
                    "public_images": 6000,
                    "images": 12000,
                    "seconds": 33.0,
                    "images_per_second": 363.0,
                    "lr": 1e-3,
                    "epochs": 10,
                }
            )
    return rows


def summary(per_client: dict) -> dict:
    models = {}
    for model, lift in MODELS.items():
        by_metric = {key: values[model] for key, values in per_client.items()}
        models[model] = {
            "personalized": {
                "verification_tar": {
                    far: spread(np.clip(by_metric["verification_tar@0.001"] + shift, 0, 1))
                    for far, shift in (("0.0001", -0.08), ("0.001", 0.0), ("0.01", 0.05))
                },
                "identification_pair": {"0.01": spread(by_metric["rank1"] - 0.2)},
                "identification_openset": {"0.01": spread(by_metric["rank1"] - 0.1)},
                "rank1": spread(by_metric["rank1"]),
                "unresolvable": {"verification_tar": ["0.0001"]},
            }
        }
        if model != "personalized":
            models[model]["generic"] = {
                "held_out": {
                    "accuracy": 0.931 + 0.3 * lift,
                    "accuracy_std": 0.012,
                    "tar": {"0.001": 0.71 + lift, "0.0001": float("nan")},
                    "unresolvable": ["0.0001"],
                }
            }
    return {
        "models": models,
        "split": {"identities": 600, "public_identities": 280},
        "run": {
            "name": "fedfr on generated faces",
            "seed": 0,
            "clients": 40,
            "rounds": 20,
            "device": "2 CPU cores",
            "images_per_second": 363.4,
            "seconds": {"data": 12.0, "pretraining": 340.0, "rounds": 660.0, "evaluation": 41.0},
        },
    }


def data(rounds: int = 20, clients: int = 40, title: str = "fedfr on generated faces"):
    rng = np.random.default_rng(0)
    base = np.clip(rng.normal(0.78, 0.08, clients), 0, 1)
    per_client = {
        "verification_tar@0.001": {
            m: np.clip(base + lift + rng.normal(0, 0.03, clients), 0, 1)
            for m, lift in MODELS.items()
        },
        "rank1": {
            m: np.clip(base + 0.1 + lift / 2 + rng.normal(0, 0.01, clients), 0, 1)
            for m, lift in MODELS.items()
        },
    }
    if clients > 1:
        per_client["rank1"]["personalized"][0] = np.nan
    far = np.geomspace(1e-5, 1, 60)
    rocs = {
        name: {
            m: (far, 1 - (0.3 - lift) * (1 - far**0.25) ** 1.5)
            for m, lift in MODELS.items()
            if not (generic and m == "personalized")
        }
        for name, generic in (("held_out", True), ("personalized 1:1", False))
    }
    hard = [
        {
            "client": i,
            "local_image": faces(rng),
            "public_image": faces(rng),
            "cosine": 0.72 - 0.03 * i,
        }
        for i in range(8)
    ]
    mistakes = [
        {
            "kind": kind,
            "model": "personalized",
            "client": i,
            "image_a": faces(rng),
            "image_b": faces(rng),
            "score": score,
            "threshold": 0.41,
        }
        for kind, score in (("false accept", 0.52), ("false reject", 0.13))
        for i in range(4)
    ]
    return ReportData(
        title=title,
        config=dataclasses.asdict(Config()),
        split={"identities": 600, "public_identities": 280, "training images": 23456},
        metrics=metrics(rng, rounds),
        summary=summary(per_client),
        rocs=rocs,
        per_client=per_client,
        faces=faces(rng, 6, 12),
        hard_negatives=hard,
        mistakes=mistakes,
    )


def compared_summary(accuracy, tar, worse=0.25):
    """A run's summary with these figures, for tables and plots that compare runs."""
    spread = {"mean": tar, "std": 0.1, "worst10": tar / 2, "min": 0, "max": 1}
    personal = {
        "verification_tar": {"0.001": spread | {"worse": worse}},
        "identification_openset": {"0.01": spread},
        "identification_pair": {"0.01": spread},
        "rank1": spread,
    }
    return {
        "costs": {"up": {"backbone": 2e6}, "down": {"backbone": 2e6}, "flops": 5e9},
        "models": {
            "global": {"generic": {"lfw": {"accuracy": accuracy}}, "personalized": personal},
            "personalized": {"personalized": personal},
        },
    }
