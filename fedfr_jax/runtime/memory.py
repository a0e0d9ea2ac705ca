"""Compares sizes that follow from the settings with this machine's memory before allocation.

The estimates are lower bounds: what cannot fit is refused, naming the setting that is too large.
Otherwise the system would kill the process without a message.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from fedfr_jax.algorithm.messages import message_size
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.config import Config
from fedfr_jax.data.types import FederatedSplit
from fedfr_jax.errors import ConfigError
from fedfr_jax.population.schedule import Schedule
from fedfr_jax.runtime.counts import counts_of
from fedfr_jax.runtime.footprint import PHASES, TABLES, memory_parts, units_of


def available() -> float:
    """Bytes that this process may still allocate; infinite if the system does not say."""
    found = [math.inf]
    try:
        for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(("MemAvailable:", "SwapFree:")):
                found.append(int(line.split()[1]) * 1024)
        free = sum(found[1:]) or math.inf
    except OSError:
        free = math.inf
    group = pathlib.Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        free = free if limit == "max" else min(free, max(0, int(limit) - used))
    except (OSError, ValueError):
        pass  # no control group, or another kind
    return free


def check_fits(parts: Mapping[str, float], free: float | None = None) -> None:
    """Raises an error if the parts do not fit into memory.

    Args:
      parts: setting -> bytes that follow from it.
      free: available bytes; None: :func:`available`.

    Raises:
      ConfigError: together they need more; it names the largest part.
    """
    free, needed = available() if free is None else free, sum(parts.values())
    if needed > free:
        name = max(parts, key=parts.__getitem__)
        raise ConfigError(
            f"{name}: {_gib(parts[name])} of memory would be needed for it, "
            f"{_gib(needed)} together, but {_gib(free)} are free; lower it "
            "(--dry_run shows all parts, and what would make them fit)"
        )


def check_plan(config: Config) -> None:
    """Refuses a population or schedule that does not fit; before data are opened."""
    check_processes(config, jax.process_count())
    data, clients = config.data, config.fed.num_clients
    images = data.generated.identities * data.generated.images_per_identity[0]
    cohort, rounds = config.population.cohort or clients, config.rounds
    schedule = max(
        {
            "fed.rounds": rounds,
            "population.cohort": config.population.cohort,
            "fed.num_clients": clients,
        }.items(),
        key=lambda item: item[1],
    )[0]
    sizes = {
        "data.generated.identities": 4 * images if data.source == "generated" else 0,
        "fed.num_clients": 48 * clients,
    }
    check_fits(sizes | {schedule: sizes.get(schedule, 0) + 8 * rounds * cohort})


def check_processes(config: Config, processes: int) -> None:
    """Refuses rounds in parts with several processes."""
    if config.engine.part and processes > 1:
        raise ConfigError(
            f"engine.part is {config.engine.part}, but there are {processes} processes, "
            "and only one process can run rounds in parts; set engine.part=0"
        )


def check_images(
    config: Config,
    labels: np.ndarray,
    split: FederatedSplit,
    kind: str,
    schedule: Schedule,
    spec: RoundSpec,
) -> None:
    """Refuses images and clients' states that do not fit; before they are created.

    Working memory of the programs, which only the compiler knows, is not counted.

    Args:
      labels: of the source.
      kind: where training images are, from :func:`fedfr_jax.population.images.choose_kind`.
    """
    # Verification sets, labels and the split are in memory already.
    counts = counts_of(config, labels, split, schedule, schedule.processes, pair_images=0)
    units = units_of(config, spec, counts.public_identities, counts.most_identities)
    # On a CPU every device has its memory in the host's.
    local = counts.local_devices if jax.default_backend() == "cpu" else 0
    parts = [
        part
        for part in memory_parts(config, kind, counts, units, shared=local > 0)
        if not part.returned and part.name != TABLES
    ]
    by_phase = []
    for phase in PHASES:
        sizes: dict[str, float] = {}
        for part in parts:
            if phase in part.phases:
                size = part.host + local * part.device
                sizes[part.setting] = sizes.get(part.setting, 0.0) + size
        by_phase.append(sizes)
    largest = max(by_phase, key=lambda sizes: sum(sizes.values()))
    messages = message_bytes(config, spec, schedule, len(split.public_identities))
    check_fits(largest | {"fed.aggregator": messages})


def message_bytes(
    config: Config, spec: RoundSpec, schedule: Schedule, public_identities: int
) -> int:
    """Bytes of a round's stacked messages, and of one copy in the order of an aggregation rule."""
    if not spec.stacks_messages:
        return 0
    number = 8 if config.model.dtype == "float64" else 4
    clients = schedule.devices * schedule.slots
    return 2 * number * clients * message_size(spec, public_identities)


def say_messages(
    config: Config, spec: RoundSpec, schedule: Schedule, public_identities: int
) -> None:
    """Says what it takes to hold the messages of all clients at once, where that is done."""
    if size := message_bytes(config, spec, schedule, public_identities):
        print(
            f"messages: all differences of a round are held at once, {_gib(size)} for "
            f"{schedule.devices * schedule.slots} clients with a copy"
        )


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB"
