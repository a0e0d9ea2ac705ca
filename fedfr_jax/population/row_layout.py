"""How one client's row, a pytree of arrays, is stored as bytes in a file."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import jax
import numpy as np

PyTree = Any

_ALIGN = 64  # bytes, of rows and of the leaves in them


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of a row: its name in the pytree, and its bytes within the row."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """How the leaves of a row follow each other in its ``size`` bytes."""

    leaves: tuple[Leaf, ...]
    structure: Any
    size: int

    @classmethod
    def of(cls, example: PyTree) -> RowLayout:
        """The layout of rows like this one.

        Raises:
          ValueError: a leaf is not of a plain dtype.
        """
        flat, structure = jax.tree_util.tree_flatten_with_path(example)
        leaves, start = [], 0
        for keys, value in flat:
            leaf = value if hasattr(value, "dtype") else np.asarray(value)
            name = jax.tree_util.keystr(keys)
            dtype = _plain(leaf.dtype, name)
            stop = start + int(np.prod(leaf.shape, dtype=np.int64)) * dtype.itemsize
            leaves.append(Leaf(name, tuple(leaf.shape), dtype, start, stop))
            start = _round_up(stop, _ALIGN)
        return cls(tuple(leaves), structure, max(start, _ALIGN))

    def describe(self) -> dict[str, Any]:
        """Everything that determines the bytes, ready for JSON."""
        leaves = {leaf.name: f"{leaf.dtype.name}{list(leaf.shape)}" for leaf in self.leaves}
        return {"row": leaves, "row_bytes": self.size}

    def empty(self, count: int) -> list[np.ndarray]:
        """Zeros for the leaves of ``count`` rows."""
        return [np.zeros((count, *leaf.shape), leaf.dtype) for leaf in self.leaves]

    def parts(self, rows: PyTree, count: int) -> list[np.ndarray]:
        """The bytes of each leaf of ``count`` rows, each (count, bytes of the leaf).

        Raises:
          ValueError: the rows have another structure, shape or type.
        """
        leaves, structure = jax.tree_util.tree_flatten(rows)
        if structure != self.structure:
            raise ValueError(f"rows: {structure}; the store holds {self.structure}")
        leaves = [np.asarray(leaf) for leaf in jax.device_get(leaves)]
        for leaf, expected in zip(leaves, self.leaves, strict=True):
            if leaf.shape != (count, *expected.shape) or leaf.dtype != expected.dtype:
                raise ValueError(
                    f"rows{expected.name}: {leaf.dtype}{list(leaf.shape)}; must be "
                    f"{expected.dtype}{[count, *expected.shape]}"
                )
        return [bytes_of(leaf) for leaf in leaves]

    def put(self, row: np.ndarray, parts: list[np.ndarray]) -> int:
        """Writes the bytes of each leaf into a row; returns their checksum."""
        crc = 0
        for leaf, part in zip(self.leaves, parts, strict=True):
            row[leaf.start : leaf.stop] = part
            crc = zlib.crc32(part.data, crc)
        return crc

    def checksum(self, row: np.ndarray) -> int:
        """The checksum of a row's leaves, as :meth:`put` returned it."""
        crc = 0
        for leaf in self.leaves:
            crc = zlib.crc32(row[leaf.start : leaf.stop].data, crc)
        return crc


def difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Says how two descriptions differ; "" if they do not."""
    if found == expected and list(found["row"]) == list(expected["row"]):
        return ""
    if found["population"] != expected["population"]:
        return f"of {found['population']} clients, not of {expected['population']}"
    for name in (*expected["row"], *found["row"]):
        there, here = (side["row"].get(name, "absent") for side in (found, expected))
        if there != here:
            return f"row{name} is {there} in the file, {here} here"
    return "the leaves are in another order"


def bytes_of(array: np.ndarray) -> np.ndarray:
    """Returns (n, ...) ``array`` as (n, bytes per row), without a copy if it is contiguous."""
    per_row = int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize
    if not array.size:
        return np.zeros((len(array), per_row), np.uint8)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(len(array), per_row)


def _plain(dtype: Any, name: str) -> np.dtype:
    try:
        dtype = np.dtype(dtype).newbyteorder("=")
    except TypeError as error:  # typed random keys, for one
        raise ValueError(f"example{name}: rows of {dtype} cannot be stored") from error
    if dtype.hasobject or dtype.kind not in "?biufcV" or dtype.fields:
        raise ValueError(f"example{name}: rows of {dtype} cannot be stored")
    return dtype


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
