"""How the rows of a population are divided among processes, and how they are divided anew.

The row of client i is in the store of process ``i % n``. For another number of processes the
stores of all n are read and those of the new number are written beside them, row by row, with
their headers and checksums as they are. One small file says which of the two counts:
``division.json`` is replaced when the new stores are complete and on the disk. So a kill at any
moment leaves one whole division, and what belongs to the other is removed the next time.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fedfr_jax.atomic import write_text
from fedfr_jax.errors import DamagedError, InputError
from fedfr_jax.population.journal import Commit, read_journal, write_journal
from fedfr_jax.population.records import Records
from fedfr_jax.population.row_layout import RowLayout

PyTree = Any
NAME = "division.json"
_SUFFIXES = (".json", ".table", ".rows")
_WORD = 1 << 64


def store_file(folder: pathlib.Path, process: int, processes: int) -> pathlib.Path:
    """The file with the rows of one process' clients; two others are beside it."""
    return folder / f"process-{process}-of-{processes}.rows"


def processes_of(folder: pathlib.Path) -> int:
    """Number of processes among which the rows in a folder are divided; 0: there are none.

    Raises:
      DamagedError: ``division.json`` is not as it was written.
    """
    path = folder / NAME
    if path.exists():
        return _read(path)
    return next(iter(_divisions(folder)), 0)


def earlier_processes(folder: pathlib.Path, processes: int) -> int:
    """The other number of processes that the rows are, or were just now, divided among; 0: none.

    After a kill while rows were divided anew, the files of both numbers are there.
    """
    now = processes_of(folder)
    if now not in (0, processes):
        return now
    return next((n for n in _divisions(folder) if n != processes), 0)


def remove_others(folder: pathlib.Path, processes: int) -> None:
    """Removes what an interrupted division left of other numbers of processes."""
    for number in _divisions(folder):
        if number != processes:
            _remove(folder, number)


def divide_anew(
    example: PyTree,
    population: int,
    folder: pathlib.Path,
    processes: int,
    *,
    parts: Sequence[int] | None = None,
    first: bool = True,
    rounds: Sequence[int] = (),
    together: Callable[[Callable[[], Any]], Any] = lambda work: work(),
    tick: Callable[[int], Any] = lambda count: None,
) -> None:
    """Divides the rows in a folder among another number of processes, bit for bit the same rows.

    All rounds that every store has committed stay committed. Damaged rows stay damaged: they are
    found when the new stores are checked or read, as they would have been in the old ones.

    Args:
      example, population: as for :class:`~fedfr_jax.population.store.RowStore`.
      folder: of the stores; no one else may have them open.
      processes: the new number.
      parts: the new stores that are written here; None: all of them.
      first: whether what is done once for all processes is done here.
      rounds: those whose checkpoints are on disk.
      together: runs its argument in every process, and returns when all are done; it raises an
        error in all if there is one in any.
      tick: called with the number of rows that were just copied.

    Raises:
      InputError: stores are missing, are of other rounds than ``rounds``, or the disk is full. The
        old stores are untouched.
      DamagedError: a journal is damaged.
    """
    now = processes_of(folder)
    layout = RowLayout.of(example)

    def begin() -> None:
        with _opened(layout, population, folder, now) as old:
            _check_rounds(folder, old, rounds)
        if first:
            _write(folder / NAME, now)  # from here on it decides, not the names of files
            remove_others(folder, now)

    def copy() -> None:
        with _opened(layout, population, folder, now) as old:
            for part in range(processes) if parts is None else parts:
                _write_store(old, layout, population, folder, (part, processes), tick)

    def finish() -> None:
        if first:
            _write(folder / NAME, processes)
            remove_others(folder, processes)

    for step in (begin, copy, finish):
        together(step)


class _Store:
    """One of the old stores: its commits, and which records each of them needs."""

    def __init__(self, path: pathlib.Path, layout: RowLayout, population: int):
        description = {"population": population, **layout.describe()}
        # Without its files a process had not begun: nothing was saved, see _check_rounds().
        self.is_there = path.with_suffix(".json").exists()
        self.commits = read_journal(path.with_suffix(".json"), description) if self.is_there else []
        self.records = Records(path if self.is_there else None, layout.size, self.is_there)
        self.needed = {
            commit.round: self.records.versions(population, until=commit.round)[0]
            for commit in self.commits
        }

    def headers(self, round: int) -> np.ndarray:
        """(n,) headers of the rows of a committed round."""
        return self.records.table[self.needed[round]]


@contextlib.contextmanager
def _opened(
    layout: RowLayout, population: int, folder: pathlib.Path, processes: int
) -> Iterator[list[_Store]]:
    """The stores of a division, to be read only."""
    with contextlib.ExitStack() as files:
        stores = []
        for process in range(processes):
            store = _Store(store_file(folder, process, processes), layout, population)
            files.callback(store.records.close)
            stores.append(store)
        missing = [process for process, store in enumerate(stores) if not store.is_there]
        if missing and any(store.commits for store in stores):
            path = store_file(folder, missing[0], processes).with_suffix(".json")
            raise InputError(
                f"{path} is missing; the rows are divided among {processes} processes, copy the "
                "files of all here"
            )
        yield stores


def _common(stores: Sequence[_Store]) -> list[int]:
    """The rounds that all stores have committed, oldest first."""
    every = [{commit.round for commit in store.commits} for store in stores]
    return sorted(set.intersection(*every))


def _check_rounds(folder: pathlib.Path, stores: Sequence[_Store], rounds: Sequence[int]) -> None:
    if rounds and not set(rounds) & set(_common(stores)):
        raise InputError(
            f"{folder} does not hold the clients' state of round {rounds[-1]}, the server's, for "
            f"all {len(stores)} processes of the run: files are missing or are from another copy; "
            "restore them, or start in another work directory"
        )


def _write_store(
    old: Sequence[_Store],
    layout: RowLayout,
    population: int,
    folder: pathlib.Path,
    place: tuple[int, int],
    tick: Callable[[int], Any],
) -> None:
    """Writes the new store of one process; its journal last."""
    part, processes = place
    path, rounds = store_file(folder, part, processes), _common(old)
    for suffix in _SUFFIXES:
        path.with_suffix(suffix).unlink(missing_ok=True)
    chosen = [_records_of(store, rounds, place) for store in old]
    source = np.repeat(np.arange(len(old)), [len(records) for records in chosen])
    records = np.concatenate([*chosen, np.zeros(0, np.int64)])
    headers = np.concatenate(
        [s.records.table[records] for s, records in zip(old, chosen, strict=True)]
    )
    order = np.lexsort((headers["round"], headers["client"]))
    new = Records(path, layout.size)
    try:
        if len(order):
            new.grow(len(order), len(order))
        for place_in_file, i in enumerate(order):
            new.rows[place_in_file] = old[source[i]].records.rows[records[i]]
            tick(1)
        if len(order):
            new.table[: len(order)] = headers[order]
        new.flush()
    finally:
        new.close()
    write_journal(
        path.with_suffix(".json"),
        {"population": population, **layout.describe()},
        [_commit(old, round, place) for round in rounds],
    )


def _records_of(store: _Store, rounds: Sequence[int], place: tuple[int, int]) -> np.ndarray:
    """Numbers of the records that the rounds need, of the clients of one process."""
    part, processes = place
    records = np.unique(np.concatenate([store.needed[r] for r in rounds] or [np.zeros(0, int)]))
    clients = store.records.table["client"][records] - 1
    return records[clients % processes == part]


def _commit(old: Sequence[_Store], round: int, place: tuple[int, int]) -> Commit:
    """The commit of a new store.

    What the old stores lack of a round, because headers are damaged, the first new one lacks, too.
    """
    part, processes = place
    headers = np.concatenate([store.headers(round) for store in old])
    mine = headers[(headers["client"] - 1) % processes == part]
    clients, digest = len(mine), _sum(mine)
    commits = [next(c for c in store.commits if c.round == round) for store in old]
    if part == 0:
        clients += sum(c.clients for c in commits) - len(headers)
        digest += sum(c.digest for c in commits) - _sum(headers)
    return Commit(round, clients, digest % _WORD, any(c.kept for c in commits))


def _sum(headers: np.ndarray) -> int:
    return int(headers["check"].sum(dtype=np.uint64))


def _divisions(folder: pathlib.Path) -> list[int]:
    """The numbers of processes of which there are files, ascending."""
    found = set()
    for path in folder.glob("process-*-of-*.*"):
        number = path.stem.rpartition("-")[2]
        if number.isdigit() and path.suffix in _SUFFIXES:
            found.add(int(number))
    return sorted(found)


def _remove(folder: pathlib.Path, processes: int) -> None:
    for suffix in _SUFFIXES:  # journals first: what is left is not taken for a store
        for path in folder.glob(f"process-*-of-{processes}{suffix}"):
            path.unlink(missing_ok=True)


def _check(processes: int) -> int:
    return zlib.crc32(f"{processes} processes".encode())


def _write(path: pathlib.Path, processes: int) -> None:
    write_text(path, json.dumps({"processes": processes, "check": _check(processes)}) + "\n")


def _read(path: pathlib.Path) -> int:
    try:
        content = json.loads(path.read_bytes())
        processes, check = content["processes"], content["check"]
        if type(processes) is not int or processes < 1 or check != _check(processes):
            raise ValueError("checksum")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(
            f"{path} is damaged; restore it from a copy, or delete it if the files beside it are "
            "of one number of processes only"
        ) from error
    return processes
