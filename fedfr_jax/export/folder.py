"""A model as a folder: ``model.safetensors`` and ``card.json``, with a README for people."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedfr_jax.errors import DamagedError, InputError
from fedfr_jax.export.card import WEIGHTS, architecture_of
from fedfr_jax.export.network import PyTree, nested

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(jnp.bfloat16),
}
_HEADER_BYTES = 1 << 24  # most that a file may have beside its arrays


def weights_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of ``model.safetensors``."""
    from safetensors.numpy import save  # noqa: PLC0415 - only where it is used

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(contiguous, metadata={"format": "flax"})


def read_file(folder: pathlib.Path, name: str, card: Mapping[str, Any]) -> bytes:
    """A file of an exported model.

    Raises:
      InputError: it is missing.
      DamagedError: it is not as it was written.
    """
    path, entry = folder / name, card["files"][name]
    if not path.is_file():
        raise InputError(f"{path} is missing; copy or export the model again")
    if path.stat().st_size == entry["bytes"]:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() == entry["sha256"]:
            return content
    raise DamagedError(
        f"{path} is damaged: it does not match its checksum in card.json; copy or export the "
        "model again"
    )


def read_weights(folder: pathlib.Path, card: Mapping[str, Any]) -> PyTree:
    """The weights of a folder, if they are those that its card needs.

    Raises:
      InputError: an array is missing, unknown, or of another shape or type; the message names
        file and array.
      DamagedError: as :func:`read_file`.
    """
    path, expected = folder / WEIGHTS, architecture_of(card, folder).shapes()
    most = sum(int(np.prod(e.shape, dtype=np.int64)) * e.dtype.itemsize for e in expected.values())
    if card["files"][WEIGHTS]["bytes"] > most + _HEADER_BYTES:
        raise InputError(
            f"{path} has {card['files'][WEIGHTS]['bytes']} bytes, but the network of card.json has "
            f"{most}; they do not belong together"
        )
    found = _parsed(path, read_file(folder, WEIGHTS, card))
    for name in [*sorted(set(expected) - set(found)), *sorted(set(found) - set(expected))]:
        what = "is missing" if name in expected else "is not part of the network"
        raise InputError(f"{path}: array {name[:200]} {what} of card.json; export it again")
    return nested({name: _fitting(path, name, found[name], expected[name]) for name in expected})


def _parsed(path: pathlib.Path, content: bytes) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, deserialize  # noqa: PLC0415 - only where it is used

    try:
        entries = deserialize(content)
    except SafetensorError as error:
        raise DamagedError(f"{path} cannot be read as safetensors: {error}") from error
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise InputError(
                f"{path}: array {name[:200]} has type {entry['dtype']}; "
                f"{', '.join(_DTYPES)} can be read"
            )
        arrays[name] = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays


def _fitting(path: pathlib.Path, name: str, array: np.ndarray, like: Any) -> np.ndarray:
    """The array in the network's type; bfloat16 becomes float32, which is exact."""
    if array.shape != like.shape:
        raise InputError(
            f"{path}: array {name} has shape {array.shape}, the network of card.json needs "
            f"{like.shape}"
        )
    if array.dtype not in (like.dtype, jnp.bfloat16):
        raise InputError(
            f"{path}: array {name} has type {array.dtype}, the network of card.json needs "
            f"{like.dtype}"
        )
    if not np.isfinite(array).all():
        raise InputError(f"{path}: array {name} holds infinite or undefined values")
    return array.astype(like.dtype)
