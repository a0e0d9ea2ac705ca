"""Chooses the layout of a round on this machine by measuring a few steps.

The best layout (lanes, convolution strategy, images per gradient pass,
compute type) depends on the chip, the network and the batch. Automatic settings are decided
here: candidates train a few steps through the cohort engine on random images, the most promising
first, until ``engine.plan_seconds`` are spent, and the fastest per client and step is used. The
outcome is printed, kept in a file for the next run, and written into the run's ``config.json``; a
setting that the user gives is never changed. Where rules leave a single candidate, as on a CPU
for networks that are not tiny, nothing is measured.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from fedfr_jax import engine
from fedfr_jax.algorithm.initialize import head_shapes
from fedfr_jax.algorithm.local_state import initial_state
from fedfr_jax.algorithm.pool import Batch
from fedfr_jax.algorithm.round import local_step
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.algorithm.state import Heads, ServerState
from fedfr_jax.atomic import write_text
from fedfr_jax.config import Config
from fedfr_jax.models import build
from fedfr_jax.models.parts import is_divided, trained_part
from fedfr_jax.runtime.compilation_cache import cache_folder
from fedfr_jax.runtime.layouts import Candidate, by_rule, candidates, cohort_size, most_lanes
from fedfr_jax.runtime.progress import track
from fedfr_jax.settings import LossConfig

_VERSION = 4  # of the measurement; a new one makes old files invalid
_STEPS = 3  # per client and timed call
_LARGEST_FILE = 1 << 20  # bytes; about a thousand plans
_WORTH = 0.97  # more lanes must take at most this share of the time
_NOT_OF_A_PLAN = ("plan_seconds", "compilation_cache", "part")


def cache_file() -> pathlib.Path:
    """The file of measured plans: ``$FEDFR_PLANS``, or in the user's cache folder."""
    if os.environ.get("FEDFR_PLANS"):
        return pathlib.Path(os.environ["FEDFR_PLANS"])
    return cache_folder() / "plans.json"


def is_automatic(config: Config) -> bool:
    """Whether anything is left to decide."""
    settings = config.engine
    return settings.lanes == 0 or settings.conv == "auto" or config.model.dtype == "auto"


def settle(config: Config, *, seeds: int = 1, report=print) -> Config:
    """Replaces automatic settings by the fastest ones on this machine.

    Args:
      config: the settings.
      seeds: number of runs that could share one program; ``engine.lanes`` may then exceed the
        clients of one run, see :func:`seeds_at_once`.
      report: called with one line that states the outcome.

    Returns:
      The settings with ``engine.lanes``, ``engine.conv``, ``engine.gradient_batch`` and
      ``model.dtype`` decided.
    """
    if not is_automatic(config):
        return config
    key, known, every = _key(config, seeds), _read(), _candidates(config, seeds)
    found, note = _kept(every, known.get(key)), f"measured before, kept in {cache_file()}"
    if len(every) == 1:
        [best], note = every, "by rule: nothing else is as fast"
    elif found is not None:
        best = found
    else:
        busy = _is_busy()
        best, note = measure(config, seeds)
        if busy:
            note += "; the machine is busy, so that it will be measured again next time"
        elif config.engine.plan_seconds:
            _write(known | {key: dataclasses.asdict(best)})
    best = _agreed(best)
    report(f"plan: {best} ({note})")
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype=best.dtype),
        engine=dataclasses.replace(
            config.engine, lanes=best.lanes, conv=best.conv, gradient_batch=best.gradient_batch
        ),
    )


def _candidates(config: Config, seeds: int) -> list[Candidate]:
    """All that could be measured on this process' devices."""
    devices = min(len(jax.local_devices()), cohort_size(config))
    groups = candidates(config, devices, jax.default_backend(), seeds)
    return [candidate for group in groups for candidate in group]


def _kept(every: list[Candidate], plan: dict[str, Any] | None) -> Candidate | None:
    """The candidate that a plan names; None if it is not among those that would be measured."""
    return next((c for c in every if dataclasses.asdict(c) == plan), None)


def _is_busy() -> bool:
    """Whether other programs use this machine, which makes measurements unreliable."""
    return os.getloadavg()[0] > 1.25 * len(os.sched_getaffinity(0))


def _agreed(best: Candidate) -> Candidate:
    """The choice of process 0: all processes must run the same program."""
    if jax.process_count() == 1:
        return best
    text = json.dumps(dataclasses.asdict(best)).ljust(512).encode()
    told = multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8))
    return Candidate(**json.loads(bytes(np.asarray(told, np.uint8)).decode()))


def seeds_at_once(config: Config) -> int:
    """Number of runs that share one program: they use the lanes that one run leaves empty."""
    if jax.process_count() > 1 or config.engine.part:
        return 1
    devices = min(len(jax.devices()), cohort_size(config))
    return max(1, config.engine.lanes // most_lanes(config, devices))


def measure(
    config: Config, seeds: int = 1, clock: Callable[[], float] = time.perf_counter
) -> tuple[Candidate, str]:
    """(the fastest candidate, how it compares); ``seeds`` as for :func:`settle`.

    Another candidate is begun only if it can be expected to end within ``engine.plan_seconds``.

    Raises:
      MemoryError: none fits into memory.
    """
    budget, started = config.engine.plan_seconds, clock()
    if not budget:
        return by_rule(config, seeds)
    mesh = engine.make_mesh(jax.local_devices()[: cohort_size(config)])
    groups = list(candidates(config, mesh.size, jax.default_backend(), seeds))
    found: dict[Candidate, float] = {}
    took, left_out = 0.0, 0
    for group in groups:
        least = np.inf
        for candidate in group:
            if np.isfinite(min(found.values(), default=np.inf)) and (
                clock() - started + took > budget
            ):
                left_out += 1
                continue
            began = clock()
            with track(f"measuring a layout: {candidate}", None, "", keep=False):
                seconds = found[candidate] = seconds_per_step(config, candidate, mesh)
            took = clock() - began
            if not np.isfinite(seconds) or seconds > _WORTH * least:  # more lanes do not help
                break
            least = min(least, seconds)
    best = min(found, key=found.__getitem__)
    if not np.isfinite(found[best]):
        raise MemoryError(
            "no way to lay out a round fits into memory; lower fed.batch_size or "
            "set engine.gradient_batch"
        )
    return best, _comparison(found, best) + (
        f"; {left_out} more would take longer than engine.plan_seconds={budget:g}"
        if left_out
        else ""
    )


def _comparison(found: Mapping[Candidate, float], best: Candidate) -> str:
    others = "; ".join(f"{c}: {_ms(t)}" for c, t in found.items() if c != best)
    return f"measured {_ms(found[best])} per client step" + (
        f", against {others}" if others else ""
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if np.isfinite(seconds) else "out of memory"


def seconds_per_step(config: Config, candidate: Candidate, mesh) -> float:
    """Seconds per client step with all devices busy; infinite if memory is too small."""
    run, arguments = _program(config, candidate, mesh)
    clients = candidate.lanes * mesh.size
    try:
        jax.block_until_ready(run(*arguments))
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            seconds.append(time.perf_counter() - started)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return np.inf
    # The minimum: other work on the machine can only add time.
    return float(np.min(seconds)) / (clients * _STEPS)


def _program(config: Config, candidate: Candidate, mesh):
    """A compiled function that trains ``lanes`` clients per device for a few steps."""
    model = dataclasses.replace(config.model, dtype=candidate.dtype)
    backbone = trained_part(
        build(model, config.data.image_size, candidate.conv), config.fed.trainable
    )
    # Always FedFR: the network dominates the time, and all methods of a comparison should have
    # the same layout.
    fed = dataclasses.replace(config.fed, public_data="hard")
    spec = RoundSpec(backbone, fed, LossConfig())
    classes = 64  # realistic, but too few to affect the time
    identities = config.data.split.identities_per_client[1]
    head = head_shapes(spec, identities, "off", 0).replace(previous=None)
    head = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), head)
    server = ServerState(
        jnp.int32(0),
        backbone.init(jax.random.key(0)),
        jnp.ones((classes, backbone.embedding), head.class_embeddings.dtype),
    )
    rng, shape = np.random.default_rng(0), (fed.batch_size, *backbone.input_shape)
    batch = Batch(
        jnp.asarray(
            rng.standard_normal(shape, np.float32)
            if is_divided(config.model, config.data.image_size, config.fed.trainable)
            else rng.integers(0, 256, shape, np.uint8)
        ),
        jnp.arange(fed.batch_size) % identities,
        jnp.ones((fed.batch_size, backbone.embedding)),
    )
    slots = candidate.lanes * mesh.size

    def update(lane, shared, device, client, state: Heads):
        server, batch = shared
        local = lane.repeat(
            _STEPS,
            lambda i, s: local_step(
                spec, s, batch, fed.lr, jnp.ones(identities, bool), True, candidate.gradient_batch
            ),
            initial_state(spec, server, state),
        )
        return local.trained["backbone"], jnp.float32(1), state, local.losses

    heads = engine.spread(jax.tree.map(lambda x: jnp.stack([x] * slots), head), mesh)
    work = engine.spread(jnp.ones(slots, jnp.int32), mesh)
    run = jax.jit(
        lambda shared, heads, work: engine.for_each_client(
            update,
            shared,
            work[: mesh.size],
            work,
            heads,
            work,
            work > 0,
            mesh=mesh,
            lanes=candidate.lanes,
            unroll=config.engine.unroll_lanes,
        )[::3]
    )
    return run, (engine.replicate((server, batch), mesh), heads, work)


def _key(config: Config, seeds: int) -> str:
    """A short key of everything that a plan depends on."""
    device = jax.devices()[0]
    parts = {
        "version": _VERSION,
        "jax": jax.__version__,
        "device": device.device_kind,
        "devices": len(jax.devices()),
        "cores": os.cpu_count(),
        "image": config.data.image_size,
        "model": dataclasses.asdict(config.model) | {"weights": ""},
        "engine": {
            name: value
            for name, value in dataclasses.asdict(config.engine).items()
            if name not in _NOT_OF_A_PLAN
        },
        "batch": config.fed.batch_size,
        "lanes": most_lanes(config, len(jax.devices())) * seeds,
        "identities": config.data.split.identities_per_client[1],
    }
    if is_divided(config.model, config.data.image_size, config.fed.trainable):
        parts["trainable"] = config.fed.trainable
    text = json.dumps(parts, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{device.device_kind} {config.model.name} {digest}"


def _read() -> dict[str, dict[str, Any]]:
    """The plans in the file; entries that do not look like a plan are left out."""
    path, names = cache_file(), {field.name for field in dataclasses.fields(Candidate)}
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}  # nothing measured yet, or not readable
    plans = found.items() if isinstance(found, dict) else ()
    return {
        key: plan
        for key, plan in plans
        if isinstance(plan, dict)
        and set(plan) == names
        and all(isinstance(value, (int, str)) for value in plan.values())
    }


def _write(plans: dict[str, dict]) -> None:
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(plans, indent=1))
    except OSError:
        pass  # the folder is not writable: the next run measures again


def keep_settled(config: Config, earlier: Mapping[str, Any]) -> Config:
    """Automatic settings as decided at an earlier start of the same run.

    Args:
      config: the settings.
      earlier: nested dicts, from the run's ``config.json``.
    """
    engine_, model = earlier.get("engine", {}), earlier.get("model", {})
    settings = config.engine
    kept = {
        name: engine_[name]
        for name, automatic in (("lanes", 0), ("conv", "auto"))
        if getattr(settings, name) == automatic and name in engine_
    }
    if kept:
        kept["gradient_batch"] = settings.gradient_batch or engine_.get("gradient_batch", 0)
    dtype = model.get("dtype") if config.model.dtype == "auto" else None
    return dataclasses.replace(
        config,
        engine=dataclasses.replace(settings, **kept),
        model=dataclasses.replace(config.model, dtype=dtype or config.model.dtype),
    )
