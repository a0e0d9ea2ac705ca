"""Genuine and impostor pairs of held-out people, for generic verification."""

from __future__ import annotations

import numpy as np

from fedfr_jax.errors import InputError


def draw_pairs(
    sizes: np.ndarray, images: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws ``count`` genuine and as many impostor pairs, all distinct, in alternation.

    Args:
      sizes: (H,) int64 images per held-out identity.
      images: (sizes.sum(),) int64 their image numbers, identity after identity.
      count: pairs of each kind.
      rng: a stream of its own.

    Returns:
      (2 count, 2) int64 image numbers and (2 count,) bool, whether a pair is genuine.
    """
    if not count:
        return np.zeros((0, 2), np.int64), np.zeros(0, bool)
    starts = np.cumsum(sizes) - sizes
    genuine = images[_genuine(sizes, starts, count, rng)]
    impostor = images[_impostor(sizes, starts, count, rng)]
    pairs = np.stack([genuine, impostor], axis=1).reshape(-1, 2)
    return pairs, np.tile([True, False], count)


def _genuine(
    sizes: np.ndarray, starts: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns (count, 2) positions of two images of one identity, spread over identities."""
    possible = sizes * (sizes - 1) // 2
    if possible.sum() < count:
        raise InputError(
            f"data.split.held_out_pairs: {count} genuine pairs wanted, but the "
            f"{len(sizes)} held-out identities have only {possible.sum()}; lower it or raise "
            "data.split.held_out_identities"
        )
    quota = _even_shares(possible, count, rng)
    some = np.flatnonzero(quota)  # at most ``count`` identities, however many are held out
    drawn = [rng.choice(possible[i], quota[i], replace=False) for i in some]
    code, start = np.concatenate(drawn), np.repeat(starts[some], quota[some])
    # Pair number c of images a < b: c = b (b - 1) / 2 + a.
    b = (1 + np.sqrt(1 + 8 * code.astype(np.float64))).astype(np.int64) // 2
    b += (code >= b * (b + 1) // 2).astype(np.int64) - (code < b * (b - 1) // 2)
    return rng.permutation(np.stack([start + code - b * (b - 1) // 2, start + b], axis=1))


def _even_shares(capacity: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Divides ``count`` as evenly as ``capacity`` allows, so that no identity dominates."""
    low, high = 0, int(capacity.max())
    while low < high:  # the largest level whose shares do not exceed count
        level = (low + high + 1) // 2
        affordable = np.minimum(capacity, level).sum() <= count
        low, high = (level, high) if affordable else (low, level - 1)
    shares = np.minimum(capacity, low)
    open_to_more = rng.permutation(np.flatnonzero(capacity > low))
    shares[open_to_more[: count - shares.sum()]] += 1
    return shares


def _impostor(
    sizes: np.ndarray, starts: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns (count, 2) positions of images of two identities, uniform over all such pairs."""
    # Image j has as many partners as there are images of the identities before its own.
    partners = np.repeat(starts, sizes)
    ends = np.cumsum(partners)
    possible = int(ends[-1]) if len(ends) else 0
    if possible < count:
        raise InputError(
            f"data.split.held_out_pairs: {count} impostor pairs wanted, but the {len(sizes)} "
            f"held-out identities have only {possible}; raise data.split.held_out_identities"
        )
    code = rng.choice(possible, count, replace=False)
    second = np.searchsorted(ends, code, side="right")
    first = code - (ends[second] - partners[second])
    return np.stack([first, second], axis=1)
