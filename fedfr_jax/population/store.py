"""Stored state of a whole population: one row per client, in memory-mapped files.

Only a few clients of a large population are on the devices at a time. The state of all others is
in a :class:`RowStore`, which survives a kill at any moment and can go back to the rounds whose
checkpoints are kept. A row is the state of one client.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import threading
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from fedfr_jax.errors import DamagedError, InputError
from fedfr_jax.population.journal import Commit, read_journal, write_journal
from fedfr_jax.population.records import Records, check_of
from fedfr_jax.population.row_layout import RowLayout, bytes_of

PyTree = Any
_WORD = 1 << 64


class RowStore:
    """Rows of the clients that were ever written; all others use no space.

    A row that is part of a committed round is never overwritten: a newer one goes to another
    record, and the older is released when no committed round needs it any more (:meth:`retain`).
    So a client has at most one record more than there are kept rounds. The caller's loop is:

    ``write`` the rows of round R, ``commit(R)``, save the checkpoint of R and wait for it, then
    ``retain`` the rounds whose checkpoints are on disk.

    After a kill at any moment, opening the store and ``rewind(R)``, for any round R with a
    checkpoint, gives exactly the rows after round R. :meth:`read` compares the checksum of every
    row; the journal has one of all rows together, so that lost or foreign rows are found, too.

    Files: ``<name>.json``, the journal; ``<name>.table``, the records' headers; ``<name>.rows``.
    Only one process may have them open. Its threads share the store through a lock.
    """

    def __init__(
        self,
        example: PyTree,
        population: int,
        path: str | os.PathLike | None,
        *,
        read_only: bool = False,
    ) -> None:
        """Opens or creates a store.

        Args:
          example: one client's row, a pytree of arrays or ``jax.ShapeDtypeStruct``.
          population: number of clients; their ids are 0 to population - 1.
          path: the file of the rows; the others are beside it. None: in memory.
          read_only: the files are never changed.

        Raises:
          InputError: the files are damaged, or hold other rows than these.
          ValueError: a leaf is not of a plain dtype, or ``population`` is out of range.
        """
        if not 1 <= population < 1 << 30:
            raise ValueError(f"population: {population}; must be in [1, 2^30)")
        self._population, self._read_only = population, read_only
        self._path = None if path is None else pathlib.Path(path)
        self._name = "row store in memory" if path is None else os.fspath(path)
        self._layout = RowLayout.of(example)
        self._lock = threading.RLock()
        self._commits = self._read_journal()
        self._records = Records(self._path, self._layout.size, read_only)
        try:
            self._scan()
        except BaseException:
            self.close()
            raise

    @property
    def rounds(self) -> list[int]:
        """The committed rounds, oldest first."""
        return [commit.round for commit in self._commits]

    @property
    def newest(self) -> int:
        """The round of the newest row, committed or not; -1 without any."""
        return self._newest_round

    @property
    def kept(self) -> list[int]:
        """The committed rounds whose checkpoints are known to have been on disk."""
        return [commit.round for commit in self._commits if commit.kept]

    def known(self, clients: np.ndarray) -> np.ndarray:
        """Returns (n,) bool: which clients have a row; False for -1 (none).

        Raises:
          ValueError: an id is out of range.
        """
        clients = self._ids(clients)
        with self._lock:
            return (self._newest[clients] > 0) & (clients >= 0)

    def read(self, clients: np.ndarray) -> PyTree:
        """Returns the newest rows of (n,) ``clients``, a pytree of numpy arrays (n, ...).

        Rows of clients that were never written, and of -1 (none), are zeros.

        Raises:
          ValueError: an id is out of range.
          DamagedError: a row is not as it was written.
        """
        clients = self._ids(clients)
        leaves = self._layout.empty(len(clients))
        parts = [bytes_of(leaf) for leaf in leaves]
        with self._lock:
            records = np.where(clients >= 0, self._newest[clients], 0) - 1
            for i in np.flatnonzero(records >= 0):
                self._check_row(records[i])
                row = self._records.rows[records[i]]
                for leaf, part in zip(self._layout.leaves, parts, strict=True):
                    part[i] = row[leaf.start : leaf.stop]
        return jax.tree_util.tree_unflatten(self._layout.structure, leaves)

    def write(self, clients: np.ndarray, rows: PyTree, round: int) -> None:
        """Replaces the rows of (n,) ``clients``.

        Args:
          clients: ids, each at most once; rows at -1 (none) are skipped.
          rows: pytree of arrays (n, ...), on a device or not.
          round: number of rounds done, above the last committed one.

        Raises:
          ValueError: ids repeat or are out of range, ``rows`` do not match the example, or a client
            has a row of a later round already.
          InputError: the disk is full.
        """
        clients = self._ids(clients)
        parts = self._layout.parts(rows, len(clients))
        present = np.flatnonzero(clients >= 0)
        ids = clients[present]
        if len(np.unique(ids)) < len(ids):
            raise ValueError(f"clients: an id repeats in {ids.tolist()}")
        with self._lock:
            self._check_order(ids, round)
            try:
                self._replace(ids, [part[present] for part in parts], round)
            except BaseException:
                self._scan()  # half-written records belong to no client
                raise

    def commit(self, round: int) -> None:
        """Commits the present rows as those of ``round``, durably, before its checkpoint is saved.

        Raises:
          ValueError: this or a later round was committed, or rows of a later round were written.
        """
        with self._lock:
            last, newest = self._last(), self._newest_round
            if round <= last or round < newest:
                raise ValueError(
                    f"commit({round}) comes too late: round {last} is committed, the "
                    f"newest row is of round {newest}"
                )
            self._records.flush()
            self._set_commits([*self._commits, Commit(round, self._count, self._digest)])

    def retain(self, rounds: Iterable[int]) -> None:
        """Releases rows that none of these rounds, whose checkpoints are on disk, needs.

        The newest committed round is always kept.
        """
        rounds = set(rounds)
        with self._lock:
            self._set_commits(
                [
                    dataclasses.replace(commit, kept=commit.kept or commit.round in rounds)
                    for i, commit in enumerate(self._commits, start=1)
                    if commit.round in rounds or i == len(self._commits)
                ]
            )
            self._release()

    def check(self, round: int) -> None:
        """Checks that all rows of a committed round are there.

        Reads only the rows that no earlier committed round shares: if they are damaged, going back
        helps. All other rows are checked when they are read.

        Raises:
          InputError: the round was not committed.
          DamagedError: rows are lost or are not as they were written.
        """
        with self._lock:
            commit = next((c for c in self._commits if c.round == round), None)
            if commit is None:
                raise InputError(
                    f"{self._name} holds the clients' state of "
                    f"{_rounds_in_words(self.rounds)}, not of round {round}, the server's: files "
                    "are missing or are from another copy; restore them, or start in another "
                    "work directory"
                )
            records, _, _ = self._records.versions(self._population, until=round)
            headers = self._records.table[records]
            found = (len(records), int(headers["check"].sum(dtype=np.uint64)))
            if found != (commit.clients, commit.digest):
                raise DamagedError(
                    f"{self._name}: the clients' rows of round {round} are damaged "
                    f"({found[0]} of {commit.clients} are there)"
                )
            for record in records[headers["round"] > self._commits[0].round]:
                self._check_row(record)

    def rewind(self, round: int) -> None:
        """Discards what was written after ``round``, a committed round or 0.

        Raises:
          InputError: rows of that round are not there, or checkpoints are missing.
          DamagedError: they are not as they were written.
        """
        with self._lock:
            if round or 0 in self.rounds:
                self.check(round)
            elif self.kept:
                raise InputError(
                    f"{self._name} holds the clients' state of {_rounds_in_words(self.rounds)}, "
                    "but no checkpoint of the server is there: restore checkpoints/, or start in "
                    "another work directory"
                )
            self._set_commits([c for c in self._commits if c.round <= round])
            table = self._records.table
            table["client"][table["round"] > round] = 0
            if not self._commits:
                table["client"] = 0
            self._scan()

    def touched(self) -> np.ndarray:
        """Returns the ids of all clients that have a row, int64, ascending."""
        with self._lock:
            return np.flatnonzero(self._newest)

    @property
    def nbytes(self) -> int:
        """Bytes actually used on disk, or in memory."""
        with self._lock:
            return self._records.nbytes

    def close(self) -> None:
        """Releases files and memory; written data stays in the files."""
        with self._lock:
            self._records.close()

    def __enter__(self) -> RowStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_journal(self) -> list[Commit]:
        if self._path is None:
            return []
        journal, files = (
            self._path.with_suffix(".json"),
            (self._path, self._path.with_suffix(".table")),
        )
        try:
            if journal.exists():
                return read_journal(journal, self._describe())
            if self._read_only or any(file.exists() for file in files):
                raise InputError(f"{journal} is missing; restore it from a copy")
            write_journal(journal, self._describe(), [])
        except OSError as error:
            raise InputError(f"{self._name}: cannot be opened as a row store: {error}") from error
        return []

    def _describe(self) -> dict[str, Any]:
        return {"population": self._population, **self._layout.describe()}

    def _set_commits(self, commits: list[Commit]) -> None:
        if commits != self._commits and self._path is not None and not self._read_only:
            write_journal(self._path.with_suffix(".json"), self._describe(), commits)
        self._commits = commits

    def _last(self) -> int:
        return self._commits[-1].round if self._commits else -1

    def _ids(self, clients: np.ndarray) -> np.ndarray:
        clients = np.asarray(clients)
        if clients.ndim != 1 or (clients.size and clients.dtype.kind not in "iu"):
            raise ValueError(f"clients: {clients.dtype}{clients.shape}; must be (n,) whole numbers")
        clients = clients.astype(np.int64)
        if len(clients) and not -1 <= clients.min() <= clients.max() < self._population:
            raise ValueError(f"clients: ids must be in [-1, {self._population}), some are not")
        return clients

    def _scan(self) -> None:
        """Rebuilds, from the table, which client owns which record."""
        newest, older, followed = self._records.versions(self._population)
        table = self._records.table
        # (population,) newest record of each client + 1. Pages that stay zero use no memory.
        self._newest = np.zeros(self._population, np.int32)
        self._newest[table["client"][newest] - 1] = newest + 1
        self._count = len(newest)
        self._digest = int(table["check"][newest].sum(dtype=np.uint64))
        self._newest_round = int(table["round"][newest].max(initial=-1))
        # Records that a newer one replaced: (number, its round, the newer one's round).
        self._replaced = np.stack([older, table["round"][older], followed])
        owned = np.zeros(self._records.used, bool)
        owned[newest] = owned[older] = True
        self._free = np.flatnonzero(~owned).tolist()
        self._release()

    def _release(self) -> None:
        """Releases replaced records that are part of no committed round."""
        rounds = np.array([*self.rounds, np.iinfo(np.int64).max])
        records, begin, end = self._replaced
        needed = rounds[np.searchsorted(rounds, begin)] < end
        self._records.table["client"][records[~needed]] = 0
        self._free += records[~needed].tolist()
        self._replaced = self._replaced[:, needed]

    def _check_order(self, ids: np.ndarray, round: int) -> None:
        last, table = self._last(), self._records.table
        there = self._newest[ids]
        newest = table["round"][there[there > 0] - 1].max(initial=-1)
        if round < 0 or round <= last or round < newest:
            raise ValueError(
                f"round: {round}; round {last} is committed, and no row may be replaced by one of "
                "an earlier round"
            )

    def _replace(self, ids: np.ndarray, parts: list[np.ndarray], round: int) -> None:
        """Writes rows of present clients."""
        before = self._newest[ids].astype(np.int64) - 1
        had = before >= 0
        table = self._records.table
        rounds = np.full(len(ids), -1)
        rounds[had] = table["round"][before[had]]
        reuse = had & (rounds > self._last())  # part of no committed round
        records = np.where(reuse, before, 0)
        records[~reuse] = self._allocate(int((~reuse).sum()))
        table = self._records.table  # may have been replaced by growing
        checks = int(table["check"][before[had]].sum(dtype=np.uint64))
        table["client"][records] = 0
        crc = np.array(
            [self._put(record, [part[i] for part in parts]) for i, record in enumerate(records)],
            np.uint64,
        )
        table["round"][records] = round
        table["crc"][records] = crc
        table["check"][records] = check_of(ids + 1, np.full(len(ids), round), crc)
        table["client"][records] = ids + 1  # last: from here on the rows count
        old = had & ~reuse
        self._replaced = np.concatenate(
            [self._replaced, np.stack([before[old], rounds[old], np.full(int(old.sum()), round)])],
            axis=1,
        )
        self._newest[ids] = records + 1
        self._count += int((~had).sum())
        self._digest = (
            self._digest - checks + int(table["check"][records].sum(dtype=np.uint64))
        ) % _WORD
        if len(ids):
            self._newest_round = max(self._newest_round, round)

    def _allocate(self, count: int) -> np.ndarray:
        """Returns numbers of ``count`` free records."""
        more, used = count - len(self._free), self._records.used
        if more > 0:
            most = self._population * (len(self._commits) + 1)
            self._records.grow(used + more, most)
            self._free += range(used, used + more)
        taken, self._free = self._free[:count], self._free[count:]
        return np.array(taken, np.int64)

    def _put(self, record: int, parts: list[np.ndarray]) -> int:
        """Writes a row's bytes; returns their checksum."""
        return self._layout.put(self._records.rows[record], parts)

    def _check_row(self, record: int) -> None:
        """Raises DamagedError if a record's bytes do not match its checksum."""
        header = self._records.table[record]
        if self._layout.checksum(self._records.rows[record]) != header["crc"]:
            raise DamagedError(
                f"{self._name}: the row of client {header['client'] - 1}, written in round "
                f"{header['round']}, is damaged; restore the file from a copy, or start in another "
                "work directory"
            )


def _rounds_in_words(rounds: list[int]) -> str:
    if not rounds:
        return "no round"
    return f"round{'s' * (len(rounds) > 1)} {', '.join(map(str, rounds))}"
