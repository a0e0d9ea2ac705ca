"""JSON files: one object each, of values that may come from NumPy or JAX."""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedfr_jax.atomic import write_text
from fedfr_jax.errors import InputError


def plain(value: Any) -> Any:
    """Turns a value into one that JSON can represent.

    NumPy and JAX scalars become Python numbers, arrays and tuples become lists,
    keys become text, and NaN and infinities become ``None``.

    Raises:
      InputError: a value has no JSON form.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype.kind not in "biufU":
        raise InputError(
            f"a value of type {type(value).__name__} cannot be written as JSON: {str(value)[:80]!r}"
        )
    return plain(array.tolist())


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes ``value`` (see :func:`plain`) as indented JSON, all of it or nothing."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """``value`` as :func:`write_json` writes it."""
    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Reads one JSON object.

    Raises:
      InputError: the file is missing, or is not a JSON object.
    """
    path = pathlib.Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: is {path.parent} the work directory of a run "
            "that got this far?"
        ) from None
    except (ValueError, RecursionError) as error:  # no JSON, too many digits, too deep
        raise InputError(f"{path} is not valid JSON ({error}); delete it or restore it") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__} where an object is expected")
    return value
