"""Runs competitors on one problem: checks equal results first, then times them interleaved."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.problem import relative_difference
from benchmarks.worker import Failed, Process

TOLERANCE = 1e-3  # relative L2 of the update, float32

# The compile time is measured, so the cache of compiled programs must be off; and several
# processes must fit on a GPU.
_ENV = {"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


@dataclasses.dataclass(frozen=True)
class Competitor:
    """One way to do the work.

    Attributes:
      name: in tables; the others are compared with ``ours``.
      target: ``module:function`` of ``(case, problem, **options)`` giving a ``Built``.
      processes: number of processes that share the clients.
      repeats: warm rounds; None: as many as set for the run.
      tolerance: of the update against the first competitor's; None: only reported.
      may_fail: running out of memory is a result here, not an error of the run.
    """

    name: str
    target: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    processes: int = 1
    repeats: int | None = None
    tolerance: float | None = TOLERANCE
    may_fail: bool = False
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def dtype(self) -> str:
        return self.options.get("dtype", "float32")


class _Running:
    """The processes of a competitor and its results so far."""

    def __init__(self, competitor: Competitor, case: Any, path: str):
        self.competitor, self.seconds, self.error = competitor, [], ""
        self.processes, self.first = [], {}
        count = competitor.processes
        try:
            for i in range(count):
                self.processes.append(
                    Process(
                        competitor.target,
                        (case, path, competitor.options, (i, count)),
                        _ENV | dict(competitor.env),
                    )
                )
            for process in self.processes:
                process.receive()
            self.first = _merged(self._ask("first"))
        except Failed as error:
            self._fail(error)

    def _ask(self, request: str) -> list[Any]:
        for process in self.processes:
            process.send(request)
        return [process.receive() for process in self.processes]

    def _fail(self, error: Failed) -> None:
        self.error = str(error)
        print(f"  {self.competitor.name}: {error}", file=sys.stderr, flush=True)

    def round(self) -> None:
        """One warm round; several processes count until the last one is done."""
        if self.error:
            return
        started = time.perf_counter()
        try:
            own = self._ask("round")
        except Failed as error:
            self._fail(error)
            return
        self.seconds.append(own[0] if len(own) == 1 else time.perf_counter() - started)

    def stop(self) -> None:
        """Ends the processes, after reading their peak memory."""
        try:
            if not self.error:
                peaks = self._ask("memory")
                self.first["memory"] = {k: sum(p[k] for p in peaks) for k in peaks[0]}
        except Failed as error:
            self._fail(error)
        for process in self.processes:
            process.stop()


def _merged(firsts: list[dict[str, Any]]) -> dict[str, Any]:
    """Merges the answers of one competitor's processes; client arrays are interleaved."""
    if len(firsts) == 1:
        return firsts[0]
    updates = [f["update"] for f in firsts]
    sizes = np.array([f["images"] for f in firsts], float)

    def join(name):
        arrays = [u[name] for u in updates]
        if not name.startswith("client/"):
            return np.tensordot((sizes / sizes.sum()).astype(np.float32), np.stack(arrays), 1)
        out = np.empty((sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
        for i, array in enumerate(arrays):
            out[i :: len(arrays)] = array
        return out

    return firsts[0] | {
        "seconds": max(f["seconds"] for f in firsts),
        "images": int(sizes.sum()),
        "update": {name: join(name) for name in updates[0]},
    }


def compare(
    case: Any,
    path: str,
    start: Mapping[str, np.ndarray],
    macs: int,
    competitors: Sequence[Competitor],
    *,
    repeats: int,
    peaks: Mapping[str, float],
    together: bool = True,
) -> list[dict[str, Any]]:
    """One row per competitor.

    Args:
      case: has ``trained_images`` and ``clients``.
      path: of the problem's arrays.
      start: the arrays that a round changes, before the round.
      macs: multiply-adds of a forward pass of one image.
      repeats: warm rounds of each.
      peaks: FLOP/s by type.
      together: rounds of all competitors take turns, so that a slow minute of the machine affects
        all of them; False runs one after another, because only one fits on a GPU.
    """
    finished = []
    for group in [competitors] if together else [[c] for c in competitors]:
        running = [_started(c, case, path) for c in group]
        try:
            for index in range(repeats):
                for r in running:
                    limit = r.competitor.repeats
                    if limit is None or index < limit:
                        r.round()
        finally:
            for r in running:
                r.stop()
        finished += running
    reference = next(
        (
            r.first["update"]
            for r in finished
            if r.first.get("update") and "expected" not in r.first
        ),
        None,
    )
    return [_row(r, case, start, macs, reference, peaks) for r in finished]


def _started(competitor: Competitor, case: Any, path: str) -> _Running:
    running = _Running(competitor, case, path)
    if not running.error:
        print(
            f"  {competitor.name}: first round {running.first['seconds']:.2f} s",
            file=sys.stderr,
            flush=True,
        )
    return running


def _row(running: _Running, case, start, macs, reference, peaks) -> dict[str, Any]:
    competitor, first = running.competitor, running.first
    row = {
        "name": competitor.name,
        "dtype": competitor.dtype,
        "error": running.error,
        "may_fail": competitor.may_fail,
        "note": first.get("note", ""),
    }
    if running.error:
        return row
    row |= {"memory": first["memory"], "first_seconds": first["seconds"]}
    update = first["update"]
    if update and (reference is not None or "expected" in first):
        row["difference"] = relative_difference(update, first.get("expected", reference), start)
        row["differs"] = bool(
            competitor.tolerance is not None and not row["difference"] <= competitor.tolerance
        )
    if not running.seconds:
        return row
    seconds, images = statistics.median(running.seconds), first["images"]
    speed = images / seconds
    trained, done = (2 * macs * units * speed for units in (3.0, first["units"]))
    return row | {
        "measured_seconds": running.seconds,
        "compile_seconds": first["seconds"] - seconds,
        "extrapolated": images != case.trained_images,
        "seconds": case.trained_images / speed,
        "images_per_second": speed,
        "clients_per_second": case.clients * speed / case.trained_images,
        "flops_trained": trained,
        "flops_with_frozen_forwards": done,
        "share_of_peak": done / peaks[competitor.dtype] if peaks else None,
    }


def bad(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Reasons for the run to fail: different updates and failed competitors."""
    return [
        f"{r['name']}: " + (r["error"] or f"update differs by {r['difference']:.1e}")
        for r in rows
        if r.get("differs") or (r["error"] and not r["may_fail"])
    ]
