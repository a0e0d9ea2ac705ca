"""Files of five landmarks per image, as detectors write them."""

from __future__ import annotations

import csv
import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from fedfr_jax.data.alignment import is_mirrored
from fedfr_jax.errors import InputError

_MOST_BYTES = 1 << 30  # of a file; IJB-C's has 60 MB


@dataclasses.dataclass(frozen=True)
class Landmarks:
    """The lines of a landmark file.

    Attributes:
      path: the file, for messages.
      names: (n) of the images, as in the file.
      points: (n, 5, 2) float32, see :mod:`fedfr_jax.data.alignment`.
      scores: (n,) float32 of the detector; None if the file has none.
    """

    path: str
    names: tuple[str, ...]
    points: np.ndarray
    scores: np.ndarray | None

    def rows_of(self, keys: Sequence[Sequence[str]], *, required: bool = True) -> np.ndarray:
        """Finds the line of each image.

        Args:
          keys: for each image the names under which its line may be, the preferred one first.
          required: every image must have a line.

        Returns:
          (n,) line numbers from 0; -1 for an image without one.

        Raises:
          InputError: an image has no line, or two images share one.
        """
        place = {name: row for row, name in enumerate(self.names)}
        rows = [next((place[key] for key in some if key in place), -1) for some in keys]
        missing = [some for some, row in zip(keys, rows, strict=True) if row < 0]
        if missing and required:
            raise InputError(
                f"{self.path}: {len(missing)} of {len(keys)} images have no line (first: "
                f"{' or '.join(missing[0])}); add their landmarks, or remove these images"
            )
        first: dict[int, Sequence[str]] = {}
        for some, row in zip(keys, rows, strict=True):
            if row >= 0 and row in first:
                raise InputError(
                    f"{self.path}: the line {self.names[row]!r} fits two images, {first[row][0]} "
                    f"and {some[0]}; write the names in this longer form"
                )
            first[row] = some
        return np.array(rows, np.int64)


def read_landmarks(path: str | os.PathLike, *, upright: bool = True) -> Landmarks:
    """Reads five landmarks per image.

    A line is ``name x1 y1 … x5 y5`` or ``name x1 y1 … x5 y5 score`` (IJB's
    ``*_name_5pts_score.txt``), with white space between the fields, or commas in a ``.csv`` file,
    whose first line may be a header. Without commas a name may contain single spaces.

    Args:
      path: the file.
      upright: refuse a file in which most faces have left and right swapped.

    Raises:
      InputError: the file is missing, empty or malformed, or names an image twice.
    """
    path = pathlib.Path(path)
    rows = _rows(path)
    wide = len(rows[0][1])
    for line, fields in rows:
        if len(fields) not in (11, 12) or len(fields) != wide:
            raise InputError(
                f"{path}: line {line} has {len(fields)} fields"
                + (f", the first one {wide}" if wide in (11, 12) else "")
                + "; expected a name, x and y of five points, and perhaps a score"
            )
    names = tuple(fields[0] for _, fields in rows)
    values = np.array([_numbers(path, line, fields[1:]) for line, fields in rows], np.float32)
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InputError(f"{path}: {twice!r} has two lines; one face per image is needed")
    points = values[:, :10].reshape(-1, 5, 2)
    swapped = is_mirrored(points)
    if upright and 2 * swapped.sum() > len(swapped):
        raise InputError(
            f"{path}: in {swapped.sum()} of {len(swapped)} faces left and right are swapped; the "
            "order is left eye, right eye, nose, left and right corner of the mouth, where left is "
            "the left side of the picture"
        )
    return Landmarks(str(path), names, points, values[:, 10] if wide == 12 else None)


def _rows(path: pathlib.Path) -> list[tuple[int, list[str]]]:
    """(line number, fields) of the lines that are not empty, without a header."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} has more than {_MOST_BYTES >> 20} MB; it is no landmark file")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read the landmarks {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file; landmarks are .txt or .csv") from error
    lines = [(k, line) for k, line in enumerate(text.splitlines(), 1) if line.strip()]
    if path.suffix.lower() == ".csv":
        rows = [(k, [f.strip() for f in next(csv.reader([line]))]) for k, line in lines]
        if rows and not _is_number(rows[0][1][1:2]):
            rows = rows[1:]
    else:
        rows = [(k, _split(line)) for k, line in lines]
    if not rows:
        raise InputError(f"{path} lists no landmarks")
    return rows


def _split(line: str) -> list[str]:
    """A name that may contain spaces, and the numbers behind it."""
    fields = line.split()
    numbers = 0
    while numbers < min(11, len(fields) - 1) and _is_number(fields[-1 - numbers :][:1]):
        numbers += 1
    name = len(fields) - numbers
    if numbers not in (10, 11) or name < 1:
        return fields
    return [" ".join(fields[:name]), *fields[name:]]


def _is_number(fields: Sequence[str]) -> bool:
    try:
        float(fields[0])
    except (ValueError, IndexError):
        return False
    return True


def _numbers(path: pathlib.Path, line: int, fields: Sequence[str]) -> list[float]:
    try:
        values = [float(field) for field in fields]
    except ValueError as error:
        raise InputError(f"{path}: line {line}: a field is not a number ({error})") from error
    if not all(abs(value) < 1e6 for value in values):
        raise InputError(f"{path}: line {line}: a number is not finite, or larger than any picture")
    return values
