"""The compiled programs of the rounds, and compiling them while data are read."""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedfr_jax import engine
from fedfr_jax.algorithm.initialize import fill_in_new, initial_heads, server_shapes
from fedfr_jax.algorithm.plain import round_function
from fedfr_jax.algorithm.state import ServerState
from fedfr_jax.runtime.client_states import row_shapes
from fedfr_jax.runtime.command_line import COMPILING
from fedfr_jax.runtime.parts import compile_parts
from fedfr_jax.runtime.progress import track
from fedfr_jax.runtime.simulation import Simulation

PyTree = Any
_SMALL_LEAF = 1 << 16  # numbers per client; a copy of so many is nothing


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions of :func:`compile_rounds` (or, for rounds in parts, of
    ``compile_parts``), :func:`compile_start` and :func:`compile_finite`.

    Attributes:
      compiling: the thread of :func:`compile_ahead`.
    """

    round: Any
    start: Callable
    finite: Callable
    compiling: threading.Thread | None = None

    def wait(self) -> None:
        """Waits for what is compiled in the background."""
        if self.compiling is not None:
            with track("compiling the round", None, "", keep=False):
                self.compiling.join()


def compile_programs(sim: Simulation, seeds: int = 1) -> Programs:
    """The programs for ``seeds`` runs in parallel; each compiles on its first call."""
    in_parts = sim.parts_of_rounds is not None
    one = compile_parts(sim.spec, sim.layout) if in_parts else compile_rounds(sim, seeds)
    return Programs(one, compile_start(sim), compile_finite(sim.layout.mesh))


def compile_rounds(sim: Simulation, seeds: int) -> Callable[..., list[tuple]]:
    """``(servers, heads, public, cohort, keys) -> [(server, heads, metrics)]``, runs in parallel.

    Arguments are lists with one entry per run, except ``public`` and ``cohort``, which are shared;
    the servers have done the same number of rounds. Servers and heads are donated.
    """
    one_round, shardings = round_function(sim.spec, sim.layout)
    stacked = ServerState(round=None, backbone=0, public_embeddings=0, optimizer=0, message=0)
    each = jax.vmap(one_round, in_axes=(stacked, 0, None, None, 0), out_axes=(stacked, 0, 0))

    def round_of_runs(servers, heads, public, cohort, keys):
        def stack(trees):
            return jax.tree.map(lambda *x: jnp.stack(x), *trees)

        server = stack(servers).replace(round=servers[0].round)
        server, heads, metrics = each(server, stack(heads), public, cohort, stack(keys))

        def of(i, tree):
            return jax.tree.map(lambda x: x[i], tree)

        rest = server.replace(round=None)
        return [
            (of(i, rest).replace(round=server.round), of(i, heads), of(i, metrics))
            for i in range(seeds)
        ]

    def round_of_run(servers, heads, public, cohort, keys):
        return [one_round(servers[0], heads[0], public, cohort, keys[0])]

    return jax.jit(
        round_of_run if seeds == 1 else round_of_runs,
        donate_argnums=(0, 1),
        out_shardings=[shardings] * seeds,
    )


def compile_start(sim: Simulation) -> Callable[..., PyTree]:
    """``(stored heads, known (C,), pretrained, public, cohort, key) -> heads`` of a cohort."""
    by_client = NamedSharding(sim.layout.mesh, P(engine.AXIS))

    def start(stored, known, pretrained, public, cohort, key):
        initial = initial_heads(
            sim.spec,
            sim.layout,
            pretrained,
            public,
            cohort,
            key,
            most_identities=sim.schedule.most_identities,
            previous=sim.config.population.previous,
        )
        return fill_in_new(stored, known, initial)

    return jax.jit(start, donate_argnums=0, out_shardings=by_client)


def compile_finite(mesh) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """``(server, heads) -> (whether all of the server is finite, the same of each slot (C,))``."""

    def all_finite(tree):  # leaves (N, ...) -> (N,)
        rows = [
            x.reshape(len(x), -1)
            for x in jax.tree.leaves(tree)
            if jnp.issubdtype(x.dtype, jnp.floating)
        ]
        # Every test takes a while to compile: small leaves of one type are tested together.
        together, alone = collections.defaultdict(list), []
        for x in rows:
            (together[x.dtype] if x.shape[1] <= _SMALL_LEAF else alone).append(x)
        tested = [*alone, *(jnp.concatenate(small, 1) for small in together.values())]
        return jnp.stack([jnp.isfinite(x).all(1) for x in tested]).all(0)

    def finite(server, heads):
        return all_finite(jax.tree.map(lambda x: x[None], server))[0], all_finite(heads)

    return jax.jit(finite, out_shardings=NamedSharding(mesh, P()))


@functools.partial(jax.jit, static_argnums=(0, 1))
def round_keys(seeds: tuple[int, ...], mesh: Mesh) -> list[jax.Array]:
    """The key of each run, from which all randomness of its rounds comes.

    On all devices: otherwise it would be copied to them in every round.
    """
    keys = [jax.random.fold_in(jax.random.key(seed), 3) for seed in seeds]
    return jax.lax.with_sharding_constraint(keys, NamedSharding(mesh, P()))


def compile_ahead(sim: Simulation) -> Programs:
    """The programs of one run; a thread compiles them while the caller does other things.

    `jax.jit` finds a compiled program when it is called. If compiling fails here, it is tried
    again then. Nothing is done ahead for rounds in parts, with ``fed.trainable`` (the shapes come
    from activations), and in several processes.

    Args:
      sim: its images need not be read yet.
    """
    programs = compile_programs(sim)
    if sim.parts_of_rounds is not None or sim.parts is not None or jax.process_count() > 1:
        return programs

    def compile_all():
        try:
            [server], [heads], public, cohort, keys = _first_arguments(sim)
            programs.round.lower([server], [heads], public, cohort, keys).compile()
            known = jax.ShapeDtypeStruct(cohort.sizes.shape, bool, sharding=cohort.sizes.sharding)
            key = jax.random.key(0)
            programs.start.lower(heads, known, server.backbone, public, cohort, key).compile()
            programs.finite.lower(server, heads).compile()
        except Exception as error:  # a call raises it where it can be seen
            logging.info("not all programs were compiled ahead: %s", error)

    thread = threading.Thread(target=compile_all, name=COMPILING)
    thread.start()
    return dataclasses.replace(programs, compiling=thread)


def _first_arguments(sim: Simulation) -> tuple:
    """The arguments of the first round as shapes and shardings; the keys themselves."""
    mesh, assigned, size = sim.layout.mesh, sim.schedule.assigned(0), sim.config.data.image_size
    images = jax.ShapeDtypeStruct((len(sim.split.public_images), size, size, 3), jnp.uint8)
    public = sim.public.replace(images=images)
    heads = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((len(assigned), *x.shape), x.dtype), row_shapes(sim)
    )
    server = server_shapes(sim.spec, sim.public.identities)
    return (
        [engine.placed_shapes(server, mesh, divided=False)],
        [engine.placed_shapes(heads, mesh, divided=True)],
        engine.placed_shapes(public, mesh, divided=False),
        sim.cohort_shapes(assigned),
        round_keys((sim.config.seed,), mesh),
    )
