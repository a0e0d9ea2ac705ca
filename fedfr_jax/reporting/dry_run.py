"""A run's plan in a few tables: ``train --dry_run``. Nothing is trained, no image is read."""

from __future__ import annotations

import math
import textwrap

import numpy as np

from fedfr_jax.reporting.result_table import NONE, Cell, ResultTable
from fedfr_jax.runtime.footprint import (
    EVALUATION,
    PHASES,
    PRETRAINING,
    READING,
    ROUNDS,
    Part,
    kept_public,
)
from fedfr_jax.runtime.forecast import Forecast, Work
from fedfr_jax.runtime.remedies import Situation, excess, needed, remedies

_GIB = 2**30
_WIDTH = 98  # characters of a note


def plan_tables(plan: Forecast) -> list[ResultTable]:
    """Does it fit, how long does it take; then what that follows from."""
    return [
        _fits(plan),
        _time(plan),
        _work(plan),
        _memory(plan),
        _wire(plan),
        _disk(plan),
    ]


def _fits(plan: Forecast) -> ResultTable:
    now = Situation(plan.config, plan.kind, plan.counts, plan.units, plan.machine)
    need, machine = needed(now), plan.machine
    over_device, over_host = excess(now)
    rows = {}
    if not machine.shared:
        rows["memory of each device"] = _verdict(
            need.device, machine.device_bytes, over_device, need.device_phase
        )
    rows["memory of each host"] = _verdict(
        need.host, machine.host_bytes, over_host, need.host_phase
    )
    devices = f"{machine.devices} device{'s' * (machine.devices > 1)} ({machine.kind})"
    hosts = f", {machine.hosts} hosts" if machine.hosts > 1 else ""
    notes = [
        f"For {devices}{hosts}. Layout: {plan.layout}.",
        f"The host's memory includes {_gib(machine.baseline)} of Python, JAX and programs so far; "
        "a run's own programs take 0.1 (from the cache) to 1 GiB (compiled) more."
        + (" The devices are its cores: their memory is in it." if machine.shared else ""),
    ]
    if plan.units.step is None:
        notes.append(
            "Without activations and gradients, which only the compiler knows: "
            + (
                "engine.plan_seconds=0."
                if not plan.config.engine.plan_seconds
                else "it does not say."
            )
        )
    else:
        notes.append(
            f"Activations are as XLA lays them out for this machine's {plan.units.step.compiler}; "
            "other chips differ."
        )
    notes += [f"Verification sets {note}." for note in plan.notes]
    if over_device or over_host:
        notes += _advice(now)
    return _table("Does it fit?", "", ("needed", "there is", "verdict", "most"), rows, notes)


def _verdict(need: float, there: float, over: float, phase: str) -> tuple[str, ...]:
    verdict = f"{_gib(over)} too little" if over else "fits"
    if math.isinf(there):
        return _gib(need), "unknown", NONE, f"in {phase}"
    return _gib(need), _gib(there), verdict, f"in {phase}"


def _advice(now: Situation) -> list[str]:
    changes, after = remedies(now)
    free = [c.text for c in changes if not c.changes_results]
    other = [c.text for c in changes if c.changes_results]
    need = needed(after)
    size = (
        f"{_gib(need.host)} on the host"
        if now.machine.shared
        else f"{_gib(need.device)} on each device, {_gib(need.host)} on the host"
    )
    notes = []
    if changes:
        verdict = "It would not fit even with" if any(excess(after)) else "It would fit with"
        notes.append(f"{verdict} all of these, about {size}:")
        if free:
            notes.append(f"  without other results: {'  '.join(free)}")
        notes += [f"  with other results: {change}" for change in other]
    if any(excess(after)):
        notes.append(
            "Use a machine with more memory, a smaller network or smaller images"
            + ("." if now.machine.shared else ", or more devices, which share a round's clients.")
        )
    return notes


def _time(plan: Forecast) -> ResultTable:
    rate = plan.rate
    rows: dict[str, tuple[str, ...]] = {}
    for work in plan.work:
        rounds = work.pace
        if not len(rounds):
            continue
        everything = plan.before + rounds.sum() + plan.after
        rows[work.name or "clients' own images"] = tuple(
            _flops(flops).removesuffix("FLOP") if rate is None else _duration(flops, rate)
            for flops in (plan.before, rounds[0], rounds[-1], rounds.sum(), plan.after, everything)
        )
    columns = ("before", "first round", "last round", "all rounds", "evaluation", "in all")
    notes = [
        f"Speed {plan.rate_note}"
        + (
            f"; {_flops(rate)}/s on all devices together."
            if rate
            else ". Shown: floating-point operations."
        ),
        "Before: pretraining, or activations of frozen layers. Without reading images, compiling, "
        "scoring.",
    ]
    return _table("How long?", "hard negatives", columns, rows, notes)


def _duration(flops: float, rate: float) -> str:
    seconds = flops / rate
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.2g} s"


def _work(plan: Forecast) -> ResultTable:
    sizes = plan.split.clients.sizes
    rows = {"training images of a client": _spread(sizes, None, None)}
    for work in plan.work:
        if not work.images:
            continue
        case = f", {work.name}" if work.name else ""
        for what, counts in (("images", work.images), ("steps", work.steps)):
            total = sum(float(c.sum()) for c in counts)
            rows[f"{what}{case}"] = _spread(counts[0], float(counts[0].sum()), total)
    for work in plan.work[:1] + plan.work[-1:]:
        rows |= _flops_rows(work)
    notes = (
        "Images and steps, every epoch counted: of a client in the first round, then of them all."
        " Operations are those of the network, 3 forward passes per trained image.",
    )
    columns = ("fewest", "median", "most", "first round", "all rounds")
    return _table("What is computed", "", columns, rows, notes)


def _flops_rows(work: Work) -> dict[str, tuple[str, ...]]:
    case = f", {work.name}" if work.name else ""
    names = {
        "training": "trained",
        "directions": "frozen forwards, contrastive",
        "hard negatives": "frozen forwards, own images",
        "public images": "frozen forwards, public images",
    }
    return {
        f"{names[what]}{case if what == 'training' else ''}": (
            "",
            "",
            "",
            _flops(flops[0]),
            _flops(float(flops.sum())),
        )
        for what, flops in work.flops.items()
        if what == "training" or work.name in ("", "no hard negatives")
    }


def _spread(values: np.ndarray, *sums: float | None) -> tuple[str, ...]:
    found = [np.min(values), np.median(values), np.max(values)] if len(values) else [0, 0, 0]
    return tuple(_count(float(v)) for v in found) + tuple(
        NONE if total is None else _count(total) for total in sums
    )


def _memory(plan: Forecast) -> ResultTable:
    rows = {}
    for part in plan.parts:
        rows[part.name + " *" * part.returned] = (
            _gib(part.device) if part.device else NONE,
            _gib(part.host) if part.host else NONE,
            _when(part),
            part.setting.removeprefix("data."),
        )
    kind = {"resident": "on every device", "stream": "streamed", "render": "rendered"}[plan.kind]
    notes = [
        f"Training images are {kind} (data.images).",
        _of_hard_negatives(plan),
        "* pages of a file: the system takes them back when memory is short.",
    ]
    columns = ("device", "host", "when", "setting")
    return _table(
        "Memory by part, of each device and of each host beside it", "", columns, rows, notes
    )


def _of_hard_negatives(plan: Forecast) -> str:
    """What memory follows from the number of hard negatives."""
    if not plan.config.engine.part:
        return "It does not change with the number of hard negatives."
    kept = kept_public(plan.config, plan.counts)
    if not kept:
        return "Public images are read from the source, for pretraining only."
    return (
        "Public images are read from the source in every round. How many of them a part's clients "
        f"keep is known only then; here it is as many as they have of their own, with room for "
        f"{kept:,}. Each further 10,000 take {_gib(room_for(plan, 10_000))} of a device."
    )


def room_for(plan: Forecast, images: int) -> float:
    """Bytes of a device for so many more kept public images with a part of the clients."""
    units, views = plan.units, 2 if plan.config.fed.mirror else 1
    one = units.input * (1 + units.rearranged * (not units.divided))
    if plan.config.recipe.terms(plan.config.options).contrastive_weight > 0:
        one += plan.config.engine.lanes * plan.config.engine.cache_features * views * units.feature
    return images * one


def _when(part: Part) -> str:
    if part.phases == PHASES:
        return "always"
    if part.phases == (PRETRAINING, ROUNDS):
        return "training"
    names = {READING: "reading", PRETRAINING: "pretraining", EVALUATION: "evaluation"}
    first = names.get(part.phases[0], "rounds")
    return f"{first} on" if part.phases == (ROUNDS, EVALUATION) else first


def _wire(plan: Forecast) -> ResultTable:
    clients = plan.clients_per_round
    rows = {}
    names = {"down": "received", "up": "sent"}
    for way, parts in plan.wire.items():
        for what, size in parts.items():
            rows[f"{names[way]}: {what}"] = _sent(size, clients)
    total = sum(sum(parts.values()) for parts in plan.wire.values())
    rows["together"] = _sent(total, clients)
    if plan.machine.devices > 1:
        size = 2.0 * plan.units.server * (plan.machine.devices - 1)
        rows["between the devices, to add up"] = (
            NONE,
            _size(size),
            _size(size * len(clients)),
        )
    columns = ("client and round", "round", "all rounds")
    return _table("Over the wire", "", columns, rows, ("As float32, without compression.",))


def _sent(size: float, clients: np.ndarray) -> tuple[str, ...]:
    largest = float(clients.max(initial=0))
    return _size(size), _size(size * largest), _size(size * float(clients.sum()))


def _disk(plan: Forecast) -> ResultTable:
    rows = {what: (_size(size),) for what, size in plan.disk.items()}
    rows["together"] = (_size(sum(plan.disk.values())),)
    touched, population = plan.counts.touched, plan.counts.clients
    notes = (
        f"{touched:,} of {population:,} clients take part; each has at most one row more than "
        f"checkpoints are kept.",
        "Without metrics, plots and results of the evaluation.",
    )
    return _table("On disk", "", ("at most",), rows, notes)


def _table(title, corner, columns, rows, notes) -> ResultTable:
    return ResultTable(
        title,
        columns,
        tuple((name, tuple(Cell(text) for text in cells)) for name, cells in rows.items()),
        tuple(line for note in notes for line in _lines(note)),
        corner,
    )


def _lines(note: str) -> list[str]:
    inner = note.lstrip()
    indent = " " * (len(note) - len(inner))
    return textwrap.wrap(
        inner, _WIDTH, initial_indent=indent, subsequent_indent=indent + "  " * bool(indent)
    )


def _gib(size: float) -> str:
    return f"{size / _GIB:,.2f} GiB" if size >= _GIB / 10 else f"{size / 2**20:,.1f} MiB"


def _size(size: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:,.3g} {name}"
    return f"{size:.0f} B"


def _flops(count: float) -> str:
    for unit, name in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if count >= unit:
            return f"{count / unit:,.3g} {name}"
    return f"{count / 1e6:,.3g} MFLOP"


def _count(value: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M")):
        if value >= 10 * unit:
            return f"{value / unit:,.4g} {name}"
    return f"{value:,.0f}"
