"""Records of equal size in two memory-mapped files that grow: a table of headers, and the rows.

Headers are stored separately from rows so that opening reads only 32 bytes per record.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pathlib
import tempfile
from typing import BinaryIO

import numpy as np

from fedfr_jax.errors import InputError

# The fields of a header. ``client`` is the id + 1, so that a hole in the file belongs to no client;
# 0 also marks a row that is being written. ``crc`` covers the row's bytes, ``check`` the header.
HEADER = np.dtype([("client", "<i8"), ("round", "<i8"), ("crc", "<u8"), ("check", "<u8")])
_FIRST_STEP = 1 << 26  # bytes of rows by which a file grows at first; then it doubles


def check_of(client: np.ndarray, round: np.ndarray, crc: np.ndarray) -> np.ndarray:
    """(n,) uint64 hashes of headers; ``client`` is the id + 1."""
    value = np.zeros(np.broadcast(client, round, crc).shape, np.uint64)
    for part in (client, round, crc):
        value = _mixed(value ^ np.asarray(part).astype(np.uint64))
    return value


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64: every bit of the input affects every bit of the output."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Records:
    """The two files, or the same arrays in memory.

    Attributes:
      table: (capacity,) headers; ``rows``: (capacity, size) uint8. :meth:`grow` replaces both;
        if the files are read-only, changes of the table stay in memory.
      used: number of leading records that belong, or belonged, to a client.
    """

    def __init__(self, path: pathlib.Path | None, size: int, read_only: bool = False):
        """Opens or creates the files.

        Args:
          path: of the rows; the table is beside it. None: in memory.
          size: bytes of a row.
          read_only: leave the files as they are.

        Raises:
          InputError: they cannot be opened.
        """
        self._name = "row store in memory" if path is None else os.fspath(path)
        self._size, self._read_only = size, read_only
        self._in_memory = path is None
        with contextlib.ExitStack() as opened:
            try:
                self._files = [
                    opened.enter_context(self._open(path and path.with_suffix(suffix)))
                    for suffix in (".table", path.suffix if path else "")
                ]
            except OSError as error:
                raise InputError(
                    f"{self._name}: cannot be opened as a row store: {error}"
                ) from error
            self._map()
            opened.pop_all()
        owned = np.flatnonzero(self.table["client"])
        self.used = int(owned[-1]) + 1 if len(owned) else 0

    def _open(self, path: pathlib.Path | None) -> BinaryIO:
        if path is None:
            if hasattr(os, "memfd_create"):
                return os.fdopen(os.memfd_create("fedfr_jax_rows"), "r+b", buffering=0)
            return tempfile.TemporaryFile(buffering=0)
        if self._read_only:
            return path.open("rb", buffering=0)
        return os.fdopen(
            os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0
        )

    def _map(self) -> None:
        """Maps both files as they are now; a record counts if it is in both."""
        units = (HEADER.itemsize, self._size)
        capacity = min(
            os.fstat(file.fileno()).st_size // unit
            for file, unit in zip(self._files, units, strict=True)
        )
        access = mmap.ACCESS_COPY if self._read_only else mmap.ACCESS_WRITE
        self._mapped = [
            mmap.mmap(file.fileno(), capacity * unit, access=access)
            for file, unit in zip(self._files, units, strict=True)
            if capacity
        ]
        table, rows = self._mapped or (bytearray(), bytearray())
        self.table = np.frombuffer(table, HEADER)
        self.rows = np.frombuffer(rows, np.uint8).reshape(capacity, self._size)

    def grow(self, needed: int, most: int) -> None:
        """Makes room for ``needed`` records, in memory and on the disk.

        Args:
          needed: number of records used from now on.
          most: largest number that can ever be needed.

        Raises:
          InputError: the disk is full.
        """
        units, used = (HEADER.itemsize, self._size), self.used
        try:
            if needed > len(self.rows):
                wanted = max(needed, 2 * len(self.rows), _FIRST_STEP // self._size)
                for file, unit in zip(self._files, units, strict=True):
                    file.truncate(min(wanted, max(most, needed)) * unit)
                self._map()
            # A full disk raises an error here; later, a write to the map would kill the process.
            if hasattr(os, "posix_fallocate"):
                for file, unit in zip(self._files, units, strict=True):
                    os.posix_fallocate(file.fileno(), used * unit, (needed - used) * unit)
        except OSError as error:
            raise InputError(
                f"{self._name}: no room for {needed - used} more rows of "
                f"{self._size} bytes: {error}"
            ) from error
        self.used = needed

    def versions(
        self, population: int, *, until: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Records by client: (the newest of each, older ones, the rounds that replaced those).

        Args:
          population: number of clients; records of other ids and damaged headers are ignored.
          until: leave out what was written after this round.
        """
        table = self.table[: self.used]
        valid = (
            (table["client"] > 0)
            & (table["client"] <= population)
            & (table["check"] == check_of(table["client"], table["round"], table["crc"]))
        )
        if until is not None:
            valid &= table["round"] <= until
        records = np.flatnonzero(valid)
        order = np.lexsort((table["round"][records], table["client"][records]))
        records = records[order]
        clients, rounds = table["client"][records], table["round"][records]
        older = np.zeros(len(records), bool)
        older[:-1] = clients[1:] == clients[:-1]
        return records[~older], records[older], rounds[np.flatnonzero(older) + 1]

    @property
    def nbytes(self) -> int:
        """Bytes actually used on disk, or in memory."""
        return sum(os.fstat(file.fileno()).st_blocks * 512 for file in self._files)

    def flush(self) -> None:
        """Waits until everything written is on disk."""
        if not self._in_memory and not self._read_only:
            for mapped in self._mapped:
                mapped.flush()

    def close(self) -> None:
        """Releases files and memory; written data stays in the files."""
        self.table = self.rows = self._mapped = None  # type: ignore[assignment]
        for file in self._files:
            file.close()
