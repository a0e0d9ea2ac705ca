"""Runs a peer in a process of its own environment, and watches its memory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
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
      memory: peak of all its processes together, in bytes.
      weights: final, in PyTorch's layout.
    """

    start: float
    rounds: list[float]
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
        memory = _watched(peer, python, str(job), pathlib.Path(folder, "log"), longest)
        found = json.loads(result.read_text(encoding="utf-8"))
        with np.load(result.with_suffix(".npz")) as arrays:
            weights = dict(arrays)
    times, done = np.array([started, *(t for t, _ in found["marks"])]), [0]
    done += [n for _, n in found["marks"]]
    each = np.diff(times)[1:] / np.diff(done)[1:]
    start = times[1] - started - done[1] * statistics.median(each)
    return Run(start, each.tolist(), memory, weights, found["note"], found["versions"])


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


def _watched(peer: Peer, python: str, job: str, log: pathlib.Path, longest: float) -> int:
    """Runs the process; gives the peak memory of it and all that it started."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            peer.command(python, job),
            cwd=ROOT,
            env=_environment(peer),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        peak, deadline = 0, time.monotonic() + longest
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise NotRun(f"not done after {longest:.0f} s")
                peak = max(peak, memory_of(process.pid))
                time.sleep(0.25)
        finally:
            for left in members(process.pid):  # itself after a time-out, and actors left behind
                with contextlib.suppress(ProcessLookupError):
                    os.kill(left, signal.SIGKILL)
            process.wait()
    if process.returncode:
        lines = [l for l in log.read_text(errors="replace").splitlines() if l.strip()]
        print("\n".join(lines[-30:]), file=sys.stderr)
        raise NotRun(_reason(lines) or f"exit code {process.returncode}")
    return peak


def _reason(lines: list[str]) -> str:
    """The last line of an error, as a traceback ends with it."""
    errors = [l for l in lines if "Error" in l.split(":")[0] and not l.startswith(" ")]
    return (errors or lines or [""])[-1][:200]


def members(session: int) -> list[int]:
    """The processes of a session: the one that began it, and those that came from it."""
    found = []
    for folder in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):  # no process, or it ended
            pid, stat = int(folder.name), (folder / "stat").read_text()
            if int(stat.rsplit(")", 1)[1].split()[3]) == session:
                found.append(pid)
    return found


def memory_of(session: int) -> int:
    """Bytes of all processes of a session; what they share is counted once."""
    total = 0
    for pid in members(session):
        with contextlib.suppress(OSError):
            rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += next((int(l.split()[1]) for l in rollup.splitlines() if l[:4] == "Pss:"), 0)
    return total * 1024
