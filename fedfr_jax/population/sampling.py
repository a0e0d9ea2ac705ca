"""Which clients take part in which round, and on which device.

Everything here is decided before a run, on the host, only from the seed and the round number:
a resumed or extended run has the same cohorts.
"""

from __future__ import annotations

import dataclasses
import heapq
import json
import os
import pathlib

import numpy as np

from fedfr_jax.data.arrays import load_array
from fedfr_jax.errors import InputError
from fedfr_jax.settings import PopulationConfig

_STREAM = 0xC0_40_27  # separates these random streams from others of the same seed
_DROPOUT = 0xD2_0B
_ORDER = 0xC1_C1


def sample_cohorts(
    population: int,
    rounds: int,
    settings: PopulationConfig | int,
    *,
    seed: int,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Returns (rounds, cohort) int64 client ids, ascending in each round, -1 (none) last.

    ``uniform`` draws without replacement. ``weighted`` draws one client after the other, each with
    probability proportional to its weight among those not yet drawn; clients of weight 0 never
    take part. ``poisson`` draws each client independently of the others, ``cohort`` of them on
    average; rounds are then as wide as the largest. ``cyclic`` takes the next ``cohort`` clients of
    an order that is drawn once, and starts over at its end. ``schedule`` reads a file, see
    :func:`read_schedule`, and starts over at its end; ``cohort`` 0 then means the largest round of
    the file. If fewer clients than ``cohort`` can take part, the rest of the round is -1; so are
    clients whose turn it is (``cyclic``, ``schedule``) and who are not available.

    Args:
      population: number of clients.
      rounds: number of rounds; more rounds do not change the first ones.
      settings: ``cohort`` (0 = all), ``sampling``, ``schedule`` and ``availability``, the path of a
        .npy bool array (T, population) whose row ``r % T`` says who is available in round r. A
        number is that cohort, drawn uniformly.
      seed: whole number >= 0.
      weights: (population,) >= 0, for ``weighted``.

    Raises:
      InputError: a setting, a file or a weight cannot be used.
    """
    if isinstance(settings, int):
        settings = PopulationConfig(cohort=settings)
    if settings.cohort < 0 or settings.cohort > population:
        raise InputError(
            f"population.cohort: {settings.cohort}; must be between 0 (all) and the {population} "
            "clients of the population"
        )
    available = _read_availability(settings.availability, population)
    if settings.sampling == "schedule":
        return _scheduled(population, rounds, settings, available)
    if settings.sampling == "cyclic":
        return _cyclic(population, rounds, settings.cohort or population, seed, available)
    if settings.sampling not in {"uniform", "poisson", "weighted"}:
        raise InputError(
            f"population.sampling: {settings.sampling!r}; must be uniform, poisson, weighted, "
            "cyclic or schedule"
        )
    rates = _weights(weights, population) if settings.sampling == "weighted" else None
    size = settings.cohort or population
    drawn = []
    for r in range(rounds):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM, r)))
        mask = None if available is None else available[r % len(available)]
        count = size
        if settings.sampling == "poisson":
            # So many of those who can take part, and then any of them: the same distribution.
            count = rng.binomial(population if mask is None else mask.sum(), size / population)
        drawn.append(np.sort(_draw(population, count, rates, mask, rng)))
    if settings.sampling == "poisson":
        size = max(1, *map(len, drawn))
    cohorts = np.full((rounds, size), -1, np.int64)
    for row, ids in zip(cohorts, drawn, strict=True):
        row[: len(ids)] = ids
    return cohorts


def drop_out(cohorts: np.ndarray, share: float, *, seed: int) -> np.ndarray:
    """(rounds, cohort) the cohorts without the clients that fail before they train.

    Args:
      cohorts: from :func:`sample_cohorts`.
      share: probability that a client fails, anew in every round.
      seed: whole number >= 0; more rounds do not change the first ones.
    """
    if not share:
        return cohorts
    left = np.full_like(cohorts, -1)
    for r, (row, new) in enumerate(zip(cohorts, left, strict=True)):
        ids = row[row >= 0]
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_DROPOUT, r)))
        ids = ids[rng.random(len(ids)) >= share]
        new[: len(ids)] = ids
    return left


def read_schedule(path: str | os.PathLike, population: int) -> list[np.ndarray]:
    """Reads which clients take part in which round.

    The file is a .npy array of whole numbers (rounds, n), in which -1 means no client; or JSON, a
    list of lists, one per round; or text, one line per round: ids separated by blanks or commas, or
    a JSON list. Empty lines are ignored, ``[]`` is a round without clients.

    Returns:
      One array of ids per round, ascending.

    Raises:
      InputError: the file cannot be read, or an id is out of range or repeats within a round.
    """
    lists = _schedule_array(path) if str(path).endswith(".npy") else _schedule_text(path)
    if not lists:
        raise InputError(f"{path}: the schedule has no rounds")
    schedule = []
    for r, ids in enumerate(lists):
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise InputError(f"{path}: round {r}: client ids must be whole numbers")
        wrong = [i for i in ids if not -1 <= i < population]
        if wrong:
            raise InputError(
                f"{path}: round {r}: client {wrong[0]} is not among the {population} clients"
            )
        present = np.sort(np.array([i for i in ids if i >= 0], np.int64))
        repeated = present[1:][present[1:] == present[:-1]]
        if len(repeated):
            raise InputError(f"{path}: round {r}: client {repeated[0]} occurs more than once")
        schedule.append(present)
    return schedule


def assign(
    clients: np.ndarray,
    work: np.ndarray,
    *,
    devices: int,
    slots: int | None = None,
    processes: int = 1,
) -> np.ndarray:
    """Assigns the clients of one round to devices, so that all have about the same work.

    The clients with the most work come first, each goes to the least loaded device with a free
    slot; ties go to the smaller client id and the first device. Client i belongs to process
    ``i % processes``, whose devices are the p-th block of ``devices / processes``: that process
    stores its row.

    Args:
      clients: (n,) ids; -1 means none.
      work: (n,) of each client, such as its number of steps.
      devices: number of devices of all processes, a multiple of ``processes``.
      slots: clients per device, see :func:`needed_slots`. None: enough for (n,) clients of
        one process, so that rounds of the same n have the same shapes.
      processes: number of processes.

    Returns:
      (devices * slots,) int64: device k has [k * slots, (k + 1) * slots), the client with the
      most work first; -1 is empty.

    Raises:
      ValueError: shapes do not match, or a process has more clients than slots.
    """
    clients, work = np.asarray(clients, np.int64), np.asarray(work, np.float64)
    if clients.ndim != 1 or clients.shape != work.shape:
        raise ValueError(f"clients {clients.shape} and work {work.shape} must both be (n,)")
    block = _block(devices, processes)
    if slots is None:
        if processes > 1:
            raise ValueError("slots: with several processes, give needed_slots(...)")
        slots = max(1, -(-len(clients) // devices))
    placed = np.full((devices, slots), -1, np.int64)
    filled = [0] * devices
    heaps = [[(0.0, p * block + k) for k in range(block)] for p in range(processes)]
    for i in np.lexsort((clients, -work)):
        client = int(clients[i])
        if client < 0:
            continue
        heap = heaps[client % processes]
        if not heap or not slots:
            raise ValueError(f"{slots} slots on {block} devices are too few for a process's share")
        load, device = heapq.heappop(heap)
        placed[device, filled[device]] = client
        filled[device] += 1
        if filled[device] < slots:
            heapq.heappush(heap, (load + float(work[i]), device))
    return placed.reshape(-1)


def needed_slots(cohorts: np.ndarray, devices: int, processes: int = 1) -> int:
    """Returns the fewest slots per device, at least 1, that hold every round of (rounds, n) ids.

    Raises:
      ValueError: ``devices`` is not a multiple of ``processes``.
    """
    block = _block(devices, processes)
    present = cohorts >= 0
    most = max(
        (present & (cohorts % processes == p)).sum(axis=1).max(initial=0) for p in range(processes)
    )
    return max(1, -(-int(most) // block))


def _block(devices: int, processes: int) -> int:
    if processes < 1 or devices < 1 or devices % processes:
        raise ValueError(f"{devices} devices cannot be shared evenly by {processes} processes")
    return devices // processes


@dataclasses.dataclass(frozen=True)
class _Weights:
    """(population,) weights of clients and their running sums."""

    each: np.ndarray
    sums: np.ndarray


def _weights(weights: np.ndarray | None, population: int) -> _Weights:
    if weights is None:
        raise InputError("population.sampling: weighted needs weights, and there are none")
    weights = np.asarray(weights, np.float64)
    if weights.shape != (population,):
        raise InputError(f"weights of clients: {weights.shape}; must be ({population},)")
    with np.errstate(over="ignore"):  # infinite, refused below
        sums = np.cumsum(weights)
    if not (weights >= 0).all() or not 0 < sums[-1] < np.inf:
        raise InputError("weights of clients: must be >= 0 and finite, and not all 0")
    return _Weights(weights, sums)


def _draw(
    population: int,
    size: int,
    weights: _Weights | None,
    available: np.ndarray | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """Returns up to ``size`` distinct clients: successive sampling without replacement.

    Proposals that repeat or are not available are skipped. If ``population / 8`` proposals are
    not enough, all remaining clients take part in a race, which costs about as much. The next
    client in a race depends, like a proposal, only on the remaining clients, so the switch
    introduces no bias.
    """
    if weights is None and available is None:
        return rng.choice(population, size, replace=False, shuffle=False)
    drawn = np.zeros(0, np.int64)
    budget, count = population // 8, 2 * size
    while len(drawn) < size and count <= budget:
        new = _propose(population, count, weights, rng)
        if available is not None:
            new = new[available[new]]
        drawn = _distinct(np.concatenate([drawn, new]))[:size]
        budget, count = budget - count, 2 * count
    if len(drawn) < size:
        left = np.ones(population, bool) if available is None else np.array(available)
        left[drawn] = False
        drawn = np.concatenate([drawn, _race(left, size - len(drawn), weights, rng)])
    return drawn


def _propose(
    population: int, count: int, weights: _Weights | None, rng: np.random.Generator
) -> np.ndarray:
    if weights is None:
        return rng.integers(population, size=count)
    # side="right": a client of weight 0 has an empty interval.
    found = np.searchsorted(weights.sums, rng.random(count) * weights.sums[-1], side="right")
    return found[found < population]  # a product that was rounded up to the total


def _distinct(ids: np.ndarray) -> np.ndarray:
    """Returns ``ids`` without repeats, in the order of first occurrence."""
    return ids[np.sort(np.unique(ids, return_index=True)[1])]


def _race(
    left: np.ndarray, count: int, weights: _Weights | None, rng: np.random.Generator
) -> np.ndarray:
    """Returns up to ``count`` of the clients in the mask ``left``.

    Each arrives after an exponential time with its weight as the rate; the order of arrival is
    distributed like successive draws proportional to the weights.
    """
    left = np.flatnonzero(left if weights is None else left & (weights.each > 0))
    arrival = np.log(rng.standard_exponential(len(left)))
    if weights is not None:
        arrival -= np.log(weights.each[left])
    return left[np.argpartition(arrival, count - 1)[:count]] if count < len(left) else left


def _read_availability(path: str, population: int) -> np.ndarray | None:
    """Returns (T, population) bool, memory-mapped, or None."""
    if not path:
        return None
    available = load_array(path, in_memory=False)
    if available.dtype != bool or available.ndim != 2 or not len(available):
        raise InputError(
            f"{path}: population.availability: {available.dtype}{list(available.shape)}; must be "
            "bool (rounds, clients)"
        )
    if available.shape[1] != population:
        raise InputError(
            f"{path}: population.availability: for {available.shape[1]} clients, the population "
            f"has {population}"
        )
    return available


def _cyclic(
    population: int, rounds: int, size: int, seed: int, available: np.ndarray | None
) -> np.ndarray:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_ORDER,)))
    order = rng.permutation(population)
    cohorts = np.full((rounds, size), -1, np.int64)
    for r, row in enumerate(cohorts):
        ids = np.sort(order[(r * size + np.arange(size)) % population])
        if available is not None:
            ids = ids[available[r % len(available)][ids]]
        row[: len(ids)] = ids
    return cohorts


def _scheduled(
    population: int, rounds: int, settings: PopulationConfig, available: np.ndarray | None
) -> np.ndarray:
    if not settings.schedule:
        raise InputError("population.schedule: sampling schedule needs the path of a file")
    schedule = read_schedule(settings.schedule, population)
    largest = int(np.argmax([len(ids) for ids in schedule]))
    size = settings.cohort or len(schedule[largest])
    if size < len(schedule[largest]):
        raise InputError(
            f"population.cohort: {size}, but round {largest} of {settings.schedule} has "
            f"{len(schedule[largest])} clients; raise it, or 0 for as many as the file asks for"
        )
    cohorts = np.full((rounds, size), -1, np.int64)
    for r, row in enumerate(cohorts):
        ids = schedule[r % len(schedule)]
        if available is not None:
            ids = ids[available[r % len(available)][ids]]
        row[: len(ids)] = ids
    return cohorts


def _schedule_array(path: str | os.PathLike) -> list[list[int]]:
    array = load_array(path)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise InputError(
            f"{path}: {array.dtype}{list(array.shape)}; a schedule must be whole "
            "numbers (rounds, n)"
        )
    return array.tolist()


def _schedule_text(path: str | os.PathLike) -> list[list[int]]:
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a schedule: {error}") from error
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, list) and all(isinstance(ids, list) for ids in whole):
        return whole
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [_schedule_line(path, r, line) for r, line in enumerate(lines)]


def _schedule_line(path: str | os.PathLike, r: int, line: str) -> list[int]:
    try:
        if line.startswith("["):
            return json.loads(line)
        return [int(word) for word in line.replace(",", " ").split()]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: round {r}: {line[:60]!r} is no list of client ids") from error
