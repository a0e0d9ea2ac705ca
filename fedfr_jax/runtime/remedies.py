"""What to change so that a run fits into memory: first what does not change its results."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from fedfr_jax.config import Config
from fedfr_jax.config.part_checks import needs_all_clients
from fedfr_jax.runtime.counts import Counts
from fedfr_jax.runtime.footprint import Part, Units, memory_parts, peaks
from fedfr_jax.runtime.machine import Machine

_USED = 0.95  # share of the memory that may be planned for


@dataclasses.dataclass(frozen=True)
class Situation:
    """What memory follows from."""

    config: Config
    kind: str
    counts: Counts
    units: Units
    machine: Machine

    @property
    def parts(self) -> list[Part]:
        return memory_parts(self.config, self.kind, self.counts, self.units, self.machine.shared)


@dataclasses.dataclass(frozen=True)
class Remedy:
    """One change of a setting.

    Attributes:
      text: the setting with its value.
      changes_results: it is another experiment then.
      apply: the situation after it.
    """

    text: str
    changes_results: bool
    apply: Callable[[Situation], Situation]


@dataclasses.dataclass(frozen=True)
class Needed:
    """Peaks of memory in bytes, and the phases in which they occur."""

    device: float
    host: float
    device_phase: str
    host_phase: str


def needed(situation: Situation) -> Needed:
    """The peaks on each device and on each host; the latter with a CPU's devices."""
    machine, counts = situation.machine, situation.counts
    found = peaks(situation.parts)
    local = counts.local_devices if machine.shared else 0
    hosts = {phase: host + local * device for phase, (device, host) in found.items()}
    on_device = max(found, key=lambda phase: found[phase][0])
    on_host = max(hosts, key=hosts.__getitem__)
    return Needed(found[on_device][0], machine.baseline + hosts[on_host], on_device, on_host)


def excess(situation: Situation) -> tuple[float, float]:
    """Bytes that are missing on each (device, host); 0 where it fits."""
    need, machine = needed(situation), situation.machine
    device = 0.0 if machine.shared else need.device - machine.device_bytes
    return max(0.0, device), max(0.0, need.host - machine.host_bytes)


def missing(situation: Situation) -> float:
    """Bytes that are missing in all phases together, of 95 % of the memory: 0 if it fits easily."""
    machine, total = situation.machine, 0.0
    local = situation.counts.local_devices if machine.shared else 0
    for device, host in peaks(situation.parts).values():
        whole = machine.baseline + host + local * device
        total += max(0.0, whole - _USED * machine.host_bytes)
        if not machine.shared:
            total += max(0.0, device - _USED * machine.device_bytes)
    return total


def remedies(situation: Situation) -> tuple[list[Remedy], Situation]:
    """Changes that together make a run fit, and the situation with them.

    Each is taken only if it helps where memory is missing. In the end, those that turn out not to
    be needed are left out and the others made as small as possible, first those that change
    results. If nothing helps enough, the situation still does not fit.
    """
    taken: list[tuple[Callable[..., Iterator[Remedy]], Remedy]] = []
    now = situation
    for offer in _OFFERS:
        left = missing(now)
        if not left:
            break
        best = None
        for remedy in offer(now):
            after = remedy.apply(now)
            if missing(after) < left:
                best = remedy
                left = missing(after)
                if not left:
                    break
        if best is not None:
            taken.append((offer, best))
            now = best.apply(now)
    for i in reversed(range(len(taken))):
        others = [r for _, r in taken[:i]], [r for _, r in taken[i + 1 :]]
        before = _after(situation, others[0])
        for milder in [_NOTHING, *taken[i][0](before)]:
            changed = _after(before, [milder, *others[1]])
            if missing(changed) <= missing(now):
                now = changed
                taken[i] = (taken[i][0], milder)
                break
    return [remedy for _, remedy in taken if remedy is not _NOTHING], now


def _after(situation: Situation, taken: list[Remedy]) -> Situation:
    for remedy in taken:
        situation = remedy.apply(situation)
    return situation


_NOTHING = Remedy("", False, lambda situation: situation)


def _set(situation: Situation, group: str, **values: Any) -> Situation:
    changed = dataclasses.replace(getattr(situation.config, group), **values)
    config = dataclasses.replace(situation.config, **{group: changed})
    return dataclasses.replace(situation, config=config)


def _halvings(value: int, least: int = 1) -> Iterator[int]:
    while value % 2 == 0 and value // 2 >= least:
        value //= 2
        yield value


def _fewer_lanes(situation: Situation) -> Iterator[Remedy]:
    for lanes in _halvings(min(situation.config.engine.lanes, situation.counts.slots)):
        yield Remedy(
            f"engine.lanes={lanes}", False, functools.partial(_set, group="engine", lanes=lanes)
        )


def _stream(situation: Situation) -> Iterator[Remedy]:
    if situation.kind == "resident" and not situation.units.divided:
        yield Remedy(
            "data.images=stream", False, functools.partial(dataclasses.replace, kind="stream")
        )


def _smaller_gradient_batch(situation: Situation) -> Iterator[Remedy]:
    units, config = situation.units, situation.config
    if units.step is None or not units.splittable:
        return

    def apply(s: Situation, value: int) -> Situation:
        assert s.units.step is not None
        # Two gradients, of a part and their sum; activations follow the images.
        gradients = s.units.trained
        now = s.config.engine.gradient_batch or s.config.fed.batch_size
        rest = max(0.0, s.units.step.step - gradients) * value / now
        step = dataclasses.replace(s.units.step, step=2 * gradients + rest)
        s = dataclasses.replace(s, units=dataclasses.replace(s.units, step=step))
        return _set(s, "engine", gradient_batch=value)

    for part in _halvings(config.engine.gradient_batch or config.fed.batch_size, 8):
        yield Remedy(f"engine.gradient_batch={part}", False, functools.partial(apply, value=part))


def _no_tables(situation: Situation) -> Iterator[Remedy]:
    if situation.config.engine.cache_features:
        yield Remedy(
            "engine.cache_features=False",
            False,
            functools.partial(_set, group="engine", cache_features=False),
        )


def _in_parts(situation: Situation) -> Iterator[Remedy]:
    counts, now = situation.counts, situation.config.engine.part
    if needs_all_clients(situation.config) or counts.hosts > 1 or situation.config.recipe.union:
        return

    def apply(s: Situation, value: int) -> Situation:
        capacity = min(s.counts.capacity, value * s.counts.most_images)
        counts = dataclasses.replace(s.counts, part_capacity=capacity)
        s = _set(dataclasses.replace(s, counts=counts), "engine", part=value)
        return _set(s, "engine", lanes=min(s.config.engine.lanes, value))

    size = now or 2 * counts.slots
    while size > 1:
        size = -(-size // 2)
        yield Remedy(f"engine.part={size}", False, functools.partial(apply, value=size))


def _half_previous(situation: Situation) -> Iterator[Remedy]:
    def apply(s: Situation) -> Situation:
        units = dataclasses.replace(
            s.units,
            previous=s.units.previous // 2,
            stored=s.units.stored - s.units.previous // 2,
        )
        return _set(dataclasses.replace(s, units=units), "population", previous="bfloat16")

    if situation.config.population.previous == "full":
        yield Remedy("population.previous=bfloat16", True, apply)


def _smaller_pretraining(situation: Situation) -> Iterator[Remedy]:
    if not situation.config.pretrain.epochs or situation.units.step is None:
        return

    def apply(s: Situation, value: int) -> Situation:
        assert s.units.step is not None
        model = s.units.network  # its gradient
        rest = max(0.0, s.units.step.pretraining - model)
        rest *= value / s.config.pretrain.batch_size
        step = dataclasses.replace(s.units.step, pretraining=model + rest)
        s = dataclasses.replace(s, units=dataclasses.replace(s.units, step=step))
        return _set(s, "pretrain", batch_size=value)

    for batch in _halvings(situation.config.pretrain.batch_size, 8):
        yield Remedy(f"pretrain.batch_size={batch}", True, functools.partial(apply, value=batch))


def _smaller_evaluation(situation: Situation) -> Iterator[Remedy]:
    clients, now = situation.counts.clients, situation.config.eval.clients
    now = min(now or clients, clients)

    def apply(s: Situation, value: int) -> Situation:
        counts = dataclasses.replace(s.counts, probes=s.counts.probes * value // now)
        return _set(dataclasses.replace(s, counts=counts), "eval", clients=value)

    for count in _thinner(now, 4):
        yield Remedy(f"eval.clients={count}", True, functools.partial(apply, value=count))


def _smaller_cohort(situation: Situation) -> Iterator[Remedy]:
    if situation.config.recipe.union or situation.config.population.sampling == "schedule":
        return
    before = situation.counts

    def apply(s: Situation, value: int) -> Situation:
        counts = dataclasses.replace(
            s.counts,
            slots=value,
            capacity=-(-s.counts.capacity * value // before.slots),
            one_cohort=False,
        )
        cohort = value * counts.devices
        return _set(dataclasses.replace(s, counts=counts), "population", cohort=cohort)

    # At least a tenth: a round of one client is another method.
    for slots in _thinner(before.slots, -(-before.slots // 10)):
        cohort = slots * before.devices
        if cohort < before.clients:
            yield Remedy(f"population.cohort={cohort}", True, functools.partial(apply, value=slots))


def _fewer_public(situation: Situation) -> Iterator[Remedy]:
    now = situation.counts.public_identities

    def apply(s: Situation, value: int) -> Situation:
        images = s.counts.public_images * value // now
        counts = dataclasses.replace(s.counts, public_images=images, public_identities=value)
        split = dataclasses.replace(s.config.data.split, public_identities=value)
        return _set(dataclasses.replace(s, counts=counts), "data", split=split)

    for identities in _thinner(now, -(-now // 10)):
        yield Remedy(
            f"data.split.public_identities={identities}",
            True,
            functools.partial(apply, value=identities),
        )


def _thinner(value: int, least: int) -> Iterator[int]:
    """Smaller numbers, each about nine tenths of the one before, rounded to two digits."""
    while value > least:
        value = min(value - 1, int(float(f"{0.9 * value:.2g}")))
        yield max(value, least)


# What does not change results comes first; then what changes them least.
_OFFERS = (
    _fewer_lanes,
    _smaller_gradient_batch,
    _stream,
    _in_parts,
    _no_tables,
    _half_previous,
    _smaller_pretraining,
    _smaller_evaluation,
    _smaller_cohort,
    _fewer_public,
)
