"""Rows of common comparisons, including the paper's: (name, the settings it changes).

They are plain nested dictionaries for :mod:`fedfr_jax.ablate`; combine them as needed.
"""

from __future__ import annotations

from typing import Any

from fedfr_jax.methods import METHODS

Row = tuple[str, dict[str, Any]]


def _method(name: str) -> Row:
    return METHODS[name].title, {"method": {"name": name}}


def _fedfr(**options: Any) -> dict[str, Any]:
    return {"method": {"fedfr": options}}


FEDFR: Row = _method("fedfr")

# The baselines, in their papers' default settings.
BASELINES: tuple[Row, ...] = tuple(
    _method(name) for name, recipe in METHODS.items() if name not in ("fedfr", "fedbn")
)
# For networks with batch normalization only.
FEDBN: Row = _method("fedbn")
# FedFR without each of its parts (AAAI 2022, section 4.3).
PARTS: tuple[Row, ...] = (
    ("FedFR, all public data", {"fed": {"public_data": "all"}}),
    ("FedFR, no public data", {"fed": {"public_data": "off"}}),
    ("FedFR without contrastive", _fedfr(contrastive_weight=0.0)),
    ("FedFR without DFC", _fedfr(binary_weight=0.0)),
    ("FedFR, DFC detached", _fedfr(binary_detached=True)),
    ("FedFR, DFC without transform", _fedfr(transform="none")),
    ("FedAvg with hard negatives", {"method": {"name": "fedavg"}, "fed": {"public_data": "hard"}}),
)
# Its other switches.
SWITCHES: tuple[Row, ...] = (
    ("FedFR, bottleneck transform", _fedfr(transform="bottleneck")),
    ("FedFR, random class embeddings", {"fed": {"class_embedding_init": "random"}}),
    ("FedFR, ArcFace", {"loss": {"identification": "arcface"}}),
    ("FedFR, balanced classes", {"loss": {"balanced": True}}),
    ("FedFR, uniform weights", {"fed": {"aggregation": "uniform"}}),
    (
        "FedFR, server momentum",
        {"fed": {"server_optimizer": "momentum", "server_lr": 0.5, "server_momentum": 0.5}},
    ),
    ("FedFR, server Adam", {"fed": {"server_optimizer": "adam", "server_lr": 1e-3}}),
)


def fixed_epochs(epochs: int) -> Row:
    """FedFR with the same number of local epochs in every round."""
    return f"FedFR, E = {epochs} in all rounds", {"fed": {"local_epochs": (epochs,)}}


def batch_norm(widths: tuple[int, ...]) -> tuple[Row, ...]:
    """FedBN on a network with batch normalization, which it needs, and its baselines there.

    Args:
      widths: channels of the four stages of iresnet-18.
    """
    network = {"model": {"name": "iresnet", "depth": 18, "widths": tuple(widths)}}
    return tuple(
        (f"{METHODS[name].title}, iresnet", {"method": {"name": name}, **network})
        for name in ("fedfr", "fedavg", "fedbn")
    )
