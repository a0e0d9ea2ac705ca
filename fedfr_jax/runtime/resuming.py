"""Resumes a run, for training or evaluation: its data, its pretrained model, its state."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import logging

import fedfr_jax
from fedfr_jax.algorithm.initialize import server_shapes
from fedfr_jax.algorithm.state import ServerState
from fedfr_jax.atomic import write_file
from fedfr_jax.config import to_dict
from fedfr_jax.data.split_file import save_split
from fedfr_jax.errors import InputError, InUseError
from fedfr_jax.population import division
from fedfr_jax.population.store import RowStore
from fedfr_jax.runtime import client_states, fingerprints, lock, workdir
from fedfr_jax.runtime.changes import changed_settings
from fedfr_jax.runtime.checkpoints import (
    RoundCheckpoints,
    digest_of,
    load_pytree,
    newest_whole,
    saved_rounds,
)
from fedfr_jax.runtime.json_file import plain
from fedfr_jax.runtime.processes import check_equal, together
from fedfr_jax.runtime.simulation import Simulation

PyTree = Any
_PRETRAINED = "pretrained"
_OF_THE_RUN = (workdir.CONFIG, workdir.DIGESTS, workdir.METRICS, fingerprints.NAME)
# Paths that may differ between processes; the files' content is compared instead.
_OWN = (
    "engine.cpu_devices",
    "data.workers",
    "data.root",
    "population.schedule",
    "population.availability",
    "simulated_time.speeds",
    "simulated_time.bandwidths",
    "model.weights",
)


def has_state(folder: pathlib.Path) -> bool:
    """Whether any computed state is saved in a work directory."""
    return (folder / _PRETRAINED / "backbone").is_dir() or bool(saved_rounds(folder))


def begin(
    sim: Simulation, folder: pathlib.Path, own: pathlib.Path, resume: bool
) -> workdir.RunWriter:
    """Starts or resumes a run, after comparing its settings and data with those in the folder.

    Args:
      sim: the simulation.
      folder: the work directory; ``own``: this process' part of it.
      resume: continue the run that is there.

    Raises:
      InputError: the directory cannot be used, or settings or data are not those of its run.
    """
    config, found = to_dict(sim.config), fingerprints.fingerprint(sim)
    heads = folder / client_states.FOLDER
    earlier = together(lambda: division.earlier_processes(heads, jax.process_count()))
    if earlier and resume:
        together(lambda: _join(folder, own))
    if jax.process_count() > 1:
        check_equal(_in_common(config, found))
    # Nobody writes any state before all have looked: to the others it would be a damaged run's.
    return together(lambda: _open(sim, folder, own, resume, found, earlier))


def _open(
    sim: Simulation,
    folder: pathlib.Path,
    own: pathlib.Path,
    resume: bool,
    found: dict[str, Any],
    earlier: int,
) -> workdir.RunWriter:
    """Compares with what the folder holds, and opens it; of the data, ``found`` is here.

    Raises:
      InputError: as :func:`begin`.
    """
    config = to_dict(sim.config)
    begun = resume and (own / workdir.CONFIG).exists() and has_state(folder)
    if begun:
        check_data(sim, own)
        _check_rounds(sim, folder, workdir.read_config(own)["fed"]["rounds"])
        found = fingerprints.read_fingerprint(own) | found
    elif not (own / workdir.CONFIG).exists() and (
        saved_rounds(folder) or (folder / client_states.FOLDER).exists()
    ):
        raise InputError(
            f"{folder} holds the state of a run, but no {workdir.CONFIG}; restore it "
            "from a copy, or choose another --workdir"
        )
    workdir.announce_config(own, config)
    may_change = {} if begun else {"may_change": ("",)}
    writer = workdir.open_run(own, config, resume, **may_change)
    if begun and earlier:
        _note_processes(writer, earlier)
    fingerprints.write_fingerprint(own, found)
    save_split(own / fingerprints.SPLIT, sim.split)
    return writer


def _join(folder: pathlib.Path, own: pathlib.Path) -> None:
    """Prepares a process' own folder for a run that had another number of processes.

    Raises:
      InUseError: a process of that run is still there.
    """
    for other in (folder / "processes").glob("*"):
        gone = other.name.isdigit() and int(other.name) >= jax.process_count()
        if gone and (who := lock.holder_of(other)):
            raise InUseError(
                f"{other} is in use by {who}, of the run before; wait for it. If it is gone, "
                f"delete {other / lock.NAME}"
            )
    if own == folder:
        return
    # What the folder has is of an earlier time, or of no time at all: process 0 has it all.
    for name in _OF_THE_RUN:
        if (folder / name).exists():
            _copy(folder / name, own / name)
        else:
            (own / name).unlink(missing_ok=True)


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    content = source.read_bytes()
    write_file(target, lambda file: file.write(content))


def _note_processes(writer: workdir.RunWriter, earlier: int) -> None:
    """Records another number of processes as a change; once, also after a kill on the way to it."""
    rows = []
    if (writer.workdir / workdir.METRICS).exists():
        rows = workdir.read_metrics(writer.workdir)
    noted = [row["settings"].get("processes") for row in rows if row.get("kind") == "change"]
    now = [earlier, jax.process_count()]
    if [change for change in noted if change][-1:] != [now]:
        writer.append_change({"processes": tuple(now)})


def _check_rounds(sim: Simulation, folder: pathlib.Path, earlier: int) -> None:
    """Refuses a change of ``fed.rounds`` once the run is in its method's additional rounds."""
    rounds, method = sim.config.fed.rounds, sim.config.recipe
    done = max(saved_rounds(folder), default=0)
    if method.extra_rounds and rounds != earlier and done > min(rounds, earlier):
        raise InputError(
            f"fed.rounds is {rounds}, but the run in {folder} had {earlier} and has done {done}: "
            f"{method.title} ends with {method.extra_rounds} of another kind, which must follow "
            f"all others; keep fed.rounds={earlier}, or choose another work directory"
        )


def _in_common(config, found) -> dict[str, Any]:
    values = {
        key: plain(new) for key, (_, new) in changed_settings({}, config).items() if key not in _OWN
    }
    return (
        values
        | {f"data ({key})": value for key, value in found.items()}
        | {"version of jax": jax.__version__, "version of fedfr_jax": fedfr_jax.__version__}
    )


def _check_split(sim: Simulation, own: pathlib.Path) -> None:
    if wrong := fingerprints.check_split(own, sim.split):
        logging.warning("%s; the data give the same split again", wrong)


def check_data(sim: Simulation, own: pathlib.Path) -> None:
    """Compares the data with those at the start of the run.

    Raises:
      InputError: they differ.
    """
    fingerprints.compare(own, fingerprints.read_fingerprint(own), fingerprints.fingerprint(sim))
    _check_split(sim, own)


def check_pretrained(own: pathlib.Path, *, record: bool = False, **pretrained: PyTree) -> None:
    """Compares the pretrained model with the run's.

    Args:
      own: this process' folder.
      record: store its digest if the run has none yet.
      pretrained: ``pretrained``, the variables of the backbone, and ``classifier``, the public
        class embeddings learned with it, or None for none.

    Raises:
      InputError: it is another one.
    """
    found = fingerprints.read_fingerprint(own)
    now = {name: digest_of(part) for name, part in pretrained.items()}
    fingerprints.compare(own, found, now)
    if record and any(found.get(name) != digest for name, digest in now.items()):
        fingerprints.write_fingerprint(own, found | now)


def load_pretrained(sim: Simulation, folder: pathlib.Path) -> PyTree:
    """The variables before the first round of the run in a work directory.

    Raises:
      InputError: they are missing, damaged, or not those of the run.
    """
    example = jax.eval_shape(sim.network.init, jax.random.key(0))
    pretrained = load_pytree(folder / _PRETRAINED / "backbone", example)
    check_pretrained(folder, pretrained=pretrained)
    return pretrained


def newest_state(
    sim: Simulation, checkpoints: RoundCheckpoints, store: RowStore
) -> ServerState | None:
    """The newest complete state; the clients' state is rewound to it. None: there is none.

    Damaged checkpoints are moved aside, with a warning.

    Raises:
      InputError: no state can be used.
    """
    found = _newest(sim, checkpoints, store.check)
    if found is None:
        store.rewind(0)
        return None
    round_index, server, damaged = found
    for newer, wrong in damaged.items():
        logging.warning(
            "the checkpoint of round %d cannot be used and is now in %s: %s",
            newer,
            checkpoints.set_aside(newer),
            wrong,
        )
    lost = [r for r in store.kept if r > round_index and r not in damaged]
    if lost:
        logging.warning("the checkpoint of round %d is gone", lost[-1])
    if damaged or lost:
        logging.warning("going on from round %d", round_index)
    store.rewind(round_index)
    return server


def drop_later_rows(writer: workdir.RunWriter, round_index: int) -> None:
    """Drops the records after the restored round; reports which earlier ones are lost."""
    writer.truncate_after(round_index)
    rows = workdir.read_metrics(writer.workdir)
    there = {row["round"] for row in rows if row.get("kind") == "round"}
    if lost := sorted(set(range(1, round_index + 1)) - there):
        logging.warning(
            "%s lacks the rows of %d rounds, from round %d on; the state of the run is whole",
            writer.workdir / workdir.METRICS,
            len(lost),
            lost[0],
        )


def state_to_evaluate(
    sim: Simulation, checkpoints: RoundCheckpoints, stores: Sequence[RowStore]
) -> ServerState:
    """The server of the newest complete round, and the clients' state of the same round.

    Args:
      stores: of all processes, read only; afterwards they give the rows of that round.

    Raises:
      InputError: no state can be used.
    """

    example = server_shapes(sim.spec, sim.public.identities)
    found = state_to_read(checkpoints, example, stores)
    if found is None:
        raise InputError(
            "there is no checkpoint of the server: train with --resume, or restore "
            "checkpoints/ if it is lost"
        )
    round_index, server = found
    if round_index != checkpoints.rounds()[-1]:
        logging.warning("evaluating round %d", round_index)
    return server


def state_to_read(
    checkpoints: RoundCheckpoints, example: ServerState, stores: Sequence[RowStore]
) -> tuple[int, ServerState] | None:
    """The newest round that is not damaged, for reading only; warns of newer ones that are.

    Args:
      example: as for :meth:`RoundCheckpoints.restore`.
      stores: opened to be read only; afterwards they give the rows of that round.

    Returns:
      (round, server); None if there is no checkpoint.

    Raises:
      InputError: no state can be used.
    """

    def check(round_index):
        for store in stores:
            store.check(round_index)

    found = newest_whole(checkpoints, example, _together(check))
    if found is None:
        return None
    round_index, server, damaged = found
    for newer, wrong in damaged.items():
        logging.warning("the checkpoint of round %d cannot be used: %s", newer, wrong)
    for store in stores:
        store.rewind(round_index)
    return round_index, server


def _newest(
    sim: Simulation, checkpoints: RoundCheckpoints, check: Callable[[int], None]
) -> tuple[int, ServerState, dict[int, str]] | None:
    return newest_whole(
        checkpoints, server_shapes(sim.spec, sim.public.identities), _together(check)
    )


def _together(check: Callable[[int], None]) -> Callable[[int], None]:
    """A check that passes only if all processes pass it."""

    def all_check(round_index):
        failed = f"another process cannot use the clients' state of round {round_index}"
        together(lambda: check(round_index), failed)

    return all_check
