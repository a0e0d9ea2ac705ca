"""Reads and writes safetensors files, through the ``safetensors`` package's numpy interface."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from fedfr_jax.atomic import write_file
from fedfr_jax.errors import InputError

_MOST_NAMES = 100_000
# What the package and NumPy raise for damaged files.
_DAMAGE = (
    safetensors.SafetensorError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    MemoryError,
)


def load_safetensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a safetensors file; bfloat16, which NumPy lacks, becomes float32 of the same values.

    Returns:
      (name -> array, metadata: text by name).

    Raises:
      InputError: the file is missing, cut off or damaged, or holds a type that is not supported.
    """
    path = os.fspath(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            if len(names) > _MOST_NAMES:
                raise ValueError(f"it holds {len(names):,} arrays")
            types = {name: file.get_slice(name).get_dtype() for name in names}
            metadata = dict(file.metadata() or {})
            arrays = {n: file.get_tensor(n) for n in names if types[n] != "BF16"}
        if len(arrays) < len(names):
            arrays |= _bfloat16(path)
        return {name: arrays[name] for name in names}, metadata
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{path}: cannot be read as a safetensors file: {reason}") from error


def _bfloat16(path: str) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        entries = safetensors.deserialize(file.read())
    return {  # the upper half of a float32
        name: (np.frombuffer(entry["data"], "<u2").astype("<u4") << 16)
        .view("<f4")
        .reshape(entry["shape"])
        for name, entry in entries
        if entry["dtype"] == "BF16"
    }


def save_safetensors(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file, all of it or nothing.

    Args:
      arrays: name -> array of a NumPy type.
      metadata: text by name.
    """
    # The package writes an array's buffer as it lies in memory.
    whole = {name: np.ascontiguousarray(a).reshape(np.shape(a)) for name, a in arrays.items()}
    data = safetensors.numpy.save(whole, metadata=dict(metadata))

    def write(file: BinaryIO) -> None:
        file.write(data)

    write_file(path, write)
