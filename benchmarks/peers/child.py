"""The side of a peer's process: reads the work, notes when rounds end, writes what it found.

    python -m benchmarks.peers.NAME JOB.json

The job names the files; :mod:`benchmarks.peers.suite` writes it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.peers.work import Work


@dataclasses.dataclass
class Job:
    """One run of a peer.

    Attributes:
      work: what to do.
      rounds: how many of the problem's rounds.
      dropout: False to compare results, because random streams differ.
      options: of the peer's own, such as threads.
      marks: (time, rounds done so far), on the clock that all processes share.
    """

    work: Work
    problem: Mapping[str, Any]
    rounds: int
    dropout: bool
    options: Mapping[str, Any]
    marks: list[tuple[float, int]] = dataclasses.field(default_factory=list)

    def mark(self, rounds: int = 1) -> None:
        """Notes that ``rounds`` more rounds are done."""
        done = self.marks[-1][1] if self.marks else 0
        self.marks.append((time.monotonic(), done + rounds))

    @property
    def rates(self) -> tuple[float, float]:
        """Rates of dropout after pooling and after the hidden layer."""
        return self.work.dropout if self.dropout else (0.0, 0.0)


def read_job(path: str) -> tuple[Job, pathlib.Path]:
    """(the job, where its results go)."""
    found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    with np.load(found["problem"]) as arrays:
        problem = dict(arrays)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in found["work"].items()}
    job = Job(Work(**fields), problem, found["rounds"], found["dropout"], found["options"])
    return job, pathlib.Path(found["result"])


def write_result(
    path: pathlib.Path, job: Job, weights: Mapping[str, Any], note: str, packages: Sequence[str]
) -> None:
    """Writes the times as JSON and the final weights beside them."""
    np.savez(path.with_suffix(".npz"), **{k: np.asarray(v) for k, v in weights.items()})
    found = {
        "marks": job.marks,
        "note": note,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    path.write_text(json.dumps(found), encoding="utf-8")


def main(run: Callable[[Job], tuple[Mapping[str, Any], str]], packages: Sequence[str]) -> None:
    """Runs ``run(job)``, which gives (final weights, note), on the job of the command line."""
    job, path = read_job(sys.argv[1])
    weights, note = run(job)
    if os.environ.get("RANK", "0") != "0":  # of several processes, one writes
        return
    write_result(path, job, weights, note, packages)
