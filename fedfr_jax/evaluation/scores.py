"""Blocks of the similarity matrix; scores do not depend on how it is cut into blocks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fedfr_jax.errors import InputError

_TILE = 256  # rows and columns of one matrix product, for any block size
_DEPTH = 64  # dimensions summed at a time: the error of a long float32 sum exceeds the grid
# Scores are rounded to multiples of its inverse, several times the error of a float32 product of
# unit vectors: scores equal in exact arithmetic, such as those of copied images, are exact ties.
_GRID = 1 << 20


def on_grid(scores: Any) -> Any:
    """Rounds cosines (NumPy or JAX, any shape) so that equal ones are equal in every bit."""
    xp = jnp if isinstance(scores, jax.Array) else np
    return xp.round(scores * _GRID) / _GRID


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    """(a, d), (b, d) -> (a, b) inner products; inputs are not rounded on a GPU or TPU."""
    parts = [
        jnp.matmul(
            left[:, k : k + _DEPTH], right[:, k : k + _DEPTH].T, precision=jax.lax.Precision.HIGHEST
        )
        for k in range(0, left.shape[1], _DEPTH)
    ]
    return sum(parts[1:], parts[0])


@jax.jit
def score_block(rows: Float[Array, "r d"], columns: Float[Array, "c d"]) -> Float[Array, "r c"]:
    """Returns (r, c) float32 inner products of ``rows`` (r, d) and ``columns`` (c, d), on the grid.

    Backends sum in an order that depends on the shapes, so all products have one shape: scores
    do not depend on the block.

    Args:
      rows: (r, d), and
      columns: (c, d) from :func:`padded_blocks`; r and c are multiples of one tile.
    """
    tiles = columns.reshape(-1, _TILE, columns.shape[1])

    def strip(part: jax.Array) -> jax.Array:
        scores = jax.lax.map(lambda tile: on_grid(_product(part, tile)), tiles)
        return scores.transpose(1, 0, 2).reshape(_TILE, len(columns))

    scores = jax.lax.map(strip, rows.reshape(-1, _TILE, rows.shape[1]))
    return scores.reshape(len(rows), len(columns))


def padded_blocks(
    features: Float[np.ndarray, "n d"], block: int
) -> list[tuple[int, int, Float[Array, "size d"]]]:
    """Cuts rows into device blocks of one shape, so that programs compile only once.

    Args:
      features: (n, d) array.
      block: most rows of a block, rounded up to whole tiles; if there are fewer rows, they form
        one block whose size is a power of two.

    Returns:
      (first row, number of real rows, (size, d) array padded with zeros) per block.
    """
    if block < 1:
        raise InputError(f"block must be at least 1, got {block}")
    n = len(features)
    size = min(-(-block // _TILE) * _TILE, max(_TILE, 1 << max(0, n - 1).bit_length()))
    out = []
    for start in range(0, n, size):
        part = features[start : start + size]
        padded = np.zeros((size, features.shape[1]), features.dtype)
        padded[: len(part)] = part
        out.append((start, len(part), jnp.asarray(padded)))
    return out
