"""The lines of ``metrics.jsonl``: one JSON record each, with its own checksum as ``crc``."""

from __future__ import annotations

import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

from fedfr_jax.errors import DamagedError, InputError

_CRC = "crc"


def _text(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False)


def line_of(row: Mapping[str, Any]) -> str:
    """A record, ready for JSON, as a line."""
    return _text(dict(row) | {_CRC: zlib.crc32(_text(row).encode())}) + "\n"


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a file, without their checksums; an incomplete last line is left out.

    Raises:
      InputError: the file is missing.
      DamagedError: another line is not as it was written.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: is {path.parent} the work directory of a run?"
        ) from None
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path} is not text ({error}); delete it or restore it") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            crc = row.pop(_CRC, None) if isinstance(row, dict) else None
            whole = crc is None or crc == zlib.crc32(_text(row).encode())
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise DamagedError(
                f"{path}, line {number}, is not valid JSON ({error}); delete that "
                "line or restore the file"
            ) from error
        if not isinstance(row, dict):
            raise DamagedError(f"{path}, line {number}, is not a JSON object; delete that line")
        if not whole:
            raise DamagedError(
                f"{path}, line {number}, is damaged; delete that line or restore the file"
            )
        rows.append(row)
    return rows
