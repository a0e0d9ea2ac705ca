"""The clients' heads between rounds: on the host, handed out for a cohort and taken back.

Only :class:`ClientStates` knows where the newest head of a client is: on the devices, on the
host and not yet written, or in the store. While a round runs on the devices, the host writes the
heads of the previous round and reads those of the next one.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax import engine
from fedfr_jax.algorithm.initialize import head_shapes
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.algorithm.state import Heads
from fedfr_jax.algorithm.transforms import TRANSFORMS
from fedfr_jax.errors import InputError
from fedfr_jax.population import division
from fedfr_jax.population.store import RowStore
from fedfr_jax.runtime.checkpoints import saved_rounds
from fedfr_jax.runtime.processes import together
from fedfr_jax.runtime.progress import track
from fedfr_jax.runtime.simulation import Simulation

PyTree = Any
FOLDER = "heads"


def open_store(sim: Simulation, workdir: str | pathlib.Path | None) -> RowStore:
    """The heads of this process' clients, in the work directory or (None) in memory.

    If the run had another number of processes, all heads are divided anew first. All processes
    call this together.

    Raises:
      InputError: the run was made with other settings, or the files are damaged or missing.
    """
    if workdir is None:
        return RowStore(row_shapes(sim), len(sim.schedule.clients), None)
    folder, processes = pathlib.Path(workdir) / FOLDER, jax.process_count()
    folder.mkdir(parents=True, exist_ok=True)
    if division.processes_of(folder) not in (0, processes):
        _divide_anew(sim, folder)
    elif jax.process_index() == 0:
        division.remove_others(folder, processes)
    path = division.store_file(folder, jax.process_index(), processes)
    return RowStore(row_shapes(sim), len(sim.schedule.clients), path)


def _divide_anew(sim: Simulation, folder: pathlib.Path) -> None:
    """Divides the heads in a folder among the present processes; each writes its own."""
    before, now = division.processes_of(folder), jax.process_count()
    what = f"dividing the clients' heads of {before} process{'es' * (before > 1)} among {now}"
    with track(what, None, "client") as bar:
        division.divide_anew(
            row_shapes(sim),
            len(sim.schedule.clients),
            folder,
            now,
            parts=(jax.process_index(),),
            first=jax.process_index() == 0,
            rounds=saved_rounds(folder.parent),
            together=together,
            tick=bar.update,
        )


def open_stores(sim: Simulation, workdir: str | pathlib.Path) -> list[RowStore]:
    """The heads of all processes' clients, to be read only.

    Raises:
      InputError: there are none, some are missing, or they are damaged.
    """
    return saved_stores(row_shapes(sim), len(sim.schedule.clients), workdir)


def saved_stores(example: PyTree, population: int, workdir: str | pathlib.Path) -> list[RowStore]:
    """:func:`open_stores` of a run whose data are not open.

    Args:
      example: from :func:`fedfr_jax.algorithm.initialize.head_shapes`.
      population: training clients.
    """
    folder = pathlib.Path(workdir) / FOLDER
    processes = division.processes_of(folder)
    if not processes:
        raise InputError(
            f"{folder} holds no clients' heads; train first, or restore it from a copy"
        )
    paths = [division.store_file(folder, p, processes) for p in range(processes)]
    missing = [p for p in paths if not p.with_suffix(".json").exists()]
    if missing:
        raise InputError(
            f"{missing[0].with_suffix('.json')} is missing; the heads are divided among "
            f"{processes} process{'es' * (processes > 1)}, copy the files of all here"
        )
    return [RowStore(example, population, p, read_only=True) for p in paths]


def row_shapes(sim: Simulation) -> PyTree:
    """Shapes and types of one client's head."""
    return head_shapes(
        sim.spec,
        sim.schedule.most_identities,
        sim.config.population.previous,
        sim.public.identities,
    )


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Heads of some slots on the host: (C,) clients, whether each is known, heads (C, ...)."""

    clients: np.ndarray
    known: np.ndarray
    rows: PyTree

    def with_newer(self, newer: _Rows) -> _Rows:
        """These heads, replaced by those in ``newer`` for the same clients."""
        _, here, there = np.intersect1d(self.clients, newer.clients, return_indices=True)
        real = self.clients[here] >= 0
        here, there = here[real], there[real]
        known = self.known.copy()
        known[here] = newer.known[there]

        def put(old, new):
            old = np.array(old)
            old[here] = new[there]
            return old

        return _Rows(self.clients, known, jax.tree.map(put, self.rows, newer.rows))


class ClientStates:
    """Hands out the heads of each round's cohort and takes them back.

    Its methods may be called in any order. :meth:`take_back` also updates the heads that
    :meth:`read_ahead` fetched, so writing in between, as for an evaluation, changes nothing.
    Heads that have not come back from a round are never used as its result.

    Args:
      sim: the simulation.
      store: of this process' clients, after ``round_index`` rounds. Only this object writes to it.
      round_index: rounds done.
      start: from :func:`fedfr_jax.runtime.programs.compile_start`.
      pretrained: variables, on the devices.
      key: for the random parts of initial heads.
    """

    def __init__(
        self,
        sim: Simulation,
        store: RowStore,
        round_index: int,
        start: Callable,
        pretrained: PyTree,
        key,
    ):
        check_whole(store, round_index)
        self._sim, self._store, self._start = sim, store, start
        self._pretrained, self._key = pretrained, key
        self._on_device: tuple[np.ndarray, Heads] | None = None  # slots' clients, their heads
        self._round = round_index  # the host has all heads of this round
        self._newer: int | None = None  # round of the heads that are only on the devices
        self._unwritten: tuple[_Rows, int] | None = None  # newer than the store
        self._ahead: _Rows | None = None  # as new as the store plus the unwritten heads

    def hand_out(self, clients: np.ndarray, cohort) -> Heads:
        """The heads of a round, on the devices; the round may donate their memory.

        Args:
          clients: (C,) this process' slots.
          cohort: the round's data, for clients that have no head yet.
        """
        if self._on_device is not None and np.array_equal(self._on_device[0], clients):
            heads, self._on_device = self._on_device[1], None
            return heads
        self._to_host()
        self._on_device = None
        ahead, self._ahead = self._ahead, None
        if ahead is None or not np.array_equal(ahead.clients, clients):
            ahead = self._read(clients)
        mesh = self._sim.layout.mesh
        heads = engine.spread(ahead.rows, mesh)
        known = ahead.known
        if known[clients >= 0].all() and jax.process_count() == 1:  # else run it in all processes
            return heads
        return self._start(
            heads, engine.spread(known, mesh), self._pretrained, self._sim.public, cohort, self._key
        )

    def read_ahead(self, clients: np.ndarray) -> None:
        """Reads the heads of the next round's slots of this process."""
        self._ahead = self._read(clients)

    def take_back(
        self,
        clients: np.ndarray,
        heads: Heads,
        round_index: int,
        *,
        to_host: bool,
        stays: bool = True,
    ) -> None:
        """Takes the heads after ``round_index`` rounds.

        Args:
          to_host: copy them to the host at once; later it is too late if the next round uses
            the same heads.
          stays: the next round may take them from the devices.
        """
        self._on_device, self._newer = (clients, heads), round_index
        if to_host:
            self._to_host()
        if not stays:
            self._on_device = None

    def pass_over(self, round_index: int) -> None:
        """Notes a round without clients, after which ``round_index`` rounds are done."""
        self._to_host()
        self._round = round_index

    def write(self) -> None:
        """Writes the unwritten heads on the host into the store."""
        if self._unwritten is not None:
            newer, round_index = self._unwritten
            self._store.write(newer.clients, newer.rows, round_index)
            self._unwritten = None

    def commit(self, round_index: int) -> None:
        """Commits the heads as those of ``round_index``, durably.

        Raises:
          RuntimeError: the host does not have them.
        """
        self._settle(round_index)
        self._store.commit(round_index)

    def models(self, round_index: int, backbone: PyTree) -> Callable[[int], tuple[PyTree, PyTree]]:
        """The personalized models after ``round_index`` rounds; see :func:`own_models`.

        Args:
          backbone: the global variables after as many rounds.

        Raises:
          RuntimeError: the host does not have the heads.
        """
        self._settle(round_index)
        return own_models(self._sim, self._store, backbone)

    def _settle(self, round_index: int) -> None:
        """Writes everything into the store, if it is the state after ``round_index`` rounds."""
        if self._on_device is not None:
            self._to_host()
        if round_index != self._round:
            raise RuntimeError(
                f"the host has the heads after round {self._round}, not those after {round_index}"
            )
        self.write()

    def _to_host(self) -> None:
        """Copies the heads that are only on the devices."""
        if self._newer is None:
            return
        if self._on_device is None:
            raise RuntimeError(f"the heads after round {self._newer} were given to a later round")
        self.write()
        clients, heads = self._on_device
        newer = _Rows(clients, clients >= 0, engine.local_rows(heads))
        self._unwritten, self._round, self._newer = (newer, self._newer), self._newer, None
        if self._ahead is not None:
            self._ahead = self._ahead.with_newer(newer)

    def _read(self, clients: np.ndarray) -> _Rows:
        found = _Rows(clients, self._store.known(clients), self._store.read(clients))
        return found if self._unwritten is None else found.with_newer(self._unwritten[0])


def check_whole(store: RowStore, round_index: int) -> None:
    """Raises InputError if a round after these was interrupted, so that they do not go together."""
    if store.newest > round_index or store.rounds[-1:] not in ([round_index], []):
        raise InputError(
            "the rounds were interrupted: server and clients are not of one "
            "round; open the experiment again with resume=True"
        )


def check_own(client: int) -> None:
    """Raises InputError if another process has this client's head."""
    processes = jax.process_count()
    if client % processes != jax.process_index():
        raise InputError(
            f"the head of client {client} is in process {client % processes} of {processes}; ask "
            "there, or open the run in one process"
        )


def own_models(
    sim: Simulation, store: RowStore, backbone: PyTree
) -> Callable[[int], tuple[PyTree, PyTree]]:
    """:func:`personal_models` of this process' clients alone; InputError for others.

    Args:
      store: of this process' clients.
      backbone: the global variables after the last round, on the devices of all processes.
    """
    models = personal_models(sim, [store], engine.addressable(backbone))

    def model(client):
        check_own(client)
        return models(client)

    return model


def head_of(store: RowStore, client: int) -> dict[str, Any]:
    """A client's private state, as arrays by the names of :class:`Heads`.

    Raises:
      KeyError: the client has not taken part yet.
    """
    number = np.array([client])
    if not store.known(number)[0]:
        raise KeyError(f"client {client} has not taken part in a round yet")
    head = jax.tree.map(lambda x: np.asarray(x[0]), store.read(number))
    return {name: getattr(head, name) for name in head.__dataclass_fields__}


def personal_models(
    sim: Simulation, stores: Sequence[RowStore], backbone: PyTree
) -> Callable[[int], tuple[PyTree, PyTree]]:
    """``client number -> (variables, transform)`` of its personalized model.

    A client that never took part has the model with which it would start its first round: the
    global backbone (with private tensors as pretrained) and an untrained transform. If one client
    trains for all (``Recipe.union``), all clients have the global backbone. If previous backbones
    are not kept, a client's model is the global backbone with its own transform.

    Args:
      stores: one per process of the run, all of them of the server's round.
      backbone: the global variables after the last round.
    """
    return models_of(sim.spec, stores, backbone)


def models_of(
    spec: RoundSpec, stores: Sequence[RowStore], backbone: PyTree
) -> Callable[[int], tuple[PyTree, PyTree]]:
    """:func:`personal_models` of a run whose data are not open."""
    transform = TRANSFORMS[spec.terms.transform]
    untrained = transform.init(jax.random.key(0), spec.backbone.embedding)
    if spec.recipe.union:
        return lambda client: (backbone, untrained)

    def model(client):
        store = stores[client % len(stores)]
        if not store.known(np.array([client]))[0]:
            return backbone, untrained
        row = jax.tree.map(lambda x: x[0], store.read(np.array([client])))
        if row.previous is None:
            return backbone, row.transform
        return (
            jax.tree.map(lambda v, like: jnp.asarray(v, like.dtype), row.previous, backbone),
            row.transform,
        )

    return model
