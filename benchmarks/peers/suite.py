"""Suite "peers": the cases, the check of results and the table.

python -m benchmarks.peers.environments
python -m benchmarks.run --suite peers
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import cases
from benchmarks.peers import process
from benchmarks.peers.process import NotRun, Peer
from benchmarks.peers.work import WORKS, Work, images_per_round, make_problem
from benchmarks.problem import relative_difference

CHECKED = 3  # rounds after which final weights are compared
# At the works' own rates rounding grows within three rounds, under a server's Adam above all: the
# same PyTorch loop differs from itself by 1e-2 with another number of threads.
CHECKED_RATE = 0.03  # of the clients' rate
TOLERANCE = 2e-3  # relative L2 of the weights' change

_ONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
OURS = Peer("ours", "", "ours")
LOOP = Peer("PyTorch loop", "pytorch", "pytorch_loop")
LOOP_TWO = Peer(
    "PyTorch loop, 2 processes", "pytorch", "pytorch_loop", dict(processes=2, threads=1), 2, _ONE
)
PFL = Peer("pfl-research", "pfl", "pfl_research")
PFL_TWO = Peer(
    "pfl-research, 2 processes", "pfl", "pfl_research", dict(processes=2, threads=1), 2, _ONE
)
FLOWER = Peer("Flower on Ray", "flower", "flower", dict(actors=2), env=_ONE)
FEDJAX = Peer("FedJAX", "fedjax", "fedjax_rounds", dict(backend="jit"))
FEDJAX_TWO = Peer(
    "FedJAX, 2 devices",
    "fedjax",
    "fedjax_rounds",
    dict(backend="pmap"),
    env={"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
)
BLAZE_THREADS = Peer(
    "BlazeFL, threads", "blazefl", "blazefl_rounds", dict(kind="threads", parallel=2), env=_ONE
)
BLAZE_PROCESSES = Peer(
    "BlazeFL, processes", "blazefl", "blazefl_rounds", dict(kind="processes", parallel=2), env=_ONE
)

PEERS = {
    "cifar10": [OURS, PFL, PFL_TWO, LOOP, LOOP_TWO, FLOWER, FEDJAX, FEDJAX_TWO],
    "five_epochs": [OURS, BLAZE_THREADS, BLAZE_PROCESSES, LOOP_TWO],
    "emnist": [OURS, FEDJAX, FEDJAX_TWO, LOOP_TWO],
}

_COLUMNS = (
    "",
    "start (s)",
    "round (s)",
    "of all cores (s)",
    "{rounds} rounds (s)",
    "ours is x times as fast",
    "images/s",
    "memory (MB)",
    "weights differ",
    "versions",
)


def compare(
    work: Work, peers: Sequence[Peer], rounds: int, seed: int = 0, tolerance: float = TOLERANCE
) -> list[dict[str, Any]]:
    """One row per peer; the first one is what the others are compared with.

    Args:
      rounds: warm rounds that are timed, after the first one.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "problem.npz")
        problem = make_problem(work, max(rounds + 1, CHECKED), seed)
        np.savez(path, **problem)
        start = {k: v for k, v in problem.items() if k.startswith("weights/")}
        start = {k.replace("weights/", "model/"): v for k, v in start.items()}
        images = images_per_round(work, problem)
        slow = dataclasses.replace(work, lr=CHECKED_RATE * work.lr)
        expected = None
        for peer in peers:
            print(f"  {peer.name}", file=sys.stderr, flush=True)
            row: dict[str, Any] = {"name": peer.name}
            rows.append(row)
            try:
                checked = process.run(peer, slow, path, CHECKED, dropout=False)
                found = {f"model/{k}": v for k, v in checked.weights.items()}
                expected = found if expected is None else expected
                row["difference"] = relative_difference(found, expected, start)
                row["differs"] = not row["difference"] <= tolerance
                row |= _timed(process.run(peer, work, path, rounds + 1, dropout=True), work, images)
            except NotRun as error:
                row["not_run"] = str(error)
    return rows


def _timed(run: process.Run, work: Work, images: float) -> dict[str, Any]:
    return {
        "note": run.note,
        "versions": run.versions,
        "start": run.start,
        "rounds": run.rounds,
        "seconds": run.seconds,
        "cpu_seconds": run.cpu,
        "all_seconds": run.start + work.rounds * run.seconds,
        "images_per_second": images / run.seconds,
        "memory": run.memory,
    }


def _cells(row: dict[str, Any], ours: float | None) -> list[str]:
    name = row["name"] + (f" ({row['note']})" if row.get("note") else "")
    difference = f"{row['difference']:.0e}" if "difference" in row else ""
    difference += " **too much**" if row.get("differs") else ""
    if "not_run" in row:
        empty = [""] * (len(_COLUMNS) - 4)
        return [name, f"not run: {row['not_run']}", *empty, difference, ""]
    return [
        name,
        f"{row['start']:.1f}",
        f"{row['seconds']:.2f}",
        f"{row['cpu_seconds']:.2f}",
        f"≈ {row['all_seconds']:,.0f}",
        f"{row['seconds'] / ours:.2f}" if ours else "–",
        f"{row['images_per_second']:,.0f}",
        f"{row['memory'] / 1e6:,.0f}",
        difference,
        ", ".join(f"{k} {v}" for k, v in row["versions"].items()),
    ]


def table(work: Work, rows: Sequence[dict[str, Any]], rounds: int) -> str:
    """Markdown, with what the numbers are."""
    ours = next((r.get("seconds") for r in rows if r["name"] == "ours"), None)
    columns = [c.format(rounds=f"{work.rounds:,}") for c in _COLUMNS]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(_cells(dict(row), ours)) + " |" for row in rows]
    lines += [
        "",
        f"≈: the start plus {work.rounds:,} times the median of {rounds} warm rounds. Weights are "
        f"compared after {CHECKED} rounds without dropout at {CHECKED_RATE:.0%} of the rate, "
        "relative to their change.",
    ]
    return "\n".join(lines)


def peers_case(name: str, settings: cases.Settings) -> cases.Result:
    """A case of the suite."""
    work = WORKS[name]
    chosen = [p for p in PEERS[name] if p is OURS or re.search(settings.competitors, p.name)]
    rows = compare(work, chosen, settings.repeats)
    wrong = [
        f"{r['name']}: weights differ by {r['difference']:.1e}" for r in rows if r.get("differs")
    ]
    if "not_run" in rows[0]:
        wrong.append(f"ours: {rows[0]['not_run']}")
    return {
        "title": work.title,
        "case": dataclasses.asdict(work),
        "rows": [],
        "text": table(work, rows, settings.repeats),
        "wrong": wrong,
        "found": rows,
    }


@cases.case("peers", "cifar10")
def cifar10(settings: cases.Settings) -> cases.Result:
    return peers_case("cifar10", settings)


@cases.case("peers", "five_epochs")
def five_epochs(settings: cases.Settings) -> cases.Result:
    return peers_case("five_epochs", settings)


@cases.case("peers", "emnist")
def emnist(settings: cases.Settings) -> cases.Result:
    return peers_case("emnist", settings)


@cases.case("peers", "fedfr")
def fedfr(settings: cases.Settings) -> cases.Result:
    """A round of FedFR in the authors' formulation: that of suite cpu."""
    return cases.middle(settings)
