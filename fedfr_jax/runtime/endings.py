"""How a command ends on an error: one line that says what is saved and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import sys
from collections.abc import Iterator

import jax

from fedfr_jax.errors import InputError
from fedfr_jax.runtime.checkpoints import saved_rounds
from fedfr_jax.runtime.interrupts import Stopped
from fedfr_jax.runtime.lock import holder_is_gone

_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk fails",
    errno.EFBIG: "the file is too large for this file system",
}
_IN_TEXT = re.compile("|".join(re.escape(os.strerror(code)) for code in _DISK), re.IGNORECASE)

_PEER = re.compile(
    "closed by peer|reset by peer|Socket closed|coordination service|heartbeat|Connection refused",
    re.IGNORECASE,
)


def what_is_safe(folder: str | os.PathLike | None) -> str:
    """What is saved in the work directory of a run that ended early, and how to continue."""
    if folder is None:
        return ""
    folder = pathlib.Path(folder).expanduser()
    rounds = saved_rounds(folder)
    if (folder / "cells").is_dir():
        return f"Finished cells are kept in {folder}; the same command runs the others."
    if (folder / "summary.json").exists():
        return f"Everything is saved in {folder}; evaluate it again, or continue with --resume."
    if rounds:
        return (
            f"The state after round {rounds[-1]} is saved in {folder}; the same command with "
            "--resume continues from there."
        )
    if (folder / "pretrained" / "backbone").is_dir():
        return (
            f"The pretrained model is saved in {folder}; the same command with --resume "
            "continues from there."
        )
    return "Nothing was computed that could be kept; the same command with --resume starts again."


def disk_error(error: BaseException | None) -> str:
    """The problem with the disk, if that is the cause of an error; "" otherwise."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, OSError) and error.errno in _DISK:
            where = f": {error.filename}" if error.filename else ""
            return f"{_DISK[error.errno]}{where}"
        if found := _IN_TEXT.search(str(error)):  # for libraries with their own error types
            line = str(error)[: found.end()].splitlines()[-1][-200:]
            return line.strip()
        error = error.__cause__ or error.__context__
    return ""


def _who_is_gone(folder: str | os.PathLike | None) -> str:
    """Which other process of this run has ended, as far as the folders' locks show it."""
    count, gone = jax.process_count(), []
    for process in range(count if folder is not None else 0):
        own = pathlib.Path(folder or "").expanduser()
        own = own / "processes" / str(process) if process else own
        if process != jax.process_index() and (who := holder_is_gone(own)):
            gone.append(f"process {process} of {count} ({who})")
    return (
        f"{', '.join(gone)} has ended"
        if gone
        else "another process of this run has ended or cannot be reached"
    )


@contextlib.contextmanager
def reports_input_errors(folder: str | os.PathLike | None = None) -> Iterator[None]:
    """Ends the program with one readable line for bad input, disk errors, divergence or a signal.

    Other errors pass through: they are bugs of the program, and a traceback helps.

    Args:
      folder: the work directory, if there is one.
    """
    try:
        yield
    except Stopped as stopped:
        print(f"{stopped}. {what_is_safe(folder)}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        # At once: a normal exit would wait for computations on the devices, which are not needed.
        os._exit(128 + stopped.signal)
    except (InputError, FloatingPointError) as error:
        safe = f" {what_is_safe(folder)}" if disk_error(error) else ""
        print(f"error: {error}{safe}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        wrong = disk_error(error)
        if not wrong and jax.process_count() > 1 and _PEER.search(str(error)):
            line = str(error).splitlines()[0][:200]
            print(
                f"error: {_who_is_gone(folder)} ({line}). {what_is_safe(folder)} "
                "Start all processes again.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(2)  # a normal exit would wait for that process
        if not wrong:
            raise
        print(f"error: {wrong}. {what_is_safe(folder)}", file=sys.stderr)
        raise SystemExit(2) from None
