"""Rounds with growing cohorts and populations, through the same driver as a training run.

Generated faces are rendered on the device for the round's clients; the heads are moved between
the devices and the store in the work directory.
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.worker import memory

IDENTITIES, IMAGES, VERIFICATION, PUBLIC = 4, 8, 2, 4


def config(population: int, cohort: int, rounds: int):
    """Small clients: 24 images of 4 people, d = 64, two local epochs, all terms of FedFR."""
    from fedfr_jax.config import resolve  # noqa: PLC0415  (only children start JAX)

    identities = IDENTITIES * population + PUBLIC
    return resolve(
        {
            "data": {
                "image_size": 32,
                "images": "render",
                "generated": {"identities": identities, "images_per_identity": (IMAGES, IMAGES)},
                "split": {
                    "client_fraction": IDENTITIES * population / identities,
                    "identities_per_client": (IDENTITIES, IDENTITIES),
                    "verification_images": VERIFICATION,
                },
            },
            "model": {"depth": 10, "widths": (8, 16, 32, 32), "embedding": 64},
            "pretrain": {"epochs": 0},
            "fed": {
                "num_clients": population,
                "rounds": rounds,
                "batch_size": 8,
                "local_epochs": (2,),
                "lr": 0.01,
                "public_data": "all",
            },  # the same work in every round
            "population": {"cohort": cohort},
            "eval": {"clients": 1, "every": 0},
            "checkpoint": {"every": 2},
            "engine": {"lanes": 1, "conv": "custom"},
        }
    )


def run(population: int, cohort: int, rounds: int) -> dict[str, Any]:
    """Seconds of warm rounds and of the start, memory, and whether the state can be restored."""
    from fedfr_jax.engine import use_cpu_devices  # noqa: PLC0415
    from fedfr_jax.runtime import rounds as driver  # noqa: PLC0415
    from fedfr_jax.runtime import simulation, workdir  # noqa: PLC0415
    from fedfr_jax.runtime.checkpoints import RoundCheckpoints  # noqa: PLC0415
    from fedfr_jax.runtime.client_states import open_store  # noqa: PLC0415

    use_cpu_devices()
    started = time.perf_counter()
    sim = simulation.build_simulation(config(population, cohort, rounds))
    start = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        weights, _ = driver.starting_weights(sim)
        with workdir.RunWriter(folder) as writer, RoundCheckpoints(folder) as checkpoints:
            with open_store(sim, folder) as store:
                store.rewind(0)
                server = driver.starting_server(sim, weights, None)
                driver.run_rounds([driver.Run(sim, writer, checkpoints, store, server, weights)])
                kept = store.read(store.touched())
                disk = store.nbytes
            rows = workdir.read_metrics(folder)
        with open_store(sim, folder) as again:  # as a restarted run does
            again.rewind(rounds)
            met = np.unique(sim.schedule.cohorts)
            survived = np.array_equal(again.touched(), met) and _equal(again.read(met), kept)
    seconds = [row["seconds"] for row in rows[1:]]
    return {
        "seconds": statistics.median(seconds),
        "start_seconds": start,
        "images": rows[-1]["images"],
        "clients": rows[-1]["clients"],
        "touched": len(met),
        "survived": bool(survived),
        "memory": memory()["host"],
        "disk": disk,
    }


def _equal(a, b) -> bool:
    import jax  # noqa: PLC0415

    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table of a scale case."""

    population: int
    cohort: int
    found: dict[str, Any]

    def cells(self, first: dict[str, Any]) -> list[str]:
        f = self.found
        per_client = f["seconds"] / f["clients"]
        return [
            f"{self.population:,}",
            f"{self.cohort:,}",
            f"{f['seconds']:.2f}",
            f"{per_client * 1e3:.1f}",
            f"{per_client / (first['seconds'] / first['clients']):.2f}",
            f"{f['images'] / f['seconds']:,.0f}",
            f"{f['start_seconds']:.1f}",
            f"{f['memory'] / 2**20:,.0f}",
            f"{f['disk'] / 2**20:,.0f}",
            f"{f['touched']:,}, {'yes' if f['survived'] else '**no**'}",
        ]


COLUMNS = (
    "population",
    "cohort",
    "round (s)",
    "per client (ms)",
    "ratio to the first",
    "images/s",
    "start (s)",
    "most host memory (MiB)",
    "store (MiB)",
    "touched clients, all back",
)


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    return "\n".join(lines + ["| " + " | ".join(r.cells(rows[0].found)) + " |" for r in rows])
