"""Finds images that show the same photograph: by small pictures first, then pixel by pixel.

Everything works on blocks, so that memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

SIDE = 112  # pixels to which images are brought before they are compared
MARGIN = 14  # pixels on each side that are left out of thumbnails: crops may differ by as much
_CELLS = 12  # per side of a thumbnail
_CELL = (SIDE - 2 * MARGIN) // _CELLS
_BLOCK = 2048  # images of a source that are read at a time
_ROWS = 1024  # rows of a similarity block
_FOUND, _GAIN = 0.95, 0.005  # cosines of an offset that is believed, and more than without it
_STEPS = 8  # of Gauss and Newton


def thumbnails(images: np.ndarray, offset: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Small pictures of the middle of images, of mean 0 and length 1: their products are cosines.

    Args:
      images: (n, 112, 112, 3) uint8.
      offset: (right, down) in pixels, at most 14 either way: where the middle is.

    Returns:
      (n, 432) float32; zeros for an image without any contrast.
    """
    right, down = offset
    size = SIDE - 2 * MARGIN
    window = images[:, MARGIN + down :, MARGIN + right :][:, :size, :size]
    cells = window.reshape(len(images), _CELLS, _CELL, _CELLS, _CELL, 3)
    flat = cells.mean(axis=(2, 4), dtype=np.float32).reshape(len(images), -1)
    return unit(flat - flat.mean(axis=1, keepdims=True))


def unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1, or of zeros where they were."""
    features = np.asarray(features, np.float32)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 1e-6, length, np.inf)


def blocks(count: int, size: int = _BLOCK) -> Iterator[np.ndarray]:
    """The numbers 0 to ``count`` - 1, some at a time."""
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))


class Nearest:
    """The best few of all candidates for each query, candidates coming block after block.

    Args:
      queries: (m, d) float32, rows of length 1.
      keep: how many per query.

    Attributes:
      scores: (m, keep) float32 cosines, highest first; -2 where there were fewer candidates.
      found: (m, keep) int64 numbers of the candidates; -1 where there were fewer.
    """

    def __init__(self, queries: np.ndarray, keep: int):
        self.queries = queries
        self.scores = np.full((len(queries), keep), -2, np.float32)
        self.found = np.full((len(queries), keep), -1, np.int64)

    def add(self, numbers: np.ndarray, candidates: np.ndarray) -> None:
        """Takes (b,) numbers of candidates and their (b, d) rows of length 1."""
        keep = self.scores.shape[1]
        for start in range(0, len(self.queries), _ROWS):
            rows = slice(start, start + _ROWS)
            near = self.queries[rows] @ candidates.T
            best = np.argpartition(-near, min(keep, near.shape[1]) - 1, axis=1)[:, :keep]
            scores = np.concatenate(
                [self.scores[rows], np.take_along_axis(near, best, axis=1)], axis=1
            )
            found = np.concatenate([self.found[rows], numbers[best]], axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :keep]
            self.scores[rows] = np.take_along_axis(scores, order, axis=1)
            self.found[rows] = np.take_along_axis(found, order, axis=1)


def find_offset(images: np.ndarray, candidates: np.ndarray) -> tuple[tuple[int, int], float]:
    """How far some photographs are shifted against the same ones in another data set.

    Crops of one photograph often differ by a constant: insightface's templates for 96 x 112 and
    for 112 x 112 pixels, for example, are 8 pixels apart.

    Args:
      images: (n, 112, 112, 3) uint8.
      candidates: (m, 432) thumbnails of the other data set.

    Returns:
      ((right, down) in pixels, the mean cosine of the best quarter to their nearest candidate).
    """

    def score(offset: tuple[int, int]) -> float:
        best = (thumbnails(images, offset) @ candidates.T).max(axis=1)
        return float(np.sort(best)[-max(1, len(best) // 4) :].mean())

    steps = range(-12, 13, 4)
    tried = {(x, y): score((x, y)) for x in steps for y in steps}
    x0, y0 = max(tried, key=lambda offset: tried[offset])
    near = [
        (x, y)
        for x in range(x0 - 3, x0 + 4)
        for y in range(y0 - 3, y0 + 4)
        if max(abs(x), abs(y)) <= MARGIN
    ]
    tried |= {offset: score(offset) for offset in near}
    best = max(tried, key=lambda offset: tried[offset])
    if tried[best] < _FOUND or tried[best] < tried[0, 0] + _GAIN:  # they are taken as they are
        best = (0, 0)
    return best, tried[best]


def _shrunk(images: np.ndarray) -> np.ndarray:
    """(n, 56, 56) float32 gray, from (n, 112, 112, 3) uint8."""
    gray = images.mean(axis=-1, dtype=np.float32)
    return gray.reshape(len(images), SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4))


def _sample(images: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear values of (n, h, w) images at (n, k) positions, which are moved inside."""
    high, wide = images.shape[1:]
    x, y = np.clip(x, 0, wide - 1.001), np.clip(y, 0, high - 1.001)
    left, top = x.astype(np.int64), y.astype(np.int64)
    fx, fy = (x - left).astype(np.float32), (y - top).astype(np.float32)
    flat = images.reshape(len(images), -1)

    def at(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return np.take_along_axis(flat, row * wide + column, axis=1)

    upper = at(top, left) * (1 - fx) + at(top, left + 1) * fx
    lower = at(top + 1, left) * (1 - fx) + at(top + 1, left + 1) * fx
    return upper * (1 - fy) + lower * fy


def registered_correlation(
    first: np.ndarray, second: np.ndarray, offset: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Correlation of gray values after one image was moved, turned and scaled onto the other.

    The least squares problem of Lucas and Kanade (IJCAI 1981), over a similarity, a gain and an
    offset of the gray values, in the middle of the images. The same photograph in two crops or
    qualities comes out above 0.99.

    Args:
      first, second: (n, 112, 112, 3) uint8, pair by pair.
      offset: (right, down) of ``first`` against ``second`` in pixels, to begin with.

    Returns:
      (n,) float64 in [-1, 1]; 0 where an image has no contrast.
    """
    a, b = _shrunk(first), _shrunk(second)
    span = (np.arange(MARGIN // 2, SIDE // 2 - MARGIN // 2) - SIDE / 4 + 0.5) / (SIDE / 4)
    u, v = (w.ravel()[None].astype(np.float32) for w in np.meshgrid(span, span))
    center = SIDE / 4 - 0.5
    at_a = (u * (SIDE / 4) + center + offset[0] / 2, v * (SIDE / 4) + center + offset[1] / 2)
    target = _normal(_sample(a, *(np.broadcast_to(w, (len(a), w.shape[1])) for w in at_a)))
    down, right = np.gradient(b, axis=(1, 2))
    motion = np.zeros((len(a), 4), np.float32)  # shift right, shift down, scaling, turn
    best = np.full(len(a), -1.0)
    for _ in range(_STEPS):
        dx, dy, s, r = (motion[:, i : i + 1] for i in range(4))
        x = u * (SIDE / 4) + center + dx + s * u - r * v
        y = v * (SIDE / 4) + center + dy + s * v + r * u
        seen = _sample(b, x, y)
        best = np.maximum(best, (target * _normal(seen)).sum(axis=1))
        gx, gy = _sample(right, x, y), _sample(down, x, y)
        columns = [gx, gy, gx * u + gy * v, gy * u - gx * v, -target, -np.ones_like(seen)]
        jacobian = np.stack(columns, axis=-1)
        square = jacobian.transpose(0, 2, 1) @ jacobian + 1e-3 * np.eye(6, dtype=np.float32)
        # The gray values of the target are put in the place of a gain and an offset to be found.
        step = np.linalg.solve(square, jacobian.transpose(0, 2, 1) @ -seen[..., None])
        motion = np.clip(motion + step[:, :4, 0], -MARGIN / 2, MARGIN / 2)
    return best


def _normal(values: np.ndarray) -> np.ndarray:
    return unit(values - values.mean(axis=1, keepdims=True))


def read_blocks(
    read: Callable[[np.ndarray], np.ndarray], numbers: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(numbers, images) of a source, a block at a time."""
    for rows in blocks(len(numbers)):
        yield numbers[rows], read(numbers[rows])
