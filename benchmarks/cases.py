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
from benchmarks.compare import TOLERANCE, Competitor, compare
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


def _describe(case: Case) -> str:
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
        f"small: {_describe(SMALL)}", SMALL, [TORCH, OURS, TORCH_TWO, LOOP, NAIVE], settings
    )


@case("cpu", "middle")
def middle(settings: Settings) -> Result:
    return fedfr_case(
        f"middle: {_describe(MIDDLE)}", MIDDLE, [TORCH, OURS, TORCH_TWO, LOOP], settings
    )


@case("cpu", "middle_naive")
def middle_naive(settings: Settings) -> Result:
    """Two clients: the naive form takes about a minute for two of their steps."""
    few = dataclasses.replace(MIDDLE, clients=2)
    return fedfr_case(f"middle, naive: {_describe(few)}", few, [OURS, NAIVE], settings)


@case("cpu", "paper")
def paper(settings: Settings) -> Result:
    """One step per epoch, because ten steps take PyTorch more than a minute."""
    return fedfr_case(f"paper: {_describe(PAPER)}", PAPER, [TORCH, OURS], settings)


@case("cpu", "small_bf16")
def small_bf16(settings: Settings) -> Result:
    return fedfr_case(
        f"small, bfloat16: {_describe(SMALL)}",
        SMALL,
        [bf16(TORCH), bf16(OURS), bf16(TORCH_TWO)],
        settings,
    )


@case("cpu", "middle_bf16")
def middle_bf16(settings: Settings) -> Result:
    return fedfr_case(
        f"middle, bfloat16: {_describe(MIDDLE)}",
        MIDDLE,
        [bf16(TORCH), bf16(OURS), bf16(TORCH_TWO)],
        settings,
    )


@case("cpu", "paper_bf16")
def paper_bf16(settings: Settings) -> Result:
    return fedfr_case(
        f"paper, bfloat16: {_describe(PAPER)}", PAPER, [bf16(TORCH), bf16(OURS)], settings
    )


@case("cpu", "cached_features")
def cached_features(settings: Settings) -> Result:
    """The gain from looking up frozen features instead of computing them in every step."""
    without = dataclasses.replace(
        OURS, name="ours, features in every step", options={"cache_features": False}
    )
    return fedfr_case(
        f"frozen features once per round: {_describe(MIDDLE)}", MIDDLE, [without, OURS], settings
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
    return fedfr_case(f"{title}: {_describe(plain)}, CosFace only", plain, competitors, settings)


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
    return fedfr_case(f"lanes, patches: {_describe(few)}", few, [OURS, *sweep], settings)


# GPU: lanes by network and batch. The cohort is as large as the memory for its previous backbones
# allows.
_WIDTHS = (64, 128, 256, 512)
GPU_CASES = {
    f"{label}_b{batch}": Case(
        model=model,
        depth=depth,
        widths=_WIDTHS,
        size=112,
        batch=batch,
        clients=clients,
        images=3 * max(64, batch) // 4,
        public=max(64, batch) // 4,
        embedding=embedding,
        epochs=2,
    )
    for label, model, depth, embedding, batch, clients in (
        ("mobilefacenet", "mobilefacenet", 20, 128, 16, 256),
        ("mobilefacenet", "mobilefacenet", 20, 128, 256, 64),
        ("spherenet20", "spherenet", 20, 512, 16, 64),
        ("spherenet20", "spherenet", 20, 512, 256, 40),
        ("spherenet64", "spherenet", 64, 512, 16, 40),
        ("spherenet64", "spherenet", 64, 512, 256, 40),
    )
}
GPU_LANES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
GPU_DENSE_BATCH = 4096  # most images of the plain dense step


def gpu_case(name: str, case: Case, settings: Settings, lanes: Sequence[int] = GPU_LANES) -> Result:
    """Compares float32 updates of a small cohort, then times every number of lanes in bf16."""
    few = dataclasses.replace(case, clients=min(4, case.clients), epochs=1)
    # In MobileFaceNet, batch norm amplifies rounding: even two layouts of ours differ by 1e-2.
    tolerance = TOLERANCE if case.model == "spherenet" else 3e-2
    checks = [
        dataclasses.replace(TORCH, name="check: PyTorch, float32", options={"tf32": False}),
        *(
            dataclasses.replace(
                OURS,
                name=f"check: ours, float32, {n} lanes",
                options={"lanes": n},
                tolerance=tolerance,
                env={"JAX_DEFAULT_MATMUL_PRECISION": "highest"},
            )
            for n in (1, 2)
        ),
    ]
    checked = fedfr_case(name, few, checks, dataclasses.replace(settings, repeats=0), False)
    free = dict(may_fail=True, tolerance=None)
    sweep = [
        dataclasses.replace(
            bf16(OURS), name=f"ours, {n} lanes", **free, options={"dtype": "bfloat16", "lanes": n}
        )
        for n in lanes
        if n <= case.clients
    ]
    dense = [
        Competitor(
            f"one dense network, batch {n * case.batch}",
            "benchmarks.plain_jax:dense",
            {"dtype": "bfloat16", "batch": n * case.batch},
            **free,
        )
        for n in lanes
        if n <= case.clients and n * case.batch <= GPU_DENSE_BATCH
    ]
    compiled = dict(TORCH.options, compiled=True)
    torch = [
        bf16(TORCH, None),
        bf16(
            dataclasses.replace(TORCH, name="PyTorch, compiled", options=compiled, may_fail=True),
            None,
        ),
    ]
    result = fedfr_case(
        f"{name}: {_describe(case)}, bfloat16",
        case,
        [*torch, bf16(OURS, None), *sweep, *dense],
        settings,
        together=False,
    )
    return result | {"rows": checked["rows"] + result["rows"]}


def _register_gpu(name: str, settings_of_case: Case) -> None:
    case("gpu", name)(lambda settings: gpu_case(name, settings_of_case, settings))


for _name, _case in GPU_CASES.items():
    _register_gpu(_name, _case)
