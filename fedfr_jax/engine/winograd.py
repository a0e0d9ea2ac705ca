"""3x3 convolutions at stride 1 with fewer products: Winograd's minimal filtering.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016). The map is
cut into tiles of side x side outputs, which depend on (side + 2) x (side + 2) inputs. Tiles and
kernel are transformed by additions along rows and columns. The convolution is then one matrix
product per position in a tile, and so is its weight gradient (the transposed algorithm).

F(2x2, 3x3) takes 16 products instead of 36 and is as exact as a direct sum; F(4x4, 3x3) takes 36
instead of 144, with errors about ten times as large: 1e-5 of the largest value.

Layers of 32 to 64 channels gain from F(4, 3) along the columns alone: 18 products instead of 36 for
four outputs, and few additions.

Work is done in pieces whose tiles stay in the cache. Arrays are (tiles, channels), one per
position: with channels last, transforms are plain vector operations and products move no data.
"""

from __future__ import annotations

import functools
import typing

import jax.numpy as jnp
from jax import lax

# Along one direction: outputs = _OUTPUT @ ((_KERNEL @ kernel) * (_INPUT @ inputs)).
_INPUT = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
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
    4: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}
# Most tiles per piece, as measured: more do not fit the cache, fewer make the products slow.
_FORWARD_TILES = 400


def _gradient_tiles(channels: int) -> int:
    """The same for weight gradients, whose sums are read and written for every piece."""
    return max(100, channels // 2)


def forward_side(height: int, width: int) -> int:
    """The side of forward tiles: with side 2, small maps would be mostly edges and weight reads."""
    return 4 if max(height, width) <= 8 else 2


def is_faster(shape, channels: int, backward: bool = False) -> bool:
    """Whether this is faster than direct convolutions on a CPU, by measurements.

    Args:
      shape: (N, H', W', C') of the result.
      channels: C of the input.
      backward: for an input gradient.
    """
    n, height, width, out_channels = shape
    side = forward_side(height, width)
    filled = height * width / (side * side * -(-height // side) * -(-width // side))
    # The additions grow with the channels, the saved products with their square. Outputs of
    # tiles beyond the map are wasted (at 6x6 nearly half). With fewer pixels, transforming the
    # kernel costs more than it saves.
    wide = min(channels, out_channels) >= 64
    return (
        (wide or (backward and _is_half_wide(shape, channels)))
        and min(height, width) >= 4
        and filled >= 0.7
        and n * height * width >= 512
    )


def _is_half_wide(shape, channels: int) -> bool:
    """Between 32 and 64 or more channels, on as many pixels as were measured (10 maps of 28x28)."""
    few, many = sorted((channels, shape[-1]))
    return 32 <= few < 64 <= many and shape[0] * shape[1] * shape[2] >= 4096


def columns_are_faster(shape, channels: int) -> bool:
    """The same for :func:`forward_columns`; where both are, :func:`forward` is faster."""
    return _is_half_wide(shape, channels) and shape[2] / (4 * -(-shape[2] // 4)) >= 0.9


def forward_columns(x, kernel, padding):
    """The convolution, with F(4, 3) along the columns and direct sums along the rows.

    Args:
      x: (N, H, W, C).
      kernel: (3, 3, C, C').
      padding: (before, after) per direction, also negative.

    Returns:
      (N, H', W', C').
    """
    side, (_, width) = 4, (s + sum(p) - 2 for s, p in zip(x.shape[1:3], padding, strict=True))
    tiles = -(-width // side)
    more = (padding[1][0], padding[1][1] + tiles * side - width)
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (*padding[0], 0), (*more, 0), (0, 0, 0)])
    places = [lax.slice_in_dim(x, b, b + (tiles - 1) * side + 1, side, 2) for b in range(side + 2)]
    weights = _combined(_KERNEL[side], [kernel[:, b : b + 1] for b in range(3)])
    # Barriers keep XLA from recomputing the sums inside the convolutions.
    inputs = lax.optimization_barrier(_combined(_INPUT[side], places))
    products = lax.optimization_barrier(
        [
            lax.conv_general_dilated(
                v, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            for v, w in zip(inputs, weights, strict=True)
        ]
    )
    y = jnp.stack(_combined(_OUTPUT[side], products), 3)
    return y.reshape(*y.shape[:2], tiles * side, -1)[:, :, :width]


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
    side = forward_side(height, width)
    pieces = _pieces((len(x), height, width), side, _FORWARD_TILES)
    filled = pieces.filled(x)
    turn = slice(None, None, -1 if backward else 1)
    weights = _both_ways(_KERNEL[side], [list(row)[turn] for row in kernel][turn])
    weights = lax.optimization_barrier(weights)

    def product(tiles, weights):
        return pieces.unrolled(tiles @ (weights.T if backward else weights))

    def one_piece(i):
        tiles = _input_tiles(pieces.cut(filled, i, padding, 2), side)
        # Barriers keep XLA from recomputing the transforms inside the products.
        tiles = lax.optimization_barrier(tiles)
        products = lax.optimization_barrier(_zip2(product, tiles, weights))
        return pieces.joined(_both_ways(_OUTPUT[side], products))

    y = lax.map(one_piece, jnp.arange(pieces.pieces)) if pieces.pieces > 1 else one_piece(0)
    return y.reshape(-1, *y.shape[-3:])[: len(x), :height, :width]


def weight_gradient(x, dy, padding):
    """Gradient of the kernel, (3, 3, C, C'), from x (N, H, W, C) and dy (N, H', W', C')."""
    side = 4
    pieces = _pieces(dy.shape[:3], side, _gradient_tiles(x.shape[-1]))
    x, dy = pieces.filled(x), pieces.filled(dy)
    place = jnp.zeros((x.shape[-1], dy.shape[-1]), x.dtype)

    def add_piece(i, total):
        tiles = _input_tiles(pieces.cut(x, i, padding, 2), side)
        errors = _error_tiles(pieces.cut(dy, i, ((0, 0), (0, 0)), 0), side)
        tiles, errors = lax.optimization_barrier((tiles, errors))
        return _zip2(lambda t, v, e: t + v.T @ e, total, tiles, errors)

    total = [[place] * (side + 2)] * (side + 2)
    total = lax.fori_loop(0, pieces.pieces, add_piece, total)
    return jnp.stack([jnp.stack(row) for row in _both_ways(_transposed(_KERNEL[side]), total)])


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
        """(tiles, C') as (images, rows, columns, C'), in which XLA's loops are simple."""
        return tiles.reshape(self.images, self.rows, self.columns, -1)

    def joined(self, outputs):
        """side x side arrays of ``unrolled`` tiles as (images, rows, columns of pixels, C')."""
        y = jnp.stack([jnp.stack(row, 3) for row in outputs], 2)
        return y.reshape(self.images, self.rows * self.side, self.columns * self.side, -1)


def _pieces(shape, side, most):
    """Even pieces of at most ``most`` tiles, or one image, of maps (N, H', W')."""
    rows, columns = -(-shape[1] // side), -(-shape[2] // side)
    count = -(-shape[0] // max(most // (rows * columns), 1))
    return _Pieces(side, count, -(-shape[0] // count), rows, columns)


def _input_tiles(x, side):
    return _tiles(_INPUT[side], x, side, side + 2)


def _error_tiles(dy, side):
    return _tiles(_transposed(_OUTPUT[side]), dy, side, side)


def _tiles(matrix, x, step, size):
    """Applies ``matrix`` along both axes of tiles of size x size pixels, ``step`` apart."""
    n, height, width, channels = x.shape
    down, right = (height - size) // step + 1, (width - size) // step + 1
    lines = [
        lax.slice(x, (0, a, 0, 0), (n, a + (down - 1) * step + 1, width, channels), (1, step, 1, 1))
        for a in range(size)
    ]
    found = []
    for line in _combined(matrix, lines):
        places = [
            lax.slice(
                line, (0, 0, b, 0), (n, down, b + (right - 1) * step + 1, channels), (1, 1, step, 1)
            )
            for b in range(size)
        ]
        found.append([p.reshape(-1, channels) for p in _combined(matrix, places)])
    return found


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


def _both_ways(matrix, grid):
    """Applies ``matrix`` along rows and columns of a grid of arrays."""
    return _transposed(
        [_combined(matrix, line) for line in _transposed([_combined(matrix, row) for row in grid])]
    )


def _transposed(rows):
    return [list(column) for column in zip(*rows, strict=True)]


def _zip2(function, *grids):
    """``function`` of the arrays at the same place in all grids."""
    return [
        [function(*arrays) for arrays in zip(*rows, strict=True)]
        for rows in zip(*grids, strict=True)
    ]
