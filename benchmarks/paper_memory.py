"""Peak memory of a FedFR round with the paper's numbers of images, in parts, against the plan.

    python -m benchmarks.paper_memory --folder /tmp/paper

writes a file of images (646 MB) with the paper's numbers: 420,671 public images of 6,000 people, 40
clients with 100 people each, of whom 65 images are for training and 40 held out. They are 16x16
and the network is tiny, so that a CPU can do it. The command runs one round of one epoch with
``engine.part`` clients at a time, in a process of its own, and prints the most memory that the
process has had beside what the plan said. What Python, JAX and the programs take is measured by a
second run, with few public images. The round is not evaluated.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

from fedfr_jax.config import Config, resolve
from fedfr_jax.data.types import ImageSource
from fedfr_jax.engine.devices import use_cpu_devices
from fedfr_jax.experiment import Experiment
from fedfr_jax.runtime.footprint import peaks
from fedfr_jax.runtime.forecast import forecast
from fedfr_jax.runtime.machine import find_machine
from fedfr_jax.runtime.process_memory import peak_bytes

PUBLIC, PUBLIC_PEOPLE = 420_671, 6000
CLIENTS, PEOPLE, TRAINING, HELD_OUT = 40, 100, 65, 40
_SIDE = 16
_PIXELS = _SIDE * _SIDE * 3


def counts_of_people(public: int, seed: int) -> np.ndarray:
    """Images of each identity, so that the split makes exactly ``public`` images public."""
    own = CLIENTS * PEOPLE
    few, more = divmod(public, PUBLIC_PEOPLE)
    of_public = np.where(np.arange(PUBLIC_PEOPLE) < more, few + 1, few)
    counts = np.r_[np.full(own, TRAINING + HELD_OUT), of_public]
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    found = np.empty_like(counts)
    found[order.permutation(len(counts))] = counts
    return found


def settings(args: argparse.Namespace) -> Config:
    """FedFR on a tiny network, one round of one epoch."""
    split = {
        "client_fraction": CLIENTS * PEOPLE / (CLIENTS * PEOPLE + PUBLIC_PEOPLE),
        "identities_per_client": [PEOPLE, PEOPLE],
        "verification_images": HELD_OUT,
    }
    return resolve(
        {
            "data": {"image_size": _SIDE, "images": "stream", "split": split},
            "model": {"depth": 4, "widths": [4, 4, 8, 8], "embedding": args.embedding},
            "pretrain": {"epochs": 0},
            "fed": {
                "num_clients": CLIENTS,
                "rounds": 1,
                "local_epochs": [1],
                "hard_threshold": args.threshold,
            },
            "population": {"cohort": args.cohort},
            "eval": {"every": 0},
            "engine": {"lanes": 1, "conv": "grouped", "part": args.part, "cpu_devices": 1},
        }
    )


def source_in(folder: pathlib.Path, public: int, seed: int = 0) -> ImageSource:
    """Images of smooth noise in a file, of which only those that are asked for are read."""
    labels = np.repeat(np.arange(CLIENTS * PEOPLE + PUBLIC_PEOPLE), counts_of_people(public, seed))
    path = folder / f"{public}.images"
    if not path.exists() or path.stat().st_size != len(labels) * _PIXELS:
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(1)
        with path.open("wb") as file:
            for first in range(0, len(labels), 4096):
                n = min(4096, len(labels) - first)
                coarse = rng.integers(0, 256, (n, 4, 4, 3), np.uint8)
                file.write(coarse.repeat(4, axis=1).repeat(4, axis=2).tobytes())
    file = os.open(path, os.O_RDONLY)

    def read(numbers: np.ndarray) -> np.ndarray:
        images = np.empty((len(numbers), _PIXELS), np.uint8)
        for row, number in zip(images, np.asarray(numbers).tolist(), strict=True):
            os.preadv(file, [row], number * _PIXELS)
        return images.reshape(-1, _SIDE, _SIDE, 3)

    names = [str(i) for i in range(labels[-1] + 1)]
    return ImageSource("numbered images", labels, _SIDE, read, names)


def measured(folder: pathlib.Path, config: Config, public: int) -> dict[str, float]:
    """Runs the round in this process."""
    use_cpu_devices(config.engine.cpu_devices)
    with Experiment(config, source=source_in(folder, public)) as experiment:
        began, worked = time.monotonic(), time.process_time()
        [row] = experiment.run()
    return {
        "peak": peak_bytes(),
        "kept": row["hard_negatives_mean"],
        "most kept": row["hard_negatives_max"],
        "seconds": time.monotonic() - began,
        "cpu seconds": time.process_time() - worked,
    }


def told(folder: pathlib.Path, config: Config, public: int) -> float:
    """The plan's peak in bytes, without what Python, JAX and programs take."""
    use_cpu_devices(config.engine.cpu_devices)
    plan = forecast(config, find_machine(config), source=source_in(folder, public))
    found = peaks(plan.parts, returned=True)
    return max(host + plan.counts.local_devices * device for device, host in found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--part", type=int, default=1, help="clients on the device at a time")
    parser.add_argument("--cohort", type=int, default=CLIENTS, help="of the 40 clients")
    parser.add_argument("--public", type=int, default=PUBLIC)
    parser.add_argument("--embedding", type=int, default=64)
    # At these a client keeps about as many public images as it has of its own.
    parser.add_argument("--threshold", type=float, default=0.9986)
    parser.add_argument("--few", type=int, default=2 * PUBLIC_PEOPLE, help="of the second run")
    parser.add_argument("--few_threshold", type=float, default=0.9915)
    parser.add_argument("--step", choices=("run", "plan"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = settings(args)
    if args.step == "run":
        print("found", json.dumps(measured(args.folder, config, args.public)))
    elif args.step == "plan":
        print("found", json.dumps(told(args.folder, config, args.public)))
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Runs and plans the round with few and with all public images, each in its own process."""
    # glibc keeps what is freed below a limit that it raises by itself.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "262144"}

    def step(name: str, public: int, threshold: float, cohort: int):
        command = [sys.executable, "-m", "benchmarks.paper_memory", f"--step={name}"]
        command += [f"--{key}={getattr(args, key)}" for key in ("folder", "part", "embedding")]
        command += [f"--public={public}", f"--threshold={threshold}", f"--cohort={cohort}"]
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return json.loads(done.stdout.split("found ")[-1])

    found = []
    for case in ((args.few, args.few_threshold), (args.public, args.threshold)):
        step("run", *case, args.part)  # compiles, which takes memory of its own
        found.append((step("run", *case, args.cohort), step("plan", *case, args.cohort)))
        print(json.dumps(found[-1]), flush=True)
    (few, told_few), (run, plan) = found
    mib = 2.0**20
    baseline = few["peak"] - told_few
    difference = run["peak"] - baseline
    print(f"public images {args.public:,}, {args.part or 'all'} of {args.cohort} clients at a time")
    print(f"kept by a client: {run['kept']:,.0f} on average, {run['most kept']:,} at most")
    print(f"told {plan / mib:,.1f} MiB, measured peak {run['peak'] / mib:,.1f} MiB")
    print(
        f"baseline {baseline / mib:,.1f} MiB: peak with {args.few:,} public images, less the plan"
    )
    print(f"minus the baseline {difference / mib:,.1f} MiB, {difference / plan - 1:+.1%}")
    print(f"the round: {run['seconds']:,.0f} s, {run['cpu seconds']:,.0f} s of CPU time")


if __name__ == "__main__":
    main()
