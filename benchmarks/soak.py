"""Many tiny rounds in one process: does anything grow?

    python -m benchmarks.soak --rounds=1000

Trains FedFR with a cohort drawn from a larger population, checkpoints every 20 rounds and
evaluates every 100. After each hundred it prints the resident memory, the open files, the threads
and the programs compiled so far. The first two hundred, with
the first evaluations, are warming up; memory is compared from there on.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
import threading
import time
from typing import Any

import jax

from fedfr_jax import Experiment, use_cpu_devices
from fedfr_jax.runtime.process_memory import resident_bytes

SETTINGS: dict[str, Any] = {
    "data": {
        "image_size": 16,
        "generated": {"identities": 80, "images_per_identity": (8, 8)},
        "split": {
            "client_fraction": 0.5,
            "identities_per_client": (2, 2),
            "verification_images": 2,
            "public_identities": 20,
        },
    },
    "model": {"depth": 4, "widths": (4, 4, 8, 8), "embedding": 8},
    "pretrain": {"epochs": 0},
    "fed": {
        "num_clients": 20,
        "batch_size": 4,
        "local_epochs": (1,),
        "lr_decay_epochs": (),
        "lr": 1e-3,
        "hard_threshold": 0.9999,
    },
    "population": {"cohort": 4},
    "eval": {"fars": (0.1,), "every": 100, "examples": 0},
    "checkpoint": {"every": 20},
    "engine": {"lanes": 1, "conv": "custom"},
}


class Compilations:
    """Counts what XLA compiles in this process."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._seen)

    def _seen(self, event: str, seconds: float, **_: Any) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


def main() -> None:
    """Runs and prints a line per hundred rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    given = parser.parse_args()
    use_cpu_devices(1)
    compiled, memory = Compilations(), []
    settings = SETTINGS | {"fed": SETTINGS["fed"] | {"rounds": given.rounds}}
    print(f"{'rounds':>7} {'MiB':>7} {'files':>6} {'threads':>8} {'compiled':>9} {'rounds/s':>9}")
    with (
        tempfile.TemporaryDirectory() as folder,
        Experiment(settings, folder) as experiment,
    ):
        while experiment.round < given.rounds:
            started, before = time.monotonic(), experiment.round
            experiment.run(min(100, given.rounds - before))
            memory.append(resident_bytes() / 2**20)
            files = len(list(pathlib.Path("/proc/self/fd").iterdir()))
            rate = (experiment.round - before) / (time.monotonic() - started)
            print(
                f"{experiment.round:7} {memory[-1]:7.0f} {files:6} {threading.active_count():8} "
                f"{compiled.count:9} {rate:9.1f}",
                flush=True,
            )
    growth = 100 * (memory[-1] / memory[min(1, len(memory) - 1)] - 1)
    print(f"memory after the last round against after 200: {growth:+.1f} %")


if __name__ == "__main__":
    main()
