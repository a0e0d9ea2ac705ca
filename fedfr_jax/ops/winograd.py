"""3×3 convolutions at stride 1 with 16 products per 2×2 outputs in place of 36.

Winograd's minimal filtering F(2×2, 3×3) (Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks", CVPR 2016): the map is cut into tiles of 2×2 outputs, which see 4×4 inputs
each. Tiles and kernel are transformed by additions; there a convolution is one matrix product
per place in the tile, and so is its weight gradient. In float32 the result is as exact as
direct summation. Larger tiles need fewer products but more additions and more memory, and lose
digits; they measured no faster here.

The work is done in pieces that stay in a core's cache.
"""
from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax

_OUT, _IN = 2, 4  # sides of a tile
# Along one direction: outputs = _A.T @ ((_G @ kernel) * (_B.T @ inputs)).
_BT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_AT = ((1, 1, 1, 0), (0, 1, -1, -1))
_A = tuple(zip(*_AT, strict=True))
# Tiles per piece. A weight gradient sums over them: XLA:CPU's products slow down when such
# sums are long.
_FORWARD_TILES, _GRADIENT_TILES = 1024, 400


def is_faster(shape, channels: int, narrowest: int = 64) -> bool:
    """Whether this is the faster way on a CPU; from measurements of SphereNet's layers.

    Args:
      shape: (N, H', W', C') of the result.
      channels: C of the input.
      narrowest: fewest channels; below, additions take longer than the products they save.
    """
    n, height, width, out_channels = shape
    tiles = n * -(-height // _OUT) * -(-width // _OUT)
    return min(channels, out_channels) >= narrowest and tiles >= 784


def forward(x, kernel, padding):
    """The convolution; ``padding`` is (before, after) per direction, also negative.

    Args:
      x: (N, H, W, C); kernel: (3, 3, C, C').

    Returns:
      (N, H', W', C').
    """
    height, width = (size + sum(pair) - 2 for size, pair in zip(x.shape[1:3], padding, strict=True))
    transformed = jnp.einsum("ia,jb,abck->ijck", _G, _G, kernel)
    transformed = transformed.reshape(_IN * _IN, *kernel.shape[2:])
    pieces = _Pieces(x, padding, height, width, _FORWARD_TILES)

    def one_piece(i):
        inputs = lax.optimization_barrier(_transformed(pieces.inputs(i), _BT, _IN))
        products = [v @ u for v, u in zip(inputs, transformed, strict=True)]
        return _untransformed(lax.optimization_barrier(products), pieces.tiles)

    done = lax.map(one_piece, jnp.arange(pieces.count)) if pieces.count > 1 else one_piece(0)
    return done.reshape(len(x), -1, *done.shape[-2:])[:, :height, :width]


def weight_gradient(x, dy, padding):
    """Gradient of the kernel, (3, 3, C, C') float32; arguments as in :func:`forward`."""
    pieces = _Pieces(x, padding, *dy.shape[1:3], _GRADIENT_TILES)
    outputs = _Pieces(dy, ((0, 0), (0, 0)), *dy.shape[1:3], _GRADIENT_TILES, _OUT)

    def add_piece(i, total):
        inputs = _transformed(pieces.inputs(i), _BT, _IN)
        errors = _transformed(outputs.inputs(i), _A, _OUT)
        return total + jnp.stack([v.T @ e for v, e in zip(inputs, errors, strict=True)])

    total = jnp.zeros((_IN * _IN, x.shape[-1], dy.shape[-1]), jnp.float32)
    total = lax.fori_loop(0, pieces.count, add_piece, total)
    return jnp.einsum("ia,jb,ijck->abck", _G, _G, total.reshape(_IN, _IN, *total.shape[1:]))


class _Pieces:
    """The maps cut into pieces of some images, or of some rows of tiles of one image.

    Attributes:
      count: of pieces.
      tiles: (images, rows, columns) of a piece.
    """

    def __init__(self, x, padding, height: int, width: int, most: int, side: int = _IN):
        rows, columns = -(-height // _OUT), -(-width // _OUT)
        images = _divisor(len(x), most // (rows * columns))
        band = rows if images > 1 else _divisor(rows, most // columns)
        self.tiles, self._bands = (images, band, columns), rows // band
        self.count = len(x) // images * self._bands
        # Zeros around the maps, up to whole tiles.
        overlap, channels = side - _OUT, (0, 0, 0)
        pads = [(before, _OUT * count + overlap - size - before, 0) for (before, _), count, size
                in zip(padding, (rows, columns), x.shape[1:3], strict=True)]
        self._pads = [channels, *pads, channels]
        self._band_rows = _OUT * band + overlap
        # Bands overlap, so that they are cut out of padded maps; whole images are padded later.
        self._x = x if self._bands == 1 else self._padded(x)

    def _padded(self, x):
        return lax.pad(x, jnp.zeros((), x.dtype), self._pads)

    def inputs(self, i):
        """Piece ``i``, padded."""
        images, band, _ = self.tiles
        if self._bands == 1:
            return self._padded(lax.dynamic_slice_in_dim(self._x, i * images, images))
        start = (i // self._bands, i % self._bands * _OUT * band, 0, 0)
        return lax.dynamic_slice(self._x, start, (1, self._band_rows, *self._x.shape[2:]))


def _divisor(n: int, most: int) -> int:
    """The largest divisor of n that is at most ``most``, at least 1."""
    return max(d for d in range(1, n + 1) if n % d == 0 and d <= max(most, 1))


def _sum(coefficients, arrays):
    """Sum of arrays with coefficients 1, 0 and -1."""
    terms = [a if c > 0 else -a for c, a in zip(coefficients, arrays, strict=True) if c]
    return functools.reduce(jnp.add, terms)


def _transformed(x, matrix, side: int):
    """``matrix`` applied to rows and columns of all tiles: 16 arrays (tiles, C).

    Args:
      x: (n, 2 rows + side - 2, 2 columns + side - 2, C), whole tiles.
      side: of a tile, of which neighbours overlap by ``side - 2``.
    """
    rows, columns = ((s - side) // _OUT + 1 for s in x.shape[1:3])
    found = []
    for down in matrix:
        part = _sum(down, [x[:, a:a + _OUT * (rows - 1) + 1:_OUT] for a in range(side)])
        views = [part[:, :, b:b + _OUT * (columns - 1) + 1:_OUT] for b in range(side)]
        found += [_sum(across, views).reshape(-1, x.shape[-1]) for across in matrix]
    return found


def _untransformed(products, tiles):
    """(n, 2 rows, 2 columns, C') outputs from 16 arrays (tiles, C')."""
    grid = [p.reshape(*tiles, -1) for p in products]
    lines = [[_sum(down, grid[j::_IN]) for j in range(_IN)] for down in _AT]
    blocks = [jnp.stack([_sum(across, line) for across in _AT], 3) for line in lines]
    n, rows, columns = tiles
    return jnp.stack(blocks, 2).reshape(n, _OUT * rows, _OUT * columns, -1)
