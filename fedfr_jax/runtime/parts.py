"""Rounds in parts: what the host does where cohort and public images exceed the devices' memory.

Public images stay where they come from. In every round they pass over the devices once, in blocks,
to find out which are hard negatives; then a few clients at a time are on the devices, with their
own images and those public images that one of them keeps (``engine.part``). While a part trains,
the host reads the images and heads of the next one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fedfr_jax import engine
from fedfr_jax.algorithm import parts as pieces
from fedfr_jax.algorithm.features import type_of
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.algorithm.state import Heads, ServerState
from fedfr_jax.data.batches import equal_batches
from fedfr_jax.engine.layout import Layout
from fedfr_jax.errors import ConfigError
from fedfr_jax.population.cohort_data import CohortData, PublicData
from fedfr_jax.population.images import StoredImages
from fedfr_jax.population.parts import Part, capacity_for
from fedfr_jax.runtime import memory
from fedfr_jax.runtime.client_states import ClientStates
from fedfr_jax.runtime.processes import wait
from fedfr_jax.runtime.progress import track
from fedfr_jax.runtime.simulation import Simulation

PyTree = Any
_READ = 1024  # images that are read at once


@dataclasses.dataclass(frozen=True)
class PartPrograms:
    """The compiled functions of :mod:`fedfr_jax.algorithm.parts`; each compiles when it is called.

    Attributes:
      begin: ``no_sums``; ``features``: ``features_of_block``; ``search``; ``train``:
        ``train_part``; ``end``: ``end_round``.
      capacities: numbers of public images for which ``train`` is compiled.
    """

    begin: Callable[..., pieces.Sums]
    features: Callable[..., jax.Array]
    search: Callable[..., jax.Array]
    train: Callable[..., tuple]
    end: Callable[..., tuple]
    capacities: set[int] = dataclasses.field(default_factory=set)


@functools.cache  # for the first public embeddings, too
def compile_features(spec: RoundSpec, layout: Layout) -> Callable[..., jax.Array]:
    """The jitted :func:`fedfr_jax.algorithm.parts.features_of_block`."""
    return jax.jit(
        functools.partial(pieces.features_of_block, spec, layout),
        donate_argnums=1,
        out_shardings=NamedSharding(layout.mesh, P()),
    )


def compile_parts(spec: RoundSpec, layout: Layout) -> PartPrograms:
    """The functions of a round in parts."""
    everywhere = NamedSharding(layout.mesh, P())
    by_client = NamedSharding(layout.mesh, P(engine.AXIS))
    return PartPrograms(
        jax.jit(functools.partial(pieces.no_sums, spec), out_shardings=everywhere),
        compile_features(spec, layout),
        jax.jit(functools.partial(pieces.search, spec, layout), out_shardings=by_client),
        jax.jit(
            functools.partial(pieces.train_part, spec, layout),
            donate_argnums=(1, 5),
            out_shardings=(everywhere, by_client, everywhere),
        ),
        jax.jit(
            functools.partial(pieces.end_round, spec),
            donate_argnums=0,
            out_shardings=everywhere,
        ),
    )


def stored_features(sim: Simulation, variables: PyTree) -> jax.Array:
    """(N_0, d) features of the public images on every device, read and computed in blocks.

    Args:
      variables: of the backbone, on the devices.
    """
    stored, layout = sim.public_inputs, sim.layout
    assert stored is not None  # engine.part is set
    run, block = compile_features(sim.spec, layout), layout.feature_batch * layout.mesh.size
    shape, everywhere = (len(stored), sim.spec.backbone.embedding), NamedSharding(layout.mesh, P())
    table = jnp.zeros(shape, type_of(variables), device=everywhere)
    with track("features of the public images", len(stored), "image", keep=False) as bar:
        # A block is read while the last one is computed.
        for i, (count, images) in enumerate(equal_batches(stored, block)):
            placed = engine.spread(images, layout.mesh)
            positions = engine.replicate(np.arange(block) + i * block, layout.mesh)
            wait(table)  # or blocks would pile up on the devices
            table = run(variables, table, positions, placed)
            bar.update(count, images=count)
    return table


def stored_means(sim: Simulation, variables: PyTree) -> jax.Array:
    """(K_0, d) mean features of the public identities: class embeddings before the first round."""
    public = sim.public
    means = jax.jit(pieces.public_means, static_argnums=2)
    return means(stored_features(sim, variables), public.labels, public.identities)


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A part that is on the devices: its data, its heads and (C, N_0) which images are hard."""

    part: Part
    cohort: CohortData
    heads: Heads
    hard: jax.Array | None


def round_in_parts(
    sim: Simulation,
    programs: PartPrograms,
    finite: Callable[..., tuple[jax.Array, jax.Array]],
    clients: ClientStates,
    server: ServerState,
    assigned: np.ndarray,
    key: jax.Array,
    done: int,
) -> tuple[ServerState, dict[str, jax.Array], tuple[jax.Array, jax.Array]]:
    """One round; the heads go back to the host part after part.

    Args:
      finite: from :func:`fedfr_jax.runtime.programs.compile_finite`.
      clients: the heads of all clients.
      server: on the devices; its memory is donated.
      assigned: (C,) client in each slot; there is at least one.
      key: the run's, on the devices.
      done: rounds done after this one.

    Returns:
      (the server, metrics (C,), whether the server and each slot's head are finite).
    """
    assert sim.parts_of_rounds is not None  # engine.part is set
    everybody = None
    if sim.spec.fed.public_data == "hard":
        everybody = stored_features(sim, server.backbone)

    def opened(part: Part) -> _Opened:
        cohort = sim.part_data(part)
        hard = None if everybody is None else programs.search(server, everybody, cohort)
        return _Opened(part, cohort, clients.hand_out(part.clients, cohort), hard)

    parts = sim.parts_of_rounds.of(assigned)
    found: dict[str, np.ndarray] = {}
    is_finite = np.ones(len(assigned), bool)
    sums, following = programs.begin(server), opened(parts[0])
    with track(f"round {done}", len(parts), "part", keep=False) as bar:
        for i, part in enumerate(parts):
            now = following
            public, kept = _kept_images(sim, programs, now)
            sums, heads, metrics = programs.train(
                server, now.heads, public, now.cohort, kept, sums, key
            )
            good = finite(server, heads)
            del now, public, kept  # their memory is free as soon as the part is done
            clients.write()  # heads of the part before
            if i + 1 < len(parts):
                following = opened(parts[i + 1])
            wait((metrics, good))
            _put(found, part, jax.device_get(metrics), len(assigned))
            _put({"": is_finite}, part, {"": np.asarray(good[1])}, len(assigned))
            clients.take_back(part.clients, heads, done, to_host=True, stays=False)
            bar.update(1)
    if "round_seconds" in found:  # the round ends when its last part does
        found["round_seconds"][:] = found["round_seconds"].max()
    replicated = engine.replicate((assigned.astype(np.int32), found, is_finite), sim.layout.mesh)
    numbers, metrics, slots = replicated
    server, metrics = programs.end(server, sums, numbers, metrics, key)
    return server, metrics, (finite(server, heads)[0], slots)


def _put(
    found: dict[str, np.ndarray], part: Part, metrics: dict[str, np.ndarray], size: int
) -> None:
    """Writes a part's metrics to their slots among all ``size`` of the round."""
    there = part.slots >= 0
    for name, values in metrics.items():
        if name not in found:
            found[name] = np.zeros(size, values.dtype)
        found[name][part.slots[there]] = values[there]


def _kept_images(
    sim: Simulation, programs: PartPrograms, now: _Opened
) -> tuple[PublicData, jax.Array]:
    """(the public images that clients of a part keep, (C, N) which of them each client keeps)."""
    mesh, public, stored = sim.layout.mesh, sim.public, sim.public_inputs
    assert stored is not None  # engine.part is set
    if now.hard is None:
        nobody = np.zeros((len(now.part.clients), 0), bool)
        return public, engine.spread(nobody, mesh)
    wait(now.hard)
    hard = np.asarray(now.hard)
    numbers = np.flatnonzero(hard.any(0))
    capacity = capacity_for(len(numbers), len(stored), max(programs.capacities, default=0))
    if capacity not in programs.capacities:
        if programs.capacities:
            print(f"clients keep more public images: compiling for {capacity:,} of them")
        programs.capacities.add(capacity)
        _check_room(sim, len(numbers), capacity)
    columns = np.zeros(capacity, np.int32)
    columns[: len(numbers)] = numbers
    kept = np.zeros((len(hard), capacity), bool)
    kept[:, : len(numbers)] = hard[:, numbers]
    labels = np.asarray(sim.split.public_labels)[columns].astype(np.int32)
    images, columns, labels = engine.replicate(
        (_read(stored, numbers, capacity), columns, labels), mesh
    )
    some = PublicData(images, labels, public.identities, columns, len(stored))
    return some, engine.spread(kept, mesh)


def _check_room(sim: Simulation, count: int, capacity: int) -> None:
    """Refuses more kept public images than the memory that is free, as far as that is known."""
    devices = list(sim.layout.mesh.local_mesh.devices.flat)
    assert sim.public_inputs is not None  # engine.part is set
    stats, example = devices[0].memory_stats(), sim.public_inputs[:1]
    size = float(capacity * example.nbytes)
    if stats and "bytes_limit" in stats:
        free = float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    else:  # the devices' memory is the host's
        free, size = memory.available(), size * (1 + len(devices))
    if size > free:
        raise ConfigError(
            f"fed.hard_threshold is {sim.config.fed.hard_threshold}, at which the clients of one "
            f"part keep {count:,} public images together; with room for {capacity:,} that are "
            f"{size / 2**30:,.1f} GiB, but {free / 2**30:,.1f} GiB are free. Raise it, or lower "
            "engine.part"
        )


def _read(stored: StoredImages, numbers: np.ndarray, capacity: int) -> np.ndarray:
    """(capacity, ...) images at (n,) positions; the others are black."""
    example = stored[numbers[:1]] if len(numbers) else stored[:1]
    images = np.zeros((capacity, *example.shape[1:]), example.dtype)
    for first in range(0, len(numbers), _READ):
        at = numbers[first : first + _READ]
        images[first : first + len(at)] = stored[at]
    return images
