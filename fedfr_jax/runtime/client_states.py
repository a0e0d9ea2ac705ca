"""The clients' heads between rounds: on the host, fetched for a cohort and written back.

While a round runs on the devices the host writes what the round before left and reads what
the next one needs; only the rows of clients that take part twice in a row wait for the
round's end. Where the next cohort is the same, its heads stay on the devices.
"""
from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax import engine
from fedfr_jax.algorithm.initialize import head_shapes
from fedfr_jax.algorithm.state import Heads
from fedfr_jax.algorithm.transforms import TRANSFORMS
from fedfr_jax.errors import InputError
from fedfr_jax.population.store import RowStore
from fedfr_jax.runtime.simulation import Simulation

PyTree = Any
FOLDER = "heads"


def store_path(workdir: str | pathlib.Path, process: int, processes: int) -> pathlib.Path:
    """File with the heads of the clients that belong to a process."""
    return pathlib.Path(workdir) / FOLDER / f"process-{process}-of-{processes}.rows"


def open_store(sim: Simulation, workdir: str | pathlib.Path | None) -> RowStore:
    """The heads of this process' clients, in the work directory or (None) in memory.

    Raises:
      InputError: the run was made with other settings or another number of processes.
    """
    shapes = head_shapes(sim.spec, sim.schedule.most_identities,
                         sim.config.population.previous)
    if workdir is None:
        return RowStore(shapes, len(sim.schedule.clients), None)
    path = store_path(workdir, jax.process_index(), jax.process_count())
    path.parent.mkdir(parents=True, exist_ok=True)
    others = [p.name for p in path.parent.glob("process-*-of-*.rows")
              if not p.name.endswith(f"-of-{jax.process_count()}.rows")]
    if others:
        raise InputError(f"{path.parent} holds {others[0]}: the run was made with another number "
                         f"of processes than {jax.process_count()}; go on with as many")
    return RowStore(shapes, len(sim.schedule.clients), path)


class CohortHeads:
    """Hands out the heads of each round's cohort and takes them back.

    Args:
      sim: the simulation.
      store: of this process' clients.
      start: from :func:`fedfr_jax.runtime.simulation.compile_start`.
      pretrained: variables, on the devices.
      key: for the random parts of initial heads.
    """

    def __init__(self, sim: Simulation, store: RowStore, start: Callable, pretrained: PyTree, key):
        self._sim, self._store, self._start = sim, store, start
        self._pretrained, self._key = pretrained, key
        self._on_device: tuple[np.ndarray, Heads] | None = None  # slots' clients, their heads
        self._unwritten: tuple[np.ndarray, Heads, int] | None = None

    def read_ahead(self, clients: np.ndarray) -> tuple[np.ndarray, Heads]:
        """(known (C,), stored heads) of the next round's slots of this process."""
        return self._store.known(clients), self._store.read(clients)

    def fetch(self, clients: np.ndarray, ahead: tuple[np.ndarray, Heads] | None,
              cohort) -> Heads:
        """The heads of a round, on the devices.

        Args:
          clients: (C,) this process' slots.
          ahead: from :meth:`read_ahead`, called before the last round's end; None: read now.
          cohort: the round's data, for clients that have no head yet.
        """
        if self._on_device is not None and np.array_equal(self._on_device[0], clients):
            return self._on_device[1]
        known, rows = ahead or self.read_ahead(clients)
        if self._unwritten is not None:
            known, rows = _put_newer(clients, known, rows, *self._unwritten[:2])
        mesh = self._sim.layout.mesh
        heads = engine.spread(rows, mesh)
        if known[clients >= 0].all() and jax.process_count() == 1:  # else all run the program
            return heads
        return self._start(heads, engine.spread(known, mesh), self._pretrained, self._sim.public,
                           cohort, self._key)

    def keep(self, clients: np.ndarray, heads: Heads, round_index: int, *, to_host: bool) -> None:
        """Takes the heads after ``round_index`` rounds.

        Args:
          to_host: copy them to the host, to be written by :meth:`write`; needed where the
            next cohort is another one, and before a checkpoint.
        """
        self._on_device = (clients, heads)
        if to_host:
            self._unwritten = (clients, engine.local_rows(heads), round_index)

    def write(self) -> None:
        """Puts what :meth:`keep` copied to the host into the store."""
        if self._unwritten is not None:
            self._store.write(*self._unwritten)
            self._unwritten = None


def _put_newer(clients, known, rows, newer_clients, newer_rows):
    """Replaces rows that were read before the last round had written them."""
    _, here, there = np.intersect1d(clients, newer_clients, return_indices=True)
    real = clients[here] >= 0
    here, there = here[real], there[real]
    known = known.copy()
    known[here] = True

    def put(old, new):
        old = np.array(old)
        old[here] = new[there]
        return old

    return known, jax.tree.map(put, rows, newer_rows)


def personal_models(sim: Simulation, workdir,
                    backbone: PyTree) -> Callable[[int], tuple[PyTree, PyTree]]:
    """``client number -> (variables, transform)`` of its personalized model.

    A client that never took part has what it would begin its first round with: the global
    backbone (in which what stays with the clients is as pretrained) and an untrained transform.
    Where one client trains for all (``Recipe.union``) everybody has the global backbone. Where
    previous backbones are not kept, a client's transform follows the global one.

    Args:
      workdir: of the run, or an open :class:`RowStore`.
      backbone: the global variables after the last round.
    """
    transform = TRANSFORMS[sim.spec.terms.transform]
    untrained = transform.init(jax.random.key(0), sim.backbone.embedding)
    if sim.spec.recipe.union:
        return lambda client: (backbone, untrained)
    stores = _open_all(sim, workdir)

    def model(client):
        store = stores[client % len(stores)]
        if not store.known(np.array([client]))[0]:
            return backbone, untrained
        row = jax.tree.map(lambda x: x[0], store.read(np.array([client])))
        if row.previous is None:
            return backbone, row.transform
        return (jax.tree.map(lambda v, like: jnp.asarray(v, like.dtype), row.previous, backbone),
                row.transform)

    return model


def _open_all(sim: Simulation, where) -> list[RowStore]:
    if isinstance(where, RowStore):
        return [where]
    shapes = head_shapes(sim.spec, sim.schedule.most_identities,
                         sim.config.population.previous)
    found = sorted((pathlib.Path(where) / FOLDER).glob("process-*-of-*.rows"))
    if not found:
        raise InputError(f"{pathlib.Path(where) / FOLDER} holds no clients' heads; train first")
    processes = int(found[0].stem.split("-")[-1])
    paths = [store_path(where, p, processes) for p in range(processes)]
    missing = [p for p in paths if not p.exists()]
    if missing:
        raise InputError(f"{missing[0]} is missing; the run had {processes} processes, copy the "
                         "files of all of them here")
    return [RowStore(shapes, len(sim.schedule.clients), p) for p in paths]
