"""What training from a layer up saves: seconds of a round and bytes sent, MobileFaceNet.

    python -m benchmarks.trainable

FedFR on generated faces of 112 x 112, with a MobileFaceNet of random weights: the time does not
depend on them. A round without its compilation, median of the warm ones. What the frozen part
computes once, before the first round, has a column of its own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from fedfr_jax import Experiment, use_cpu_devices
from fedfr_jax.runtime import costs

PARTS = ("all", "last_stage", "res_5_block0", "embedding")


def settings(trainable: str, clients: int, rounds: int) -> dict[str, Any]:
    """Settings of one case."""
    return {
        "data": {
            "image_size": 112,
            "generated": {"identities": 8 * clients, "images_per_identity": (16, 16)},
            "split": {
                "client_fraction": 0.5,
                "identities_per_client": (4, 4),
                "verification_images": 4,
            },
        },
        "model": {"name": "mobilefacenet", "embedding": 128, "batch_norm": "frozen"},
        "pretrain": {"epochs": 0},
        "fed": {
            "num_clients": clients,
            "rounds": rounds,
            "batch_size": 16,
            "local_epochs": (2,),
            "lr_decay_epochs": (),
            "hard_threshold": 0.99,
            "mirror": False,
            "trainable": trainable,
        },
        "eval": {"every": 0},
        "engine": {"lanes": 1, "conv": "custom"},
    }


def case(trainable: str, clients: int, rounds: int) -> dict[str, float]:
    """Seconds of a warm round, of everything before it, and MB that a client sends."""
    started = time.monotonic()
    with Experiment(settings(trainable, clients, rounds)) as experiment:
        before = time.monotonic() - started
        seconds = [row["seconds"] for row in experiment.run()]
        sim = experiment.sim
        up = costs.communication(sim.spec, sim.public.identities, 4.0, rounds)["up"]
    return {
        "round": statistics.median(seconds[1:]),
        "compile": seconds[0] - statistics.median(seconds[1:]),
        "before": before,
        "sent": up["backbone"] / 1e6,
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--parts", nargs="*", default=list(PARTS))
    asked = parser.parse_args()
    use_cpu_devices(0)
    print("| fed.trainable | round (s) | times as fast | compile (s) | before (s) | sent (MB) |")
    print("|---|---:|---:|---:|---:|---:|")
    whole = None
    for part in asked.parts:
        found = case(part, asked.clients, asked.rounds)
        whole = whole or found["round"]
        print(
            f"| {part} | {found['round']:.2f} | {whole / found['round']:.1f} "
            f"| {found['compile']:.1f} | {found['before']:.1f} | {found['sent']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
