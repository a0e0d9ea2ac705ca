"""The cases of every suite: what is measured, and against which competitors.

A case is a function of :class:`Settings` that returns a result for the table; ``@case`` puts
it into ``SUITES``.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import problem as problems
from benchmarks import scale
from benchmarks.compare import Competitor, compare
from benchmarks.machine import has_torch
from benchmarks.problem import WORKLOADS, Case
from benchmarks.worker import call

Result = dict[str, Any]  # "title", "case", "rows", "macs", ...


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a whole run: warm rounds, FLOP/s by type, and competitors."""

    repeats: int = 5
    peaks: dict[str, float] = dataclasses.field(default_factory=dict)
    competitors: str = ""

    def chosen(self, competitors: Sequence[Competitor]) -> list[Competitor]:
        """Those whose name matches, without PyTorch if it is not installed."""
        return [
            c
            for c in competitors
            if re.search(self.competitors, c.name) and (has_torch() or "torch" not in c.target)
        ]


SUITES: dict[str, dict[str, Callable[[Settings], Result]]] = {
    "cpu": {},
    "gpu": {},
    "scale": {},
    "layouts": {},
    "peers": {},
}


def case(suite: str, name: str):
    """Registers a case of a suite."""

    def register(function):
        SUITES[suite][name] = function
        return function

    return register


TORCH = Competitor("PyTorch", "benchmarks.torch_fedfr:build")
OURS = Competitor("ours", "benchmarks.ours:build")
LOOP = Competitor("jitted step, Python loop", "benchmarks.plain_jax:loop")
# The naive form takes minutes for a whole round, so only two steps are run, once.
NAIVE = Competitor("naive vmap of scan", "benchmarks.plain_jax:naive", {"steps": 2}, repeats=1)
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
TORCH_TWO = dataclasses.replace(
    TORCH, name="PyTorch, 2 processes", options={"threads": 1}, processes=2, env=_ONE_THREAD
)


def bf16(competitor: Competitor, tolerance: float | None = 0.1) -> Competitor:
    """The same in bfloat16, where updates agree only to its 8 bits."""
    return dataclasses.replace(
        competitor, options=dict(competitor.options, dtype="bfloat16"), tolerance=tolerance
    )


def fedfr_case(
    title: str,
    case: Case,
    competitors: Sequence[Competitor],
    settings: Settings,
    together: bool = True,
) -> Result:
    """A round of FedFR's local training."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "problem.npz")
        facts = call("benchmarks.plain_jax:problem", case, path)
        with np.load(path) as arrays:
            start = problems.compared(dict(arrays), case)
        rows = compare(
            case,
            path,
            start,
            facts["macs"],
            settings.chosen(competitors),
            repeats=settings.repeats,
            peaks=settings.peaks,
            together=together,
        )
    return {"title": title, "case": dataclasses.asdict(case), "rows": rows, **facts}


def describe(case: Case) -> str:
    net = (
        f"SphereNet-{case.depth} {'/'.join(map(str, case.widths))}"
        if case.model == "spherenet"
        else case.model
    )
    return (
        f"{net}, {case.size}x{case.size}, batch {case.batch}, {case.clients} clients x "
        f"{case.steps} steps (E={case.epochs})"
    )


SMALL = Case(depth=10, widths=(8, 16, 32, 32), size=32, batch=8, clients=32, images=24, public=8)
MIDDLE = Case(
    depth=10, widths=(32, 64, 128, 256), size=64, batch=32, clients=8, images=24, public=8
)
PAPER = Case(
    depth=20,
    widths=(64, 128, 256, 512),
    size=112,
    batch=64,
    clients=2,
    images=48,
    public=16,
    embedding=512,
)


@case("cpu", "small")
def small(settings: Settings) -> Result:
    return fedfr_case(
        f"small: {describe(SMALL)}", SMALL, [TORCH, OURS, TORCH_TWO, LOOP, NAIVE], settings
    )


@case("cpu", "middle")
def middle(settings: Settings) -> Result:
    return fedfr_case(
        f"middle: {describe(MIDDLE)}", MIDDLE, [TORCH, OURS, TORCH_TWO, LOOP], settings
    )


@case("cpu", "middle_naive")
def middle_naive(settings: Settings) -> Result:
    """Two clients: the naive form takes about a minute for two of their steps."""
    few = dataclasses.replace(MIDDLE, clients=2)
    return fedfr_case(f"middle, naive: {describe(few)}", few, [OURS, NAIVE], settings)


@case("cpu", "paper")
def paper(settings: Settings) -> Result:
    """One step per epoch, because ten steps take PyTorch more than a minute."""
    return fedfr_case(f"paper: {describe(PAPER)}", PAPER, [TORCH, OURS], settings)


@case("cpu", "small_bf16")
def small_bf16(settings: Settings) -> Result:
    return fedfr_case(
        f"small, bfloat16: {describe(SMALL)}",
        SMALL,
        [bf16(TORCH), bf16(OURS), bf16(TORCH_TWO)],
        settings,
    )


@case("cpu", "middle_bf16")
def middle_bf16(settings: Settings) -> Result:
    return fedfr_case(
        f"middle, bfloat16: {describe(MIDDLE)}",
        MIDDLE,
        [bf16(TORCH), bf16(OURS), bf16(TORCH_TWO)],
        settings,
    )


@case("cpu", "paper_bf16")
def paper_bf16(settings: Settings) -> Result:
    return fedfr_case(
        f"paper, bfloat16: {describe(PAPER)}", PAPER, [bf16(TORCH), bf16(OURS)], settings
    )


@case("cpu", "cached_features")
def cached_features(settings: Settings) -> Result:
    """The gain from looking up frozen features instead of computing them in every step."""
    without = dataclasses.replace(
        OURS, name="ours, features in every step", options={"cache_features": False}
    )
    return fedfr_case(
        f"frozen features once per round: {describe(MIDDLE)}", MIDDLE, [without, OURS], settings
    )


def workload_case(name: str, settings: Settings) -> Result:
    """Workload A or B, 32 clients."""
    workload = WORKLOADS[name]
    competitors = [
        Competitor("PyTorch", "benchmarks.torch_workloads:build"),
        Competitor(
            "PyTorch, 2 processes",
            "benchmarks.torch_workloads:build",
            {"threads": 1},
            processes=2,
            env=_ONE_THREAD,
        ),
        Competitor("ours", "benchmarks.ours:build_workload"),
        Competitor("jitted step, Python loop", "benchmarks.workloads:loop"),
        Competitor("naive vmap of scan", "benchmarks.workloads:naive", {"steps": 2}, repeats=1),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "problem.npz")
        arrays = problems.workload_problem(workload)
        np.savez(path, **arrays)
        macs = problems.workload_macs(workload)
        rows = compare(
            workload,
            path,
            problems.workload_compared(arrays),
            macs,
            settings.chosen(competitors),
            repeats=settings.repeats,
            peaks=settings.peaks,
        )
    return {
        "title": f"workload {name}: {workload.size}x{workload.size}, batch {workload.batch}, "
        f"{workload.clients} clients x {workload.steps} steps",
        "case": dataclasses.asdict(workload),
        "rows": rows,
        "macs": macs,
    }


@case("cpu", "A")
def workload_a(settings: Settings) -> Result:
    return workload_case("A", settings)


@case("cpu", "B")
def workload_b(settings: Settings) -> Result:
    return workload_case("B", settings)


def _layouts(settings: Settings, title: str, case: Case) -> Result:
    """Our round with every strategy and layout, without public data and frozen features."""
    plain = dataclasses.replace(case, epochs=1, public=0, contrastive=False, binary=False)
    names = {
        "grouped, vmap": ("grouped", case.clients, 1),
        "patches, vmap": ("patches", case.clients, 1),
        "custom, vmap": ("custom", case.clients, 1),
        "custom, scan": ("custom", 1, 1),
        "patches, scan": ("patches", 1, 1),
        "ours": ("auto", 0, 0),
    }
    competitors = [
        Competitor(
            name,
            OURS.target,
            dict(conv=conv, lanes=lanes, devices=devices),
            repeats=1 if conv == "grouped" else None,
        )
        for name, (conv, lanes, devices) in names.items()
    ]
    return fedfr_case(f"{title}: {describe(plain)}, CosFace only", plain, competitors, settings)


@case("layouts", "small")
def layouts_small(settings: Settings) -> Result:
    return _layouts(settings, "layouts, small", dataclasses.replace(SMALL, images=40))


@case("layouts", "middle")
def layouts_middle(settings: Settings) -> Result:
    return _layouts(settings, "layouts, middle", dataclasses.replace(MIDDLE, clients=4, images=32))


def _scale(title: str, settings: Settings, sizes: Sequence[tuple[int, int]]) -> Result:
    rows = [
        scale.Row(*size, call("benchmarks.scale:run", *size, settings.repeats + 1))
        for size in sizes
    ]
    bad = [
        f"{r.population} clients, cohort {r.cohort}: the state did not survive"
        for r in rows
        if not r.found["survived"]
    ]
    return {
        "title": title,
        "rows": [],
        "text": scale.table(rows),
        "wrong": bad,
        "found": [dataclasses.asdict(r) for r in rows],
    }


@case("scale", "cohort")
def cohort(settings: Settings) -> Result:
    return _scale(
        "cohorts of a population of 1,024", settings, [(1024, n) for n in (64, 128, 256, 512)]
    )


@case("scale", "population")
def population(settings: Settings) -> Result:
    return _scale(
        "populations, cohort of 64",
        settings,
        [(n, 64) for n in (1_000, 10_000, 100_000, 1_000_000)],
    )


@case("scale", "lanes")
def lanes(settings: Settings) -> Result:
    """Different numbers of lanes per device; the first row is the layout chosen by measurement."""
    few = dataclasses.replace(SMALL, epochs=2)
    sweep = [
        dataclasses.replace(OURS, name=f"{n} lanes", options={"lanes": n, "conv": "patches"})
        for n in (1, 2, 4, 8, 16)
    ]
    return fedfr_case(f"lanes, patches: {describe(few)}", few, [OURS, *sweep], settings)
