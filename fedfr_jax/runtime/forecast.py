"""What a run will take, before it is started: work, memory, time, bytes sent, disk.

Only labels are read, no images. Everything but speed and the compiler's working memory follows
from the settings and the split.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from fedfr_jax import engine
from fedfr_jax.algorithm.spec import RoundSpec, epochs_of_round
from fedfr_jax.config import Config
from fedfr_jax.data import open_source
from fedfr_jax.data.degrade import degraded
from fedfr_jax.data.held_out import evaluated_clients
from fedfr_jax.data.split_file import split_arrays
from fedfr_jax.data.types import FederatedSplit, ImageSource
from fedfr_jax.data.verification_sets import images_in_sets
from fedfr_jax.population.images import choose_kind
from fedfr_jax.population.schedule import Schedule, make_schedule
from fedfr_jax.runtime import costs
from fedfr_jax.runtime.autotune import is_automatic, seconds_per_step, settle
from fedfr_jax.runtime.compilation_cache import use_compilation_cache
from fedfr_jax.runtime.counts import Counts, counts_of
from fedfr_jax.runtime.footprint import (
    Part,
    Units,
    memory_parts,
    records_of,
    units_of,
)
from fedfr_jax.runtime.layouts import Candidate, by_rule, most_lanes
from fedfr_jax.runtime.machine import Machine
from fedfr_jax.runtime.memory import check_processes
from fedfr_jax.runtime.progress import track
from fedfr_jax.runtime.simulation import make_spec, split_of
from fedfr_jax.runtime.step_memory import step_memory

_MEASURED_RATE = 5e10  # floating-point operations a second that any machine reaches
_TIMED = 18  # steps of a client that a measurement takes, see autotune.seconds_per_step()


@dataclasses.dataclass(frozen=True)
class Work:
    """What a round computes, by how many hard negatives clients find.

    Attributes:
      name: of the case.
      images: (rounds,) arrays of the images of each client that takes part, every epoch counted.
      steps: the same of its steps.
      flops: {purpose: (rounds,) floating-point operations of all clients together}.
      pace: (rounds,) operations of the busiest device, times the number of devices.
    """

    name: str
    images: tuple[np.ndarray, ...]
    steps: tuple[np.ndarray, ...]
    flops: dict[str, np.ndarray]
    pace: np.ndarray


@dataclasses.dataclass(frozen=True)
class Forecast:
    """All that :func:`forecast` finds.

    Attributes:
      config: with the layout settled; ``layout``: how that was decided, in words.
      source: the name of the data.
      split, counts, units, parts, kind: see :mod:`fedfr_jax.runtime.footprint`.
      work: one entry per case.
      before, after: operations of pretraining (and of what is frozen), and of evaluations.
      rate: operations per second of all devices; None: unknown. ``rate_note``: where it is from.
      wire: bytes per client and round, see :func:`fedfr_jax.runtime.costs.communication`.
      clients_per_round: (rounds,).
      disk: {what: bytes}.
      notes: what is not counted.
    """

    config: Config
    layout: str
    source: str
    split: FederatedSplit
    machine: Machine
    kind: str
    counts: Counts
    units: Units
    parts: list[Part]
    work: tuple[Work, ...]
    before: float
    after: float
    rate: float | None
    rate_note: str
    wire: dict[str, dict[str, float]]
    clients_per_round: np.ndarray
    disk: dict[str, float]
    notes: tuple[str, ...]


def forecast(
    config: Config,
    machine: Machine,
    *,
    source: ImageSource | None = None,
    tflops: float | None = None,
) -> Forecast:
    """Forecasts a run.

    Args:
      config: from :func:`fedfr_jax.config.resolve`.
      machine: where it would run.
      source: the image source, if it is open already, or one that stands in for it.
      tflops: speed of a device to be assumed, in 10^12 operations per second; None: measured.

    Raises:
      InputError: the data cannot be split as asked.
    """
    check_processes(config, machine.hosts)
    use_compilation_cache(config.engine.compilation_cache)
    if source is None:
        with track("opening the data", None, "", keep=False):
            source = open_source(config.data)
    split = split_of(config, source)
    source = degraded(source, config.data.degrade, config.data.seed, split.clients)
    config, layout = _settled(config, machine)
    clients = split.clients.union() if config.recipe.union else split.clients
    schedule = make_schedule(
        config.population, config.rounds, config.seed, clients, machine.devices
    )
    spec = make_spec(config)
    pairs, notes = _pairs(config, split)
    counts = counts_of(config, source.labels, split, schedule, machine.hosts, pairs)
    units = _units(config, spec, counts, machine)
    kind = choose_kind(config.data, source, split.clients)
    rate, rate_note = _rate(config, machine, counts, units, tflops)
    present = (schedule.cohorts >= 0).sum(1)[: config.rounds]
    people = float(split.clients.identity_counts.mean())
    return Forecast(
        config=config,
        layout=layout,
        source=source.name,
        split=split,
        machine=machine,
        kind=kind,
        counts=counts,
        units=units,
        parts=memory_parts(config, kind, counts, units, machine.shared),
        work=tuple(
            _work(config, spec, schedule, counts, name, share)
            for name, share in _cases(config).items()
        ),
        before=_before(config, counts),
        after=_after(config, counts, split),
        rate=rate,
        rate_note=rate_note,
        wire=costs.communication(spec, counts.public_identities, people, config.rounds),
        clients_per_round=present,
        disk=_disk(config, counts, units, split),
        notes=notes,
    )


def _units(config: Config, spec: RoundSpec, counts: Counts, machine: Machine) -> Units:
    """Sizes of everything, with those of a step where there is time to ask the compiler."""
    step, most = None, counts.most_identities
    if config.engine.plan_seconds:
        public = counts.public_images, counts.public_identities
        step = step_memory(config, spec, public, most, devices=machine.devices)
    return units_of(config, spec, counts.public_identities, most, step, machine.backend)


def _settled(config: Config, machine: Machine) -> tuple[Config, str]:
    """The settings with a layout, and how it was decided."""
    if machine.is_here:
        lines: list[str] = []
        settled = settle(config, report=lines.append)
        return settled, lines[0].removeprefix("plan: ") if lines else "as set"
    chosen, _ = by_rule(config, devices=machine.devices, backend=machine.backend)
    lanes = min(chosen.lanes, most_lanes(config, machine.devices))
    how = "by rule, not measured: this is another machine" if is_automatic(config) else "as set"
    settled = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype=chosen.dtype),
        engine=dataclasses.replace(config.engine, lanes=lanes, conv=chosen.conv),
    )
    return settled, f"{chosen} ({how})"


def _pairs(config: Config, split: FederatedSplit) -> tuple[int, tuple[str, ...]]:
    """(images of verification pairs, what is not counted)."""
    found, missing = images_in_sets(config.data)
    note = f"not there, so not counted: {', '.join(missing)}" if missing else ""
    return split.pairs.size + found, (note,) if note else ()


def _cases(config: Config) -> dict[str, float | str]:
    """Cases of how many public images a client keeps."""
    if config.fed.public_data == "hard":
        return {
            "no hard negatives": 0.0,
            "as many as own images": "own",
            "all public images": 1.0,
        }
    return {"": 1.0 if config.fed.public_data == "all" else 0.0}


def _work(
    config: Config,
    spec: RoundSpec,
    schedule: Schedule,
    counts: Counts,
    name: str,
    share: float | str,
) -> Work:
    """The work of all rounds if clients keep this share of the public images."""
    unit, public = costs.forward_flops(config), counts.public_images
    images, steps, paces = [], [], []
    flops: dict[str, list[float]] = {}
    for r in range(config.rounds):
        assigned = schedule.assigned(r)
        own = np.where(assigned >= 0, schedule.clients.sizes[assigned], 0)
        kept = np.minimum(own, public) if share == "own" else np.full(len(own), share * public)
        kept = np.where(own > 0, kept, 0)
        metrics = {
            "images": own + kept,
            "hard_negatives": kept,
            "steps": int(epochs_of_round(spec, r)[0]) * spec.steps(own + kept),
        }
        passes = costs.local_passes(config, spec, metrics, public)
        passes["public images"] = np.array([public * (config.fed.public_data == "hard")])
        for what, count in passes.items():
            flops.setdefault(what, []).append(unit * float(count.sum()))
        of_clients = sum(v for what, v in passes.items() if what != "public images")
        busiest = np.asarray(of_clients).reshape(counts.devices, -1).sum(1).max()
        paces.append(unit * float(counts.devices * busiest + passes["public images"].sum()))
        there = own > 0
        images.append(costs.trained_images(config, metrics)[there])
        steps.append(np.asarray(metrics["steps"])[there])
    return Work(
        name,
        tuple(images),
        tuple(steps),
        {what: np.array(v) for what, v in flops.items() if sum(v)},
        np.array(paces),
    )


def _before(config: Config, counts: Counts) -> float:
    """Operations of pretraining, and of the activations of what is frozen."""
    unit = costs.whole_forward_flops(config)
    passes = 3.0 * config.pretrain.epochs * counts.public_images
    if unit != costs.forward_flops(config):
        views = 1 + config.fed.mirror
        passes += views * (counts.public_images + counts.training_images)
    return passes * unit


def _after(config: Config, counts: Counts, split: FederatedSplit) -> float:
    """Operations of all evaluations: every model sees all probes and its client's own images."""
    evaluated = evaluated_clients(len(split.clients), config.eval.clients, config.data.seed)
    galleries = int(split.clients.sizes[evaluated].sum())
    once = counts.probes + galleries
    own = len(evaluated) * counts.probes + galleries
    between = (config.rounds - 1) // config.evaluate_every if config.evaluate_every else 0
    # Two shared models; the clients' own backbones, and the mean of both as a variant.
    passes = (2 * once + (1 + config.eval.variants) * own) + between * (once + own)
    return passes * float(costs.whole_forward_flops(config))


def _rate(
    config: Config, machine: Machine, counts: Counts, units: Units, tflops: float | None
) -> tuple[float | None, str]:
    """(operations per second of all devices, where the number is from)."""
    if tflops:
        return machine.devices * tflops * 1e12, f"assumed: {tflops:g} TFLOP/s per device"
    if not machine.is_here:
        return None, "not measured: this is another machine; --device_tflops assumes a speed"
    if not config.engine.plan_seconds:
        return None, "not measured: engine.plan_seconds=0"
    unit = 3.0 * costs.forward_flops(config)
    batch, clients = config.fed.batch_size, config.engine.lanes * machine.devices
    budget = _MEASURED_RATE * config.engine.plan_seconds / (_TIMED * clients * unit)
    free = 0.5 * (machine.host_bytes if machine.shared else machine.device_bytes)
    size = clients if machine.shared else config.engine.lanes
    while batch > 1 and (
        batch > budget
        or (units.step and size * units.step.step * batch / config.fed.batch_size > free)
    ):
        batch //= 2
    engine_ = dataclasses.replace(config.engine, gradient_batch=0)
    fed = dataclasses.replace(config.fed, batch_size=batch)
    smaller = dataclasses.replace(config, fed=fed, engine=engine_)
    timed = config if batch == config.fed.batch_size else smaller
    settings = timed.engine
    candidate = Candidate(
        settings.lanes, settings.conv, settings.gradient_batch, config.model.dtype
    )
    mesh = engine.make_mesh(jax.devices()[: machine.devices])
    with track("measuring a client's step", None, "", keep=False):
        seconds = seconds_per_step(timed, candidate, mesh)
    if not np.isfinite(seconds):
        return None, "not measured: a step does not fit into memory"
    part = "" if timed is config else f", with {batch} of {config.fed.batch_size} images"
    return batch * unit / seconds, f"measured here: {1e3 * seconds:.3g} ms per client step{part}"


def _disk(config: Config, counts: Counts, units: Units, split: FederatedSplit) -> dict[str, float]:
    """Bytes in the work directory, of all hosts together."""
    classes = counts.public_identities * units.feature
    kept = min(config.checkpoint.keep, max(1, config.rounds))
    arrays = split_arrays(split).values()
    return {
        "clients' heads (heads/)": records_of(config, counts) * float(units.stored + 32),
        f"checkpoints/, {kept} kept and one being written": (kept + 1) * float(units.server),
        "pretrained/": float(units.network + classes),
        "split.npz": sum(a.nbytes // (2 if a.dtype == np.int64 else 1) for a in arrays),
    }
