"""A lock: only one process at a time uses a work directory."""

from __future__ import annotations

import json
import os
import pathlib
import socket
from typing import Any

from fedfr_jax.errors import InUseError

try:
    import fcntl
except ImportError:  # not a POSIX system: only the holder's note counts
    fcntl = None  # type: ignore[assignment]

NAME = "lock"


def holder_is_gone(folder: str | os.PathLike) -> str:
    """The process that ended without releasing a work directory; "" if there is none."""
    lock = WorkdirLock(folder)
    try:
        lock._file = (pathlib.Path(folder) / NAME).open("r+", encoding="utf-8", errors="replace")
    except OSError:
        return ""
    with lock._file:
        note = lock._note()
        free = fcntl is not None and note and lock._try()
        return f"pid {note.get('pid', '?')} on {note.get('host', '?')}" if free else ""


def holder_of(folder: str | os.PathLike) -> str:
    """The process that is using a work directory; "" if there is none."""
    if not (pathlib.Path(folder) / NAME).exists():
        return ""
    lock = WorkdirLock(folder)
    try:
        with lock:
            return ""
    except InUseError:
        return _name(WorkdirLock(folder).note())


def _parsed(text: str) -> dict:
    try:
        note = json.loads(text)
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def _name(note: dict) -> str:
    return f"process {note.get('pid', '?')} on {note.get('host', 'this host')}"


class WorkdirLock:
    """Locks a work directory within a ``with`` block.

    The file ``lock`` has the pid and host of its holder. The system releases it when the holder
    ends for any reason, so a stale lock is taken over. A stale lock of another host cannot be
    distinguished from one in use, and is refused.

    Args:
      folder: the work directory, which exists.
    """

    def __init__(self, folder: str | os.PathLike):
        self._path = pathlib.Path(folder) / NAME
        self._file: Any = None

    def __enter__(self) -> WorkdirLock:
        """Takes the lock.

        Raises:
          InUseError: another process has it.
        """
        self._file = os.fdopen(
            os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644),
            "r+",
            encoding="utf-8",
            errors="replace",
        )
        try:
            note = self._note()
            free = self._try()
            here = socket.gethostname()
            if note.get("host", here) != here:
                raise self._refusal(note, f". If that process is gone, delete {self._path}")
            if not free:
                raise self._refusal(self._note(), "; wait for it, or choose another --workdir")
            self._file.seek(0)
            self._file.truncate()
            self._file.write(json.dumps({"pid": os.getpid(), "host": here}) + "\n")
            self._file.flush()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self._file.closed:
            self._file.seek(0)
            self._file.truncate()  # no holder; the file stays, so that all lock the same file
            self._file.close()

    def _try(self) -> bool:
        if fcntl is None:
            return True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # a file system without locks
        return True

    def note(self) -> dict:
        """What the holder wrote; {} if there is none."""
        try:
            return _parsed(self._path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return {}

    def _note(self) -> dict:
        self._file.seek(0)
        return _parsed(self._file.read())

    def _refusal(self, note: dict, advice: str) -> InUseError:
        return InUseError(f"{self._path.parent} is in use by {_name(note)}{advice}")
