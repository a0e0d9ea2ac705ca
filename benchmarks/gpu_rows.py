"""Rows of suite gpu, as functions that a long-lived process runs one after another.

One process for all of JAX's rows starts the GPU once; only the competitor built last is kept.
"""

from __future__ import annotations

import collections
import glob
import gzip
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks import problem as problems
from benchmarks.problem import Built, Case, Workload
from benchmarks.worker import build, memory

ROOT = pathlib.Path(__file__).resolve().parents[1]
_last: dict[str, Any] = {}


def write_workload(workload: Workload, path: str) -> None:
    np.savez(path, **problems.workload_problem(workload))


def write_problem(case: Case, path: str) -> None:
    from benchmarks import plain_jax  # noqa: PLC0415  (it starts JAX)

    plain_jax.problem(case, path)


def _built(target: str, case: Any, path: str, options: Mapping[str, Any]) -> Built:
    """The competitor; the one before is dropped first, because it holds memory."""
    wanted = (target, path, repr(sorted(options.items())))
    if _last.get("of") != wanted:
        _last.clear()
        _last.update(built=build(target, case, path, options), of=wanted)
    return _last["built"]


def timed(
    target: str, case: Any, path: str, options: Mapping[str, Any], repeats: int
) -> dict[str, Any]:
    """First and warm rounds of a competitor. The first one has its plan and compilation in it."""
    started = time.perf_counter()
    built = _built(target, case, path, options)
    built.run()
    first, seconds = time.perf_counter() - started, []
    for _ in range(repeats):
        started = time.perf_counter()
        built.run()
        seconds.append(time.perf_counter() - started)
    warm = statistics.median(seconds)
    return {
        "note": built.note,
        "first_seconds": first,
        "measured_seconds": seconds,
        "seconds": warm * case.trained_images / built.images,
        "images_per_second": built.images / warm,
        "memory": memory(),
    }


def profiled(
    target: str, case: Any, path: str, options: Mapping[str, Any], top: int = 20
) -> dict[str, Any]:
    """Time of each kernel in one warm round, longest first."""
    import jax  # noqa: PLC0415  (only the process of the rows starts JAX)

    built = _built(target, case, path, options)
    built.run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            started = time.perf_counter()
            built.run()
            seconds = time.perf_counter() - started
        files = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
        events = []
        for name in files:
            with gzip.open(name, "rt", encoding="utf-8") as file:
                events += json.load(file)["traceEvents"]
    totals = kernel_totals(events)
    if not totals:
        return {"error": f"the profile has {len(events)} events, and none of a device's kernel"}
    kernels = [
        {"kernel": name, "seconds": total, "calls": calls}
        for name, (total, calls) in list(totals.items())[:top]
    ]
    busy = sum(total for total, _ in totals.values())
    return {"round_seconds": seconds, "busy_seconds": busy, "kernels": kernels}


def kernel_totals(events: Iterable[Mapping[str, Any]]) -> dict[str, tuple[float, int]]:
    """(seconds, calls) by name, the longest first, from the events of a trace.

    On a GPU these are the events of its streams. On a CPU they are those that carry the name of an
    operation of XLA; a loop counts there in addition to what it runs.
    """
    events = list(events)
    names = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    threads = {
        (e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"
    }
    found: dict[str, list[float]] = collections.defaultdict(list)
    on_gpu = any("/device:GPU" in n for n in names.values())
    for event in events:
        if event.get("ph") != "X":
            continue
        operation = event.get("args", {}).get("hlo_op")
        thread = threads.get((event.get("pid"), event.get("tid")), "")
        if on_gpu and "/device:GPU" in names.get(event["pid"], "") and "Stream" in thread:
            found[event["name"]].append(event["dur"])
        elif not on_gpu and operation:
            found[operation].append(event["dur"])
    order = sorted(found, key=lambda name: -sum(found[name]))
    return {name: (sum(found[name]) / 1e6, len(found[name])) for name in order}


def forms_of_a_layer(
    lanes: int, batch: int, side: int, channels: tuple[int, int], stride: int, repeats: int
) -> dict[str, Any]:
    """Seconds of a 3x3 convolution of clients with their own weights, in bfloat16, by form.

    Forward and both gradients; 20 of them are queued for a time, and the fastest time counts.
    """
    import jax  # noqa: PLC0415  (only the process of the rows starts JAX)
    import jax.numpy as jnp  # noqa: PLC0415

    from fedfr_jax.engine.layer_rule import form_of  # noqa: PLC0415
    from fedfr_jax.engine.layered import layered  # noqa: PLC0415

    rng, calls, found = np.random.default_rng(0), 20, {}
    shapes = (
        (lanes, batch, side, side, channels[0]),
        (lanes, 3, 3, *channels),
        (lanes, batch, -(-side // stride), -(-side // stride), channels[1]),
    )
    operands = [jnp.asarray(rng.standard_normal(s, np.float32), jnp.bfloat16) for s in shapes]
    for form in ("grouped", "patches", "apart"):

        def one(x, kernel, dy, form=form):
            y, pull = jax.vjp(
                lambda x, k: layered(x, k, stride, 1, 1, lambda *a, **b: form), x, kernel
            )
            return y, *pull(dy)

        run = jax.jit(jax.vmap(one))
        jax.block_until_ready(run(*operands))
        times = []
        for _ in range(max(3, repeats)):
            started = time.perf_counter()
            for _ in range(calls):
                last = run(*operands)
            jax.block_until_ready(last)
            times.append((time.perf_counter() - started) / calls)
        found[form] = min(times)
    return {"forms": found, "rule": form_of(lanes, batch, side, channels, stride=stride)}


def first_round(arguments: list[str], longest: float) -> dict[str, Any]:
    """Seconds from the start of ``fedfr_jax.train`` to the end of a run of one round.

    Plans and compiled programs of earlier runs are not used: it is what a new user waits for.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fedfr_jax.train", *arguments]
        command += [f"--workdir={folder}/run", "--config.fed.rounds=1"]
        alone = {
            "FEDFR_PLANS": f"{folder}/plans.json",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        started = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | alone,
            capture_output=True,
            text=True,
            timeout=longest,
            check=False,
        )
        seconds = time.perf_counter() - started
    if done.returncode:
        lines = [*done.stderr.strip().splitlines(), f"exit code {done.returncode}"]
        return {"error": lines[-2][:200] if len(lines) > 1 else lines[0]}
    return {"first_seconds": seconds, "note": "whole run of one round, with its report"}
