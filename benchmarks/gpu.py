"""Suite gpu within a budget: the most telling rows first, and every one written when it is done.

    python -m benchmarks.run --suite gpu --budget 360 --json runs/bench-gpu.json

A row whose estimate does not fit what is left is skipped, and one that overruns is killed. JAX's
rows share one process, PyTorch's another. ``--small`` runs tiny shapes on any device, to try it.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.machine import has_torch
from benchmarks.problem import WORKLOADS, Case, Workload, large_case
from benchmarks.worker import Failed, Late, Process

_ROWS = "benchmarks.gpu_rows"
_OURS, _TORCH = "benchmarks.ours", "benchmarks.torch_fedfr"
_ENV = {"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


# Layouts beside the one that is found, for batch 16.
ALTERNATIVES = {
    "grouped, 1 lane": {"conv": "grouped", "lanes": 1},
    "layered, 16 lanes": {"conv": "layered", "lanes": 16},
    "layered, 4 lanes": {"conv": "layered", "lanes": 4},
    "patches, 16 lanes": {"conv": "patches", "lanes": 16},
    "4 lanes as copies": {"conv": "grouped", "lanes": 4, "unroll": True},
}
# Clients, batch, map, channels and stride of the 3x3 convolutions of SphereNet-20 at 112 pixels.
LAYERS = (
    (16, 16, 56, (64, 64), 1),
    (16, 16, 28, (128, 128), 1),
    (4, 64, 28, (128, 128), 1),
    (16, 16, 14, (256, 256), 1),
    (16, 16, 7, (512, 512), 1),
    (16, 16, 56, (64, 128), 2),
)


@dataclasses.dataclass(frozen=True)
class Item:
    """One row.

    Attributes:
      process: the process that runs it; rows with the same name share one.
      estimate: seconds it takes, generously: with less left it is not begun.
    """

    name: str
    process: str
    target: str
    arguments: tuple[Any, ...]
    estimate: float


def _small(case: Case) -> Case:
    narrow = {} if case.model != "spherenet" else dict(depth=10, widths=(4, 4, 8, 8))
    return dataclasses.replace(
        case, size=32, batch=4, clients=2, images=6, public=2, embedding=8, epochs=1, **narrow
    )


def items(folder: str, repeats: int = 3, small: bool = False) -> list[Item]:
    """All rows, in their order.

    Args:
      folder: for the problems' arrays.
      repeats: warm rounds.
    """
    workload = dataclasses.replace(WORKLOADS["A"], clients=4 if small else 64)
    lanes = (2, 1) if small else (64, 16, 1)
    cases = {
        "SphereNet-20, batch 16": large_case(16, 32),
        "MobileFaceNet, batch 16": large_case(16, 32, "mobilefacenet", embedding=128),
        "SphereNet-20, batch 256": large_case(256, 4),
    }
    cases = {name: _small(case) if small else case for name, case in cases.items()}
    found = _workload_items(workload, os.path.join(folder, "A.npz"), lanes, repeats)
    for name, case in cases.items():
        path = os.path.join(folder, f"{len(found)}.npz")
        first = name.endswith("Net-20, batch 16")
        found += _case_items(name, case, path, repeats, first)
        if first:
            found += [_layer_item(*layer, repeats=repeats, small=small) for layer in LAYERS]
    rounds = ["--config=configs/quickstart.py"]
    if small:
        rounds += [
            *("--config.data.generated.identities=60", "--config.data.split.public_identities=8"),
            *("--config.data.split.held_out_identities=8", "--config.fed.num_clients=2"),
            "--config.pretrain.epochs=1",
        ]
    first = (rounds, 240.0)
    found.append(Item("first round of quickstart", "train", f"{_ROWS}:first_round", first, 120))
    return found


def _layer_item(
    lanes: int, batch: int, side: int, channels: tuple[int, int], stride: int, **how: Any
) -> Item:
    """Every form of a layer, to check the rule of ``engine.conv=layered``."""
    small = how.pop("small")
    if small:
        lanes, batch, side, channels = 2, 2, 8, (4, 4)
    name = f"{side}², {channels[0]}→{channels[1]}, stride {stride}, {lanes} clients × {batch}"
    given = (lanes, batch, side, channels, stride, how["repeats"])
    return Item(f"forms of a layer: {name}", "jax", f"{_ROWS}:forms_of_a_layer", given, 20)


def _workload_items(
    workload: Workload, path: str, lanes: Sequence[int], repeats: int
) -> list[Item]:
    title = f"workload A, {workload.clients} clients"
    found = [Item(f"{title}: arrays", "jax", f"{_ROWS}:write_workload", (workload, path), 10)]
    for n in lanes:
        given = (f"{_OURS}:build_workload", workload, path, {"lanes": n}, repeats)
        found.append(Item(f"{title}: ours, {n} lanes", "jax", f"{_ROWS}:timed", given, 20))
    for name, options in (("PyTorch", {}), ("PyTorch, captured", {"captured": True})):
        given = ("benchmarks.torch_workloads:build", workload, path, options, repeats)
        found.append(Item(f"{title}: {name}", "torch", f"{_ROWS}:timed", given, 20))
    return found


def _case_items(name: str, case: Case, path: str, repeats: int, profile: bool) -> list[Item]:
    half = {"dtype": "bfloat16"}
    large = case.batch >= 256  # one lane fills the chip: no plan is measured
    ours = (f"{_OURS}:build", case, path, half | ({"lanes": 1} if large else {}))
    dense = {**half, "batch": min(256, 16 * case.batch)}
    wait = 30 if large else 90
    found = [
        Item(f"{name}: arrays", "jax", f"{_ROWS}:write_problem", (case, path), 15),
        Item(f"{name}: ours", "jax", f"{_ROWS}:timed", (*ours, repeats), wait),
    ]
    if profile:
        found.append(Item(f"{name}: kernels", "jax", f"{_ROWS}:profiled", ours, 15))
    for title, options in (("PyTorch", half), ("PyTorch, captured", half | {"captured": True})):
        given = (f"{_TORCH}:build", case, path, options, repeats)
        found.append(Item(f"{name}: {title}", "torch", f"{_ROWS}:timed", given, 25))
    given = ("benchmarks.plain_jax:dense", case, path, dense, repeats)
    found.append(Item(f"{name}: one dense network", "jax", f"{_ROWS}:timed", given, 20))
    if not large:
        for title, layout in ALTERNATIVES.items():
            forced = (*ours[:3], half | layout, repeats)
            found.append(Item(f"{name}: ours, {title}", "jax", f"{_ROWS}:timed", forced, 60))
    return found


def run(
    wanted: Iterable[Item],
    budget: float,
    report: Callable[[Mapping[str, Any]], None],
    clock: Callable[[], float] = time.monotonic,
) -> list[dict[str, Any]]:
    """Runs rows until the budget is spent.

    Args:
      budget: seconds for all of them.
      report: called with every row when it is done.

    Returns:
      One dict per row: its ``name`` and what it found, or ``error``, or ``skipped``.
    """
    end, processes, rows = clock() + budget, {}, []
    try:
        for item in wanted:
            left = end - clock()
            row: dict[str, Any] = {"name": item.name}
            if item.process == "torch" and not has_torch():
                row["skipped"] = "PyTorch is not installed"
            elif left < item.estimate:
                row["skipped"] = f"takes up to {item.estimate:.0f} s; {max(left, 0):.0f} s are left"
            else:
                row |= _row(item, processes, min(left, 2 * item.estimate))
            rows.append(row)
            report(row)
    finally:
        for process in processes.values():
            process.stop()
    return rows


def _row(item: Item, processes: dict[str, Process], longest: float) -> dict[str, Any]:
    """What an item finds; its process is killed if it takes longer, or ended if it failed."""
    try:
        if item.process not in processes:
            processes[item.process] = Process("", (), _ENV, "rows")
            processes[item.process].receive(longest)
        processes[item.process].send((item.target, item.arguments))
        return processes[item.process].receive(longest) or {}
    except Late as error:
        processes.pop(item.process).kill()
        return {"error": f"killed: {error}"}
    except Failed as error:
        if not processes[item.process].alive():
            processes.pop(item.process).kill()
        return {"error": str(error)}


def line(row: Mapping[str, Any]) -> str:
    """A row as text."""
    if reason := row.get("error", row.get("skipped")):
        return f"{row['name']}: {'failed' if 'error' in row else 'skipped'}: {reason}"
    if "forms" in row:
        times = ", ".join(f"{form} {1e6 * t:,.0f} µs" for form, t in row["forms"].items())
        return f"{row['name']}: {times}; the rule says {row['rule']}"
    if "kernels" in row:
        lines = [
            f"{row['name']}: round of {1e3 * row['round_seconds']:.1f} ms, kernels take "
            f"{1e3 * row['busy_seconds']:.1f} ms"
        ]
        lines += [
            f"  {1e3 * k['seconds']:9.2f} ms  {k['calls']:6d} calls  {k['kernel'][:90]}"
            for k in row["kernels"]
        ]
        return "\n".join(lines)
    parts = [f"{row['name']}:"]
    if "seconds" in row:
        parts.append(
            f"round {1e3 * row['seconds']:.1f} ms, {row['images_per_second']:,.0f} images/s,"
        )
    if "first_seconds" in row:
        parts.append(f"first round after {row['first_seconds']:.1f} s")
    return " ".join([*parts, f"({row['note']})" if row.get("note") else ""]).strip()


def main(
    budget: float, repeats: int, small: bool, write: Callable[[list[dict[str, Any]]], None]
) -> int:
    """Prints rows as they come and hands all so far to ``write``; the exit status."""
    rows: list[dict[str, Any]] = []

    def report(row):
        rows.append(dict(row))
        print(line(row), flush=True)
        write(rows)

    with tempfile.TemporaryDirectory() as folder:
        run(items(folder, repeats, small), budget, report)
    failed = [row["name"] for row in rows if "error" in row]
    for name in failed:
        print(f"FAILED {name}", file=sys.stderr)
    return 1 if failed else 0
