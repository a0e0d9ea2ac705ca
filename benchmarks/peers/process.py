"""Runs a peer in a process of its own environment, and watches its memory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks.peers.environments import ROOT, python_of
from benchmarks.peers.work import Work

LONGEST = 1200.0  # seconds that one run of a peer may take


class NotRun(RuntimeError):
    """A peer has no environment, or did not run to its end; the message says why."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """One way to do the work.

    Attributes:
      environment: of :mod:`benchmarks.peers.environments`; "" is the running Python.
      module: of ``benchmarks.peers``.
      options: passed to the module.
      launched: processes under ``torch.distributed.run``; 0 starts the module itself.
      env: more environment variables.
    """

    name: str
    environment: str
    module: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    launched: int = 0
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def command(self, python: str, job: str) -> list[str]:
        launcher = [
            "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.launched}",
        ]  # fmt: skip
        return [
            python,
            *(launcher if self.launched else []),
            "-m",
            f"benchmarks.peers.{self.module}",
            job,
        ]


@dataclasses.dataclass(frozen=True)
class Run:
    """What a peer's process found.

    Attributes:
      start: seconds from the start of the process to the end of the first rounds, less the time
        of as many warm rounds: imports, set-up and compilation.
      rounds: seconds per round of all others.
      cpu: seconds of all cores per round of them: less than the clock's, it hardly grows when
        something else runs on the machine.
      memory: peak of all its processes together, in bytes.
      weights: final, in PyTorch's layout.
    """

    start: float
    rounds: list[float]
    cpu: float
    memory: int
    weights: dict[str, np.ndarray]
    note: str
    versions: dict[str, str]

    @property
    def seconds(self) -> float:
        """Of a warm round: the median."""
        return statistics.median(self.rounds)


def run(
    peer: Peer, work: Work, problem: str, rounds: int, dropout: bool, longest: float = LONGEST
) -> Run:
    """Runs a peer to its end.

    Args:
      problem: file of the arrays.
      rounds: how many of its rounds; at least 2, because the first one is not counted.

    Raises:
      NotRun: with the reason.
    """
    python = str(python_of(peer.environment) or "") if peer.environment else sys.executable
    if not python:
        raise NotRun(
            f"no environment; make it: python -m benchmarks.peers.environments {peer.environment}"
        )
    with tempfile.TemporaryDirectory() as folder:
        job, result = pathlib.Path(folder, "job.json"), pathlib.Path(folder, "result.json")
        given = {
            "work": dataclasses.asdict(work),
            "problem": problem,
            "rounds": rounds,
            "dropout": dropout,
            "options": dict(peer.options),
            "result": str(result),
        }
        job.write_text(json.dumps(given), encoding="utf-8")
        started = time.monotonic()
        memory, used = _watched(peer, python, str(job), pathlib.Path(folder, "log"), longest)
        found = json.loads(result.read_text(encoding="utf-8"))
        with np.load(result.with_suffix(".npz")) as arrays:
            weights = dict(arrays)
    times, done = np.array([started, *(t for t, _ in found["marks"])]), [0]
    done += [n for _, n in found["marks"]]
    each = np.diff(times)[1:] / np.diff(done)[1:]
    start = times[1] - started - done[1] * statistics.median(each)
    # Warm rounds last from the end of the first one to the end of the last.
    cpu = np.diff(np.interp(times[[1, -1]], *np.transpose(used)))[0] / (done[-1] - done[1])
    return Run(start, each.tolist(), float(cpu), memory, weights, found["note"], found["versions"])


def _environment(peer: Peer) -> dict[str, str]:
    """Its own Python alone: not the packages and not the compiled programs of this one."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JAX_", "XLA_"))}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # compilation is part of the start
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TQDM_DISABLE": "1",
        **peer.env,
    }


def _watched(
    peer: Peer, python: str, job: str, log: pathlib.Path, longest: float
) -> tuple[int, list[tuple[float, float]]]:
    """Runs the process; gives the peak memory of it and all that it started, and (time, CPU)."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            peer.command(python, job),
            cwd=ROOT,
            env=_environment(peer),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        peak, deadline, seen = 0, time.monotonic() + longest, {}
        ticks, used = {}, [(time.monotonic(), 0.0)]
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise NotRun(f"not done after {longest:.0f} s")
                running = members(process.pid)
                seen |= running
                peak = max(peak, memory_of(running))
                ticks |= {p: sum(map(int, s[11:13])) for p in running if (s := _stat(p))}
                used.append((time.monotonic(), sum(ticks.values()) / os.sysconf("SC_CLK_TCK")))
                time.sleep(0.25)
        finally:
            for pid, began in seen.items():  # itself after a time-out, and actors left behind
                if _began(pid) == began:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        lines = [l for l in log.read_text(errors="replace").splitlines() if l.strip()]
        print("\n".join(lines[-30:]), file=sys.stderr)
        raise NotRun(_reason(lines) or f"exit code {process.returncode}")
    return peak, used


def _reason(lines: list[str]) -> str:
    """The line that names the error; torch.distributed.run adds one of its own at the end."""
    named = [
        l for l in lines if re.match(r"(\[rank\d+\]: )?[\w.]+(Error|Exception|Iteration)\b", l)
    ]
    own = [l for l in named if "ChildFailedError" not in l]
    return (own or named or lines or [""])[-1][:200]


def _stat(pid: int) -> list[str]:
    """The fields of a process that follow its name; none if it ended."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rsplit(")", 1)[1].split()


def _began(pid: int) -> str:
    """When a process began, which tells it from a later one with the same number."""
    return (_stat(pid) or [""] * 20)[19]


def members(root: int) -> dict[int, str]:
    """A process, its session and all that came from them, each with the time at which it began."""
    stats = {int(f.name): _stat(int(f.name)) for f in pathlib.Path("/proc").glob("[0-9]*")}
    found = {p for p, s in stats.items() if s and (p == root or int(s[3]) == root)}
    while more := {p for p, s in stats.items() if s and p not in found and int(s[1]) in found}:
        found |= more
    return {p: stats[p][19] for p in found}


def memory_of(pids: Iterable[int]) -> int:
    """Bytes of processes; what they share is counted once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += next((int(l.split()[1]) for l in rollup.splitlines() if l[:4] == "Pss:"), 0)
    return total * 1024
