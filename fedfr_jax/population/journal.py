"""The journal of a row store: which clients' rows it holds, and of which rounds.

A small JSON file beside the rows. It is replaced as a whole, so it is always consistent.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

from fedfr_jax.atomic import write_text
from fedfr_jax.errors import DamagedError, InputError
from fedfr_jax.population.row_layout import difference

VERSION = 2


@dataclasses.dataclass(frozen=True)
class Commit:
    """The rows of all clients as they were after a round.

    Attributes:
      round: number of rounds done.
      clients: number of clients with a row.
      digest: sum of the checks of their records, modulo 2^64.
      kept: whether a checkpoint of this round is known to be on disk.
    """

    round: int
    clients: int
    digest: int
    kept: bool = False


def _check(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def write_journal(
    path: pathlib.Path, description: dict[str, Any], commits: Sequence[Commit]
) -> None:
    """Writes the journal, all of it or nothing.

    Args:
      path: the file.
      description: population and layout of the rows.
      commits: oldest first.
    """
    content = {
        "version": VERSION,
        "description": description,
        "commits": [dataclasses.asdict(commit) for commit in commits],
    }
    write_text(path, json.dumps(content | {"check": _check(content)}, indent=1) + "\n")


def read_journal(path: pathlib.Path, description: dict[str, Any]) -> list[Commit]:
    """The commits of a journal, oldest first.

    Raises:
      DamagedError: the file is not as it was written.
      InputError: it has another version, or its rows do not match ``description``.
    """
    try:
        content = json.loads(path.read_bytes())
        check = content.pop("check")
        version = content["version"]
        if version == VERSION:
            if check != _check(content):
                raise ValueError("checksum")
            other = difference(content["description"], description)
            commits = [Commit(**commit) for commit in content["commits"]]
            if not all(
                isinstance(value, int)
                for commit in commits
                for value in dataclasses.astuple(commit)
            ):
                raise ValueError("numbers")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(
            f"{path}: the journal of the clients' rows is damaged; restore it from a copy"
        ) from error
    if version != VERSION:
        raise InputError(
            f"{path}: a row store of version {str(version)[:40]}, but this program reads "
            f"version {VERSION}; continue with the program that wrote it"
        )
    if other:
        raise InputError(f"{path}: holds other rows: {other}")
    return commits
