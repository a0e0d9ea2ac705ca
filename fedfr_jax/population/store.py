"""State of a whole population at rest: one row per client, in a memory-mapped file.

Only a few clients of a large population are on the devices at a time. The rows of all others rest
in a :class:`RowStore`, which survives a kill at any moment and can go back to the last checkpoint.
"""
from __future__ import annotations

import dataclasses
import json
import mmap
import os
import pathlib
import tempfile
import threading
from typing import Any, BinaryIO

import jax
import numpy as np

from fedfr_jax.errors import InputError

PyTree = Any

_MAGIC = int.from_bytes(b"FFRROWS\n", "little")
_VERSION = 1
_PAGE = 4096
_ALIGN = 64  # bytes, of rows and of the leaves in them
_FIRST_STEP = 1 << 26  # bytes of rows by which a file grows at first; then it doubles
# Words of 8 bytes at the start of the file; the description in JSON follows them.
_WORDS = 8
_KIND, _FORMAT, _DESCRIPTION, _USED, _COMMITTED = range(5)
# What a record holds. ``client`` is its id + 1, so that a hole in the file is nobody's; 0 also
# marks a row that is being written. ``first`` is the round of the oldest row that the record held
# since its client's protected row: what rounds in [first, round) left there is lost.
_HEADER = np.dtype([("client", "<i8"), ("first", "<i8"), ("round", "<i8")])


class RowStore:
    """Rows of the clients that were ever written; all others cost nothing.

    A client has at most two records: its newest committed row and one newer row. A write goes to
    the record that is not the newest committed one, and a header without a client marks it while
    its bytes change. A kill at any moment, opening again and ``rewind(R)``, R being the last
    checkpoint's round, therefore gives exactly the rows after round R, provided that, in a loop,
    one calls ``write`` of round R, saves the checkpoint of R, waits for it, and calls
    ``commit(R)`` before any ``write`` of a later round. :meth:`commit` and :meth:`rewind` refuse
    what breaks this order. Against loss of power, call :meth:`flush` before saving the checkpoint.

    File layout: 64 bytes of counters, a JSON description, the table of headers, the rows. The table
    has room for two records of everybody, but is sparse, like the rows: copy with
    ``cp --sparse=always``. Headers stand apart from rows so that opening reads 24 bytes per record.

    One process may have a file open. Its threads share the store through a lock.
    """

    def __init__(
        self, example: PyTree, population: int, path: str | os.PathLike | None
    ) -> None:
        """Opens or creates a store.

        Args:
          example: one client's row, a pytree of arrays or ``jax.ShapeDtypeStruct``.
          population: number of clients; their ids are 0 to population - 1.
          path: the file; created if absent. None: in memory.

        Raises:
          InputError: the file is no store, is damaged, or holds other rows than these.
          ValueError: a leaf is not of a plain dtype, or ``population`` is out of range.
        """
        if not 1 <= population < 1 << 30:
            raise ValueError(f"population: {population}; must be in [1, 2^30)")
        self._population = population
        self._name = "row store in memory" if path is None else os.fspath(path)
        self._in_memory = path is None
        self._layout = _Layout.of(example)
        self._lock = threading.RLock()
        try:
            self._file = self._open(path)
        except OSError as error:
            raise InputError(f"{self._name}: cannot be opened as a row store: {error}") from error
        try:
            self._map()
            self._scan()
        except BaseException:
            self.close()
            raise

    def known(self, clients: np.ndarray) -> np.ndarray:
        """Returns (n,) bool: who has a row; False for -1 (nobody).

        Raises:
          ValueError: an id is out of range.
        """
        clients = self._ids(clients)
        with self._lock:
            return self._newest_records(clients) >= 0

    def read(self, clients: np.ndarray) -> PyTree:
        """Returns the newest rows of (n,) ``clients``, a pytree of numpy arrays (n, ...).

        Rows of clients that were never written, and of -1 (nobody), are zeros.

        Raises:
          ValueError: an id is out of range.
        """
        clients = self._ids(clients)
        count = len(clients)
        leaves = [np.zeros((count, *leaf.shape), leaf.dtype) for leaf in self._layout.leaves]
        parts = [_bytes_of(leaf) for leaf in leaves]
        with self._lock:
            for i, record in enumerate(self._newest_records(clients)):
                if record >= 0:
                    row = self._rows[record]
                    for leaf, part in zip(self._layout.leaves, parts, strict=True):
                        part[i] = row[leaf.start : leaf.stop]
        return jax.tree_util.tree_unflatten(self._layout.structure, leaves)

    def write(self, clients: np.ndarray, rows: PyTree, round: int) -> None:
        """Replaces the rows of (n,) ``clients``.

        Args:
          clients: ids, each at most once; rows at -1 (nobody) are skipped.
          rows: pytree of arrays (n, ...), on a device or not.
          round: number of rounds done, above the last committed one.

        Raises:
          ValueError: ids repeat or are out of range, ``rows`` do not match the example, or a client
            has a row of a later round already.
          InputError: the disk is full.
        """
        clients = self._ids(clients)
        parts = self._parts_of(rows, len(clients))
        present = np.flatnonzero(clients >= 0)
        ids = clients[present]
        if len(np.unique(ids)) < len(ids):
            raise ValueError(f"clients: an id repeats in {ids.tolist()}")
        with self._lock:
            records, first = self._claim(ids, round)
            self._table["client"][records] = 0
            for i, record in zip(present, records, strict=True):
                self._put(record, parts, i)
            self._table["first"][records] = first
            self._table["round"][records] = round
            self._table["client"][records] = ids + 1  # last: from here on the rows count
            if len(ids):
                self._newest = max(self._newest, round)

    def commit(self, round: int) -> None:
        """Notes that the checkpoint of ``round`` is durable.

        The rows as they are now stay until a later commit, whatever is written.

        Raises:
          ValueError: a later round was committed, or rows of a later round were written already.
        """
        with self._lock:
            committed = int(self._words[_COMMITTED])
            if round < committed or round < self._newest:
                raise ValueError(
                    f"commit({round}) comes too late: round {committed} is committed, the newest "
                    f"row is of round {self._newest}"
                )
            self._words[_COMMITTED] = round

    def rewind(self, round: int) -> None:
        """Forgets what was written after ``round``, the last checkpoint's, and commits ``round``.

        Raises:
          InputError: rows of that round are gone, because a later one was committed or because
            ``round`` was not committed before later rows were written.
        """
        with self._lock:
            if round < self._words[_COMMITTED]:
                raise InputError(
                    f"{self._name}: cannot go back to round {round}, its rows were kept only until "
                    f"round {self._words[_COMMITTED]} was committed; resume from that checkpoint"
                )
            table = self._table[: self._words[_USED]]
            later = (table["client"] > 0) & (table["round"] > round)
            lost = later & (table["first"] <= round)
            if lost.any():
                raise InputError(
                    f"{self._name}: cannot go back to round {round}: it was not committed before "
                    f"the row of client {table['client'][lost.argmax()] - 1} was written again"
                )
            table["client"][later] = 0
            self._words[_COMMITTED] = round
            self._scan()

    def touched(self) -> np.ndarray:
        """Returns the ids of all clients that have a row, int64, ascending."""
        with self._lock:
            clients = self._table["client"][: self._words[_USED]]
            return np.unique(clients[clients > 0]) - 1

    @property
    def nbytes(self) -> int:
        """Bytes really used on disk, or in memory."""
        with self._lock:
            return os.fstat(self._file.fileno()).st_blocks * 512

    def flush(self) -> None:
        """Waits until everything written is on disk."""
        with self._lock:
            if not self._in_memory:
                self._mapped.flush()

    def close(self) -> None:
        """Gives file and memory back; what was written stays in the file."""
        with self._lock:
            self._words = self._table = self._rows = self._mapped = None
            self._file.close()

    def __enter__(self) -> RowStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, path: str | os.PathLike | None) -> BinaryIO:
        if path is None:
            file = _memory_file()
            self._create(file)
            return file
        path = pathlib.Path(path)
        if path.exists():
            return path.open("r+b", buffering=0)
        # Under another name until complete: a kill leaves no half-made store.
        partial = path.with_name(path.name + ".partial")
        file = partial.open("w+b", buffering=0)
        self._create(file)
        os.replace(partial, path)
        return file

    def _create(self, file: BinaryIO) -> None:
        text = json.dumps(self._layout.describe(self._population)).encode()
        words = np.zeros(_WORDS, "<i8")
        words[[_KIND, _FORMAT, _DESCRIPTION, _COMMITTED]] = _MAGIC, _VERSION, len(text), -1
        file.write(words.tobytes() + text)
        file.truncate(self._offsets(len(text))[1])

    def _offsets(self, description: int) -> tuple[int, int]:
        """Returns where the table and the rows start."""
        table = _round_up(_WORDS * 8 + description, _PAGE)
        return table, table + _round_up(2 * self._population * _HEADER.itemsize, _PAGE)

    def _map(self) -> None:
        """Maps the whole file as it is now, and checks it."""
        size = os.fstat(self._file.fileno()).st_size
        if size < _WORDS * 8:
            raise InputError(f"{self._name}: not a row store, or truncated ({size} bytes)")
        self._mapped = mmap.mmap(self._file.fileno(), size)
        raw = np.frombuffer(self._mapped, np.uint8)
        self._words = raw[: _WORDS * 8].view("<i8")
        if self._words[_KIND] != _MAGIC:
            raise InputError(f"{self._name}: not a row store")
        if self._words[_FORMAT] != _VERSION:
            raise InputError(
                f"{self._name}: a row store of version {self._words[_FORMAT]}, this program reads "
                f"version {_VERSION}"
            )
        length = int(self._words[_DESCRIPTION])
        self._check_description(raw[_WORDS * 8 :][:length].tobytes())
        table, rows = self._offsets(length)
        used = int(self._words[_USED])
        if used < 0 or size < rows + used * self._layout.size:
            raise InputError(
                f"{self._name}: truncated, {size} bytes cannot hold {used} rows of "
                f"{self._layout.size} bytes"
            )
        self._table = raw[table:][: 2 * self._population * _HEADER.itemsize].view(_HEADER)
        capacity = (size - rows) // self._layout.size
        self._rows = raw[rows:][: capacity * self._layout.size].reshape(
            capacity, self._layout.size
        )

    def _check_description(self, text: bytes) -> None:
        try:
            found = json.loads(text)
            difference = _difference(found, self._layout.describe(self._population))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{self._name}: the description of its rows is damaged") from error
        if difference:
            raise InputError(f"{self._name}: holds other rows: {difference}")

    def _scan(self) -> None:
        """Rebuilds, from the table, who owns which record."""
        table = self._table[: self._words[_USED]]
        owners = table["client"]
        taken = np.flatnonzero(owners)
        taken = taken[np.argsort(owners[taken], kind="stable")]
        ids = owners[taken] - 1
        if len(ids) and (ids[0] < 0 or ids[-1] >= self._population or (ids[2:] == ids[:-2]).any()):
            raise InputError(f"{self._name}: the table of its records is damaged")
        second = np.zeros(len(ids), np.int64)
        second[1:] = ids[1:] == ids[:-1]
        # (population, 2) numbers of each client's records + 1. Zeros: pages never touched are free.
        self._records = np.zeros((self._population, 2), np.int32)
        self._records[ids, second] = taken + 1
        self._free = np.flatnonzero(owners == 0).tolist()  # records that nobody owns
        self._newest = int(table["round"][taken].max(initial=-1))

    def _ids(self, clients: np.ndarray) -> np.ndarray:
        clients = np.asarray(clients)
        if clients.ndim != 1 or (clients.size and clients.dtype.kind not in "iu"):
            raise ValueError(f"clients: {clients.dtype}{clients.shape}; must be (n,) whole numbers")
        clients = clients.astype(np.int64)
        if len(clients) and not -1 <= clients.min() <= clients.max() < self._population:
            raise ValueError(f"clients: ids must be in [-1, {self._population}), some are not")
        return clients

    def _parts_of(self, rows: PyTree, count: int) -> list[np.ndarray]:
        """Returns the bytes of each leaf, (n, bytes of the leaf)."""
        leaves, structure = jax.tree_util.tree_flatten(rows)
        if structure != self._layout.structure:
            raise ValueError(f"rows: {structure}; the store holds {self._layout.structure}")
        leaves = [np.asarray(leaf) for leaf in jax.device_get(leaves)]
        for leaf, expected in zip(leaves, self._layout.leaves, strict=True):
            if leaf.shape != (count, *expected.shape) or leaf.dtype != expected.dtype:
                raise ValueError(
                    f"rows{expected.name}: {leaf.dtype}{list(leaf.shape)}; must be "
                    f"{expected.dtype}{[count, *expected.shape]}"
                )
        return [_bytes_of(leaf) for leaf in leaves]

    def _rounds(self, records: np.ndarray, clients: np.ndarray) -> np.ndarray:
        """Returns the rounds of (n, 2) ``records`` + 1; -1 where there is none or it is invalid."""
        headers = self._table[records - 1]  # of no record: the last header, masked here
        valid = (records > 0) & (headers["client"] == clients[:, None] + 1)
        return np.where(valid, headers["round"], -1)

    def _newest_records(self, clients: np.ndarray) -> np.ndarray:
        """Returns (n,) numbers of the newest records, -1 for who has none."""
        records = self._records[clients]
        rounds = self._rounds(records, clients)
        newest = np.take_along_axis(records, rounds.argmax(axis=1)[:, None], axis=1)[:, 0] - 1
        return np.where((rounds.max(axis=1) >= 0) & (clients >= 0), newest, -1)

    def _claim(self, ids: np.ndarray, round: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns which records to write and their ``first``; makes records for who needs one."""
        committed = self._words[_COMMITTED]
        rounds = self._rounds(self._records[ids], ids)
        if round < 0 or round <= committed or (rounds > round).any():
            raise ValueError(
                f"round: {round}; round {committed} is committed, and no row may be replaced by "
                "one of an earlier round"
            )
        safe = np.where(rounds <= committed, rounds, -1)
        # Not the protected row; with none, the newer row if there is one.
        column = np.where(safe.max(axis=1) >= 0, 1 - safe.argmax(axis=1), rounds.argmax(axis=1))
        needy = np.flatnonzero(self._records[ids, column] == 0)
        self._records[ids[needy], column[needy]] = self._allocate(len(needy)) + 1
        records = self._records[ids, column] - 1
        replaced = rounds[np.arange(len(ids)), column]
        return records, np.where(replaced > committed, self._table["first"][records], round)

    def _allocate(self, count: int) -> np.ndarray:
        """Returns numbers of ``count`` records that nobody owns."""
        more = count - len(self._free)
        if more > 0:
            used = int(self._words[_USED])
            self._grow(used + more)
            self._words[_USED] = used + more
            self._free += range(used, used + more)
        taken, self._free = self._free[:count], self._free[count:]
        return np.array(taken, np.int64)

    def _grow(self, needed: int) -> None:
        """Makes room for ``needed`` records, in memory and on the disk."""
        used, size = int(self._words[_USED]), self._layout.size
        table, rows = self._offsets(int(self._words[_DESCRIPTION]))
        capacity = len(self._rows)
        try:
            if needed > capacity:
                capacity = max(needed, 2 * capacity, _FIRST_STEP // size)
                self._file.truncate(rows + min(capacity, 2 * self._population) * size)
                self._map()
            # A full disk is an error here; a write to the mapped hole would end the process.
            if hasattr(os, "posix_fallocate"):
                entry, fd = _HEADER.itemsize, self._file.fileno()
                os.posix_fallocate(fd, table + used * entry, (needed - used) * entry)
                os.posix_fallocate(fd, rows + used * size, (needed - used) * size)
        except OSError as error:
            raise InputError(
                f"{self._name}: no room for {needed - used} more rows of {size} bytes: {error}"
            ) from error

    def _put(self, record: int, parts: list[np.ndarray], i: int) -> None:
        row = self._rows[record]
        for leaf, part in zip(self._layout.leaves, parts, strict=True):
            row[leaf.start : leaf.stop] = part[i]


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One leaf of a row: its name in the pytree, and which bytes of the row it has."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How the leaves of a row follow each other in its ``size`` bytes."""

    leaves: tuple[_Leaf, ...]
    structure: Any
    size: int

    @classmethod
    def of(cls, example: PyTree) -> _Layout:
        flat, structure = jax.tree_util.tree_flatten_with_path(example)
        leaves, start = [], 0
        for keys, value in flat:
            leaf = value if hasattr(value, "dtype") else np.asarray(value)
            name = jax.tree_util.keystr(keys)
            dtype = _plain(leaf.dtype, name)
            stop = start + int(np.prod(leaf.shape, dtype=np.int64)) * dtype.itemsize
            leaves.append(_Leaf(name, tuple(leaf.shape), dtype, start, stop))
            start = _round_up(stop, _ALIGN)
        return cls(tuple(leaves), structure, max(start, _ALIGN))

    def describe(self, population: int) -> dict[str, Any]:
        leaves = {leaf.name: f"{leaf.dtype.name}{list(leaf.shape)}" for leaf in self.leaves}
        return {"population": population, "row": leaves, "row_bytes": self.size}


def _plain(dtype: Any, name: str) -> np.dtype:
    try:
        dtype = np.dtype(dtype).newbyteorder("=")
    except TypeError as error:  # typed random keys, for one
        raise ValueError(f"example{name}: rows of {dtype} cannot be stored") from error
    if dtype.hasobject or dtype.kind not in "?biufcV" or dtype.fields:
        raise ValueError(f"example{name}: rows of {dtype} cannot be stored")
    return dtype


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Says in what two descriptions differ, "" if in nothing."""
    if found == expected and list(found["row"]) == list(expected["row"]):
        return ""
    if found["population"] != expected["population"]:
        return f"of {found['population']} clients, not of {expected['population']}"
    for name in (*expected["row"], *found["row"]):
        there, here = (side["row"].get(name, "absent") for side in (found, expected))
        if there != here:
            return f"row{name} is {there} in the file, {here} here"
    return "the leaves are in another order"


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """Returns (n, ...) ``array`` as (n, bytes per row), without a copy if it is contiguous."""
    per_row = int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize
    if not array.size:
        return np.zeros((len(array), per_row), np.uint8)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(len(array), per_row)


def _memory_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("fedfr_jax_rows"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
