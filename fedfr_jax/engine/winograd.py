"""3x3 convolutions at stride 1 with fewer products: Winograd's minimal filtering.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016). The map is
cut into tiles of side x side outputs, which depend on (side + 2) x (side + 2) inputs. Tiles are
transformed by additions along rows and columns, the kernel by a matrix product. The convolution is
then one matrix product per position in a tile, and so is its weight gradient (the transposed
algorithm).

F(2x2, 3x3) takes 16 products instead of 36 and is as exact as a direct sum; F(3x3, 3x3) takes 25
instead of 81 and suits maps of 3, 6 and 9 pixels; F(4x4, 3x3) takes 36 instead of 144, with errors
about ten times as large: 1e-5 of the largest value.

Work is done in pieces whose tiles stay in the cache. Arrays are (rows, tiles, channels), one per
column of a tile: with channels last, transforms are plain vector operations and products move no
data. One array per position would need six times as many loops, which XLA:CPU compiles one by one;
one array for all would need a copy.
"""

from __future__ import annotations

import functools
import typing

import jax.numpy as jnp
import numpy as np
from jax import lax

# Along one direction: outputs = _OUTPUT @ ((_KERNEL @ kernel) * (_INPUT @ inputs)).
_INPUT = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    3: (
        (2, -1, -2, 1, 0),
        (0, -2, -1, 1, 0),
        (0, 2, -3, 1, 0),
        (0, -1, 0, 1, 0),
        (0, 2, -1, -2, 1),
    ),
    4: (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
}
_KERNEL = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    3: (
        (1 / 2, 0, 0),
        (-1 / 2, -1 / 2, -1 / 2),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 6, 1 / 3, 2 / 3),
        (0, 0, 1),
    ),
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}
_OUTPUT = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    3: ((1, 1, 1, 1, 0), (0, 1, -1, 2, 0), (0, 1, 1, 4, 1)),
    4: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}
# Most tiles per piece, as measured: more do not fit the cache, fewer make the products slow.
_FORWARD_TILES = 200


def _gradient_tiles(channels: int) -> int:
    """The same for weight gradients, whose sums are read and written for every piece."""
    return max(100, channels // 2)


def divisor(n: int, most: int) -> int:
    """The largest divisor of n that is at most ``most``, at least 1."""
    return max(d for d in range(1, n + 1) if n % d == 0 and d <= max(most, 1))


def _products(height: int, width: int, side: int) -> int:
    """Products per map and pair of channels."""
    return -(-height // side) * -(-width // side) * (side + 2) ** 2


def side_of(height: int, width: int, weights: bool = False) -> int:
    """The side of a map's tiles: that with fewest products, and if equal, the first as measured.

    Args:
      height, width: of the result, or of the gradient by it.
      weights: for a weight gradient.
    """
    sides = (4, 3) if weights else (2, 4, 3)
    return min(sides, key=lambda side: _products(height, width, side))


def is_faster(shape, channels: int, weights: bool = False) -> bool:
    """Whether this is faster than direct convolutions on a CPU, by measurements.

    Args:
      shape: (N, H', W', C') of the result, or of the gradient by it.
      channels: C of the input.
      weights: for a weight gradient. Otherwise forward, or for an input gradient.
    """
    n, height, width, out_channels = shape
    side = side_of(height, width, weights)
    share = _products(height, width, side) / (9 * height * width)  # 1/4 if no tile is cut
    # The additions grow with the channels, the saved products with their square. Transforming the
    # kernel must pay off: with few pixels per channel it costs more than it saves.
    few, many = sorted((channels, out_channels))
    pixels = max(2**16 // few, 3 * many) if weights else max(2**15 // few, 2 * many)
    wide = few >= (128 if weights else 64)
    return (
        few >= (64 if weights and side == 3 else 32)
        and share <= (0.45 if wide else 0.36)
        and min(height, width) >= 3
        and n * height * width >= pixels
    )


def forward(x, kernel, padding, backward: bool = False):
    """The convolution.

    Args:
      x: (N, H, W, C).
      kernel: (3, 3, C, C').
      padding: (before, after) per direction, also negative.
      backward: the kernel is (3, 3, C', C) and turned by 180 degrees, for an input gradient.
        Transforming it in place is much faster than reading a transpose for every position.

    Returns:
      (N, H', W', C').
    """
    height, width = (s + sum(p) - 2 for s, p in zip(x.shape[1:3], padding, strict=True))
    side = side_of(height, width)
    pieces = _pieces((len(x), height, width), side, _FORWARD_TILES)
    filled = pieces.filled(x)
    weights = lax.optimization_barrier(_weights(kernel, side, backward))

    def one_piece(i):
        tiles = _input_tiles(pieces.cut(filled, i, padding, 2), side)
        # Barriers keep XLA from recomputing the transforms inside the products.
        tiles = lax.optimization_barrier(tiles)
        products = lax.optimization_barrier(
            [pieces.unrolled(_product(t, w, backward)) for t, w in zip(tiles, weights, strict=True)]
        )
        return pieces.joined(_outputs(side, products))

    y = lax.map(one_piece, jnp.arange(pieces.pieces)) if pieces.pieces > 1 else one_piece(0)
    return y.reshape(-1, *y.shape[-3:])[: len(x), :height, :width]


def weight_gradient(x, dy, padding):
    """Gradient of the kernel, (3, 3, C, C'), from x (N, H, W, C) and dy (N, H', W', C')."""
    side = side_of(*dy.shape[1:3], weights=True)
    pieces = _pieces(dy.shape[:3], side, _gradient_tiles(x.shape[-1]))
    x, dy = pieces.filled(x), pieces.filled(dy)
    place = jnp.zeros((side + 2, x.shape[-1], dy.shape[-1]), x.dtype)

    def add_piece(i, total):
        tiles = _input_tiles(pieces.cut(x, i, padding, 2), side)
        errors = _error_tiles(pieces.cut(dy, i, ((0, 0), (0, 0)), 0), side)
        tiles, errors = lax.optimization_barrier((tiles, errors))
        return [
            t + jnp.einsum("atc,atd->acd", v, e)
            for t, v, e in zip(total, tiles, errors, strict=True)
        ]

    total = lax.fori_loop(0, pieces.pieces, add_piece, [place] * (side + 2))
    back = _kernel_transform(side, x.dtype)
    parts = [jnp.einsum("ak,acd->kcd", m, t) for m, t in zip(back, total, strict=True)]
    return functools.reduce(jnp.add, parts).reshape(3, 3, *place.shape[1:])


def _kernel_transform(side, dtype):
    """(b, a, 9): what the places of a kernel add to column ``b`` and row ``a`` of the weights."""
    m = np.asarray(_KERNEL[side])  # along one direction
    return np.einsum("ai,bj->baij", m, m).reshape(len(m), len(m), 9).astype(dtype)


def _weights(kernel, side, backward):
    """Transformed kernel: for every column, (rows, C, C')."""
    matrix = _kernel_transform(side, kernel.dtype)
    matrix = matrix[..., ::-1] if backward else matrix
    flat = kernel.reshape(9, *kernel.shape[2:])
    return [jnp.einsum("ak,kcd->acd", m, flat) for m in matrix]


def _product(tiles, weights, backward):
    """(rows, tiles, C'), from (rows, tiles, C) and (rows, C, C'), or (rows, C', C) if backward."""
    return jnp.einsum("atd,acd->atc" if backward else "atc,acd->atd", tiles, weights)


def _outputs(side, products):
    """Grid of outputs (images, rows, columns, C'), from products (a, images, rows, columns, C')."""
    columns = lax.optimization_barrier(_combined(_OUTPUT[side], products))
    return _transposed([_combined(_OUTPUT[side], list(column)) for column in columns])


class _Pieces(typing.NamedTuple):
    """A batch cut into ``pieces`` pieces of ``images`` with rows x columns tiles each."""

    side: int
    pieces: int
    images: int
    rows: int
    columns: int

    def filled(self, x):
        """x with empty images at the end, up to whole pieces."""
        more = self.pieces * self.images - len(x)
        return x if more == 0 else jnp.pad(x, ((0, more), (0, 0), (0, 0), (0, 0)))

    def cut(self, x, i, padding, overlap):
        """Piece ``i`` with zeros around, up to whole tiles; they overlap by ``overlap``.

        Padding each piece, while it is in the cache, is far cheaper than padding x.
        """
        piece = lax.dynamic_slice_in_dim(x, i * self.images, self.images)
        size = (self.rows * self.side + overlap, self.columns * self.side + overlap)
        pads = [
            (before, whole - before - s, 0)
            for s, whole, (before, _) in zip(x.shape[1:3], size, padding, strict=True)
        ]
        return lax.pad(piece, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])

    def unrolled(self, tiles):
        """(a, tiles, C') as (a, images, rows, columns, C'), in which XLA's loops are simple."""
        return tiles.reshape(-1, self.images, self.rows, self.columns, tiles.shape[-1])

    def joined(self, outputs):
        """side x side arrays of ``unrolled`` tiles as (images, rows, columns of pixels, C')."""
        y = jnp.stack([jnp.stack(row, 3) for row in outputs], 2)
        return y.reshape(self.images, self.rows * self.side, self.columns * self.side, -1)


def _pieces(shape, side, most):
    """Pieces of at most ``most`` tiles, or one image, of maps (N, H', W')."""
    n, rows, columns = shape[0], -(-shape[1] // side), -(-shape[2] // side)
    most = min(max(most // (rows * columns), 1), n)
    even = divisor(n, most)
    # Uneven pieces need a copy of all maps with empty images at the end.
    images = even if 2 * even >= most else -(-n // -(-n // most))
    return _Pieces(side, -(-n // images), images, rows, columns)


def _input_tiles(x, side):
    return _tiles(_INPUT[side], x, side, side + 2)


def _error_tiles(dy, side):
    return _tiles(_transposed(_OUTPUT[side]), dy, side, side)


def _tiles(matrix, x, step, size):
    """Applies ``matrix`` along both axes of tiles of size x size pixels, ``step`` apart.

    Returns:
      For every column of a transformed tile, (rows, tiles, C).
    """
    n, height, width, channels = x.shape
    down, right = (height - size) // step + 1, (width - size) // step + 1
    lines = [
        lax.slice(x, (0, a, 0, 0), (n, a + (down - 1) * step + 1, width, channels), (1, step, 1, 1))
        for a in range(size)
    ]
    # Stacked, so that one loop transforms the columns of all rows.
    y = lax.optimization_barrier(jnp.stack(lax.optimization_barrier(_combined(matrix, lines))))
    end = (len(y), n, down)
    places = [
        lax.slice(
            y, (0, 0, 0, b, 0), (*end, b + (right - 1) * step + 1, channels), (1, 1, 1, step, 1)
        )
        for b in range(size)
    ]
    return [p.reshape(len(y), -1, channels) for p in _combined(matrix, places)]


def _combined(matrix, arrays):
    """``matrix`` times a vector of arrays, using additions only."""
    return [
        functools.reduce(
            jnp.add,
            (
                a if c == 1 else -a if c == -1 else a * jnp.asarray(c, a.dtype)
                for c, a in zip(row, arrays, strict=True)
                if c
            ),
        )
        for row in matrix
    ]


def _transposed(rows):
    return [list(column) for column in zip(*rows, strict=True)]
