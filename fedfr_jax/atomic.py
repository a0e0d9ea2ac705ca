"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import os
import pathlib
import uuid
from collections.abc import Callable
from typing import BinaryIO


def write_file(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Calls ``write(file)`` on a temporary file beside ``path``, then renames it to ``path``.

    After a kill, a full disk or a loss of power, either the old or the whole new file is there.

    Args:
      path: its folder must exist.
      write: takes a file that is open for binary writing.

    Raises:
      OSError: the file cannot be written; nothing is left behind.
    """
    path = pathlib.Path(path)
    # A name that no other writer uses, short enough for any file system.
    temporary = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text, all of it or nothing; line ends stay as they are."""
    write_file(path, lambda file: file.write(text.encode("utf-8")))
