"""The threshold rule, and exact thresholds for more scores than fit into memory.

With ``N`` negative scores sorted descending, the threshold at false-accept rate ``f`` is
entry ``floor(f N)`` (0-based), and a score is accepted if it is greater. One client of the
paper compares 632 million negative pairs, so the order statistics are found exactly in two
passes over blocks of the similarity matrix: a histogram of the upper 16 bits of the float32
scores, then one of the lower 16 bits within the few bins that hold the wanted ranks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.scores import padded_blocks, score_block

_BINS = 1 << 16
_INT32_MAX = 2**31 - 1
_PENDING = 1 << 22


def check_rates(rates, name: str = "fars") -> np.ndarray:
    """Returns false-accept rates as float64.

    Args:
      rates: (F,) rates, each in (0, 1).
      name: their name in the message.

    Raises:
      InputError: no rate is given, or one is not between 0 and 1.
    """
    rates = np.atleast_1d(np.asarray(rates, np.float64))
    if rates.ndim != 1 or not rates.size or not np.all((rates > 0) & (rates < 1)):
        raise InputError(f"{name} must be numbers between 0 and 1, got {rates.tolist()}")
    return rates


def rate_times(rates, count: int, name: str = "fars") -> list[Fraction]:
    """Returns (F,) exact products of ``count`` and the rates, taken as exact decimals.

    ``0.07 * 100`` is more than 7 in floating point, so a rank would be one too high.

    Args:
      rates: (F,) rates, each in (0, 1).
      count: number of scores or probes.
      name: what to call the rates in the message.

    Raises:
      InputError: as :func:`check_rates`.
    """
    return [Fraction(repr(rate)) * count for rate in check_rates(rates, name).tolist()]


def far_is_resolvable(fars, num_negatives: int) -> np.ndarray:
    """Says which false-accept rates can be resolved with this number of negative scores.

    If ``f N < 1`` the rule's threshold is the largest negative score for any ``f``:
    the true-accept rate is still defined, but belongs to FAR 0; tables should mark it.

    Args:
      fars: (F,) false-accept rates.
      num_negatives: ``N``, number of negative scores.

    Returns:
      (F,) bool, ``f N >= 1``.
    """
    return np.array([allowed >= 1 for allowed in rate_times(fars, num_negatives)])


def threshold_ranks(fars, num_negatives: int) -> np.ndarray:
    """Returns (F,) int64 ``floor(f N)``, the descending 0-based ranks of the thresholds."""
    return np.array([math.floor(r) for r in rate_times(fars, num_negatives)], np.int64)


def thresholds_at_far(negatives: Float[np.ndarray, " N"], fars: Any) -> Float[np.ndarray, " F"]:
    """Applies the threshold rule to scores held in memory.

    Args:
      negatives: (N,) scores of negative comparisons.
      fars: (F,) false-accept rates.

    Returns:
      (F,) thresholds in the type of ``negatives``; NaN if there are no negatives.
    """
    negatives = np.asarray(negatives)
    fars = check_rates(fars)
    if not negatives.size:
        return np.full(fars.shape, np.nan, negatives.dtype)
    places = negatives.size - 1 - threshold_ranks(fars, negatives.size)
    return np.partition(negatives, np.unique(places))[places]


def accept_rates(
    scores: Float[np.ndarray, " N"], thresholds: Float[np.ndarray, " F"]
) -> Float[np.ndarray, " F"]:
    """Returns (F,) float64, the share of ``scores`` (P,) greater than each threshold.

    NaN where a threshold is NaN (there were no negatives) or where there are no scores.
    """
    scores = np.sort(np.asarray(scores))
    thresholds = np.asarray(thresholds)
    if not scores.size:
        return np.full(thresholds.shape, np.nan)
    above = scores.size - np.searchsorted(scores, thresholds, side="right")
    return np.where(np.isnan(thresholds), np.nan, above / scores.size)


def unit_rows(features: Any, name: str = "features") -> Float[np.ndarray, "n d"]:
    """Scales rows to length one; a row of zeros stays zero (cosine 0 with everything).

    Args:
      features: (n, d) array.
      name: what to call it in the message.

    Raises:
      InputError: not a matrix, or an entry is not finite.
    """
    features = np.asarray(features, np.float32)
    if features.ndim != 2:
        raise InputError(f"{name} must be (images, dimensions), got shape {features.shape}")
    norms = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(norms))
    if bad.size:
        raise InputError(
            f"{name}: {bad.size} of {len(features)} rows are not finite (first: row {bad[0]}); "
            "training has diverged or the weights do not fit the network"
        )
    return features / np.maximum(norms, 1e-12).astype(np.float32)[:, None]


@dataclasses.dataclass(frozen=True)
class StreamedScores:
    """Outcome of :func:`stream_pairs`.

    Attributes:
      thresholds: (F,) float32, NaN if there are no negative pairs.
      positives: (P,) float32 scores of the pairs with equal labels.
      num_negatives: number of pairs with different labels.
    """

    thresholds: np.ndarray
    positives: np.ndarray
    num_negatives: int


@dataclasses.dataclass(frozen=True)
class _Tile:
    """A block of the similarity matrix, and a mask of its negative pairs."""

    scores: jax.Array
    rows: int
    columns: int
    negative: np.ndarray | None  # (rows, columns) bool; None: every one
    positive: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class _Cache:
    """Tiles kept from the first pass for the second, up to ``limit`` bytes."""

    limit: int
    scores: dict[tuple[int, int], jax.Array] = dataclasses.field(default_factory=dict)

    def get(self, rows, columns, key) -> jax.Array:
        scores = self.scores.get(key)
        if scores is None:
            scores = score_block(rows, columns)
            if (len(self.scores) + 1) * scores.nbytes <= self.limit:
                self.scores[key] = scores
        return scores


def _tiles(unit, labels, num_rows, block, cache: _Cache) -> Iterator[_Tile]:
    row_blocks = padded_blocks(unit[:num_rows], block)
    column_blocks = padded_blocks(unit, block)
    for r0, nr, rows in row_blocks:
        for c0, nc, columns in column_blocks:
            if c0 + nc - 1 <= r0:
                continue
            negative = positive = None
            if c0 < num_rows:
                once = np.arange(r0, r0 + nr)[:, None] < np.arange(c0, c0 + nc)
                same = labels[r0 : r0 + nr, None] == labels[c0 : c0 + nc]
                negative, positive = once & ~same, once & same
            scores = cache.get(rows, columns, (r0, c0))
            yield _Tile(scores, nr, nc, negative, positive)


def _negative_bits(tile: _Tile) -> np.ndarray:
    scores = np.asarray(tile.scores)[: tile.rows, : tile.columns]
    scores = scores.ravel() if tile.negative is None else scores[tile.negative]
    return scores.view(np.uint32)


def _host_high(tiles) -> np.ndarray:
    return sum(
        (np.bincount(_negative_bits(tile) >> 16, minlength=_BINS) for tile in tiles),
        np.zeros(_BINS, np.int64),
    )


def _host_low(tiles, slots, num_slots) -> np.ndarray:
    total, pending, held = np.zeros(num_slots * _BINS, np.int64), [], 0
    for tile in tiles:
        bits = _negative_bits(tile)
        slot = slots[bits >> 16]
        wanted = np.flatnonzero(slot < num_slots)
        pending.append(slot[wanted].astype(np.int64) * _BINS + (bits[wanted] & (_BINS - 1)))
        held += wanted.size
        if held > _PENDING:  # a histogram this long is too slow to make for every tile
            total += np.bincount(np.concatenate(pending), minlength=total.size)
            pending, held = [], 0
    return total + np.bincount(
        np.concatenate([*pending, np.zeros(0, np.int64)]), minlength=total.size
    )


@partial(jax.jit, donate_argnums=0)
def _add_high(counts, scores, keep):
    bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
    place = jnp.where(keep, (bits >> 16).astype(jnp.int32), _BINS)
    return counts.at[place.ravel()].add(1, mode="drop")


@partial(jax.jit, donate_argnums=0)
def _add_low(counts, scores, keep, slots):
    bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
    slot = slots[(bits >> 16).astype(jnp.int32)].astype(jnp.int32)
    place = slot * _BINS + (bits & (_BINS - 1)).astype(jnp.int32)
    place = jnp.where(keep, place, counts.size)
    return counts.at[place.ravel()].add(1, mode="drop")


def _keep(tile: _Tile) -> np.ndarray:
    shape = tile.scores.shape
    if tile.negative is None and shape == (tile.rows, tile.columns):
        return np.ones((1, 1), bool)
    keep = np.zeros(shape, bool)
    keep[: tile.rows, : tile.columns] = True if tile.negative is None else tile.negative
    return keep


def _device_count(tiles, size: int, add) -> np.ndarray:
    total, counts, held = np.zeros(size, np.int64), jnp.zeros(size, jnp.int32), 0
    for tile in tiles:
        if held + tile.scores.size > _INT32_MAX:
            total += np.asarray(counts)
            counts, held = jnp.zeros(size, jnp.int32), 0
        held += tile.scores.size
        counts = add(counts, tile.scores, _keep(tile))
    return total + np.asarray(counts)


def _count_high(tiles, on_device: bool) -> np.ndarray:
    """(65536,) number of negative scores for each pattern of the upper 16 bits."""
    return _device_count(tiles, _BINS, _add_high) if on_device else _host_high(tiles)


def _count_low(tiles, wanted: np.ndarray, on_device: bool) -> np.ndarray:
    """(W, 65536) number of scores for each lower half, for each ``wanted`` (W,) upper half."""
    slots = np.full(_BINS, len(wanted), np.uint16)
    slots[wanted] = np.arange(len(wanted))
    if on_device:
        counts = _device_count(tiles, len(wanted) * _BINS, partial(_add_low, slots=slots))
    else:
        counts = _host_low(tiles, slots, len(wanted))
    return counts.reshape(-1, _BINS)


def _descending_bins(high_counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Raw upper halves in descending order of their floats, and their counts."""
    positive = np.arange(_BINS // 2 - 1, -1, -1)
    negative = np.arange(_BINS // 2, _BINS)
    order = np.concatenate([positive, negative])
    return order, high_counts[order]


def _locate(high_counts, ranks) -> tuple[np.ndarray, np.ndarray]:
    """The raw bin that holds each descending rank, and the rank within the bin."""
    order, counts = _descending_bins(high_counts)
    ends = np.cumsum(counts)
    place = np.searchsorted(ends, ranks, side="right")
    return order[place], ranks - (ends - counts)[place]


def _resolve(bins, inner_ranks, wanted, low_counts) -> np.ndarray:
    """Float32 values at the given ranks within the given bins."""
    values = np.empty(len(bins), np.float32)
    for k, (high, rank) in enumerate(zip(bins, inner_ranks, strict=True)):
        counts = low_counts[np.searchsorted(wanted, high)]
        negative = high >= _BINS // 2  # larger bit patterns are smaller numbers
        ends = np.cumsum(counts if negative else counts[::-1])
        place = int(np.searchsorted(ends, rank, side="right"))
        low = place if negative else _BINS - 1 - place
        values[k] = np.uint32((int(high) << 16) | low).view(np.float32)
    return values


def stream_pairs(
    unit: np.ndarray,
    labels: np.ndarray,
    num_rows: int,
    fars,
    *,
    block: int = 4096,
    on_device: bool | None = None,
    cache_bytes: int = 1 << 30,
) -> StreamedScores:
    """Compares the first rows with all rows, in bounded memory and exactly.

    The pairs are all unordered pairs of which at least one is among the first ``num_rows``.
    Memory: a copy of the unit features on the device, a block of scores, the cache, half a
    megabyte per distinct threshold, and the positive scores.

    Args:
      unit: (V, d) float32 unit features.
      labels: (V,) identities; no identity has rows both before and after ``num_rows``.
      num_rows: number of first rows to compare with all rows.
      fars: (F,) false-accept rates.
      block: rows and columns of a block of scores.
      on_device: where histograms are made; None: on the device if it is a GPU, else by NumPy,
        which counts several times faster than a compiled scatter on a CPU.
      cache_bytes: bytes of scores kept for the second pass, which recomputes the others.

    Raises:
      InputError: an identity has rows on both sides of ``num_rows``.
    """
    fars = check_rates(fars)
    labels = np.asarray(labels)
    shared = np.intersect1d(labels[:num_rows], labels[num_rows:])
    if shared.size:
        raise InputError(f"identity {shared[0]} has images both in and outside the client")
    on_device = jax.default_backend() == "gpu" if on_device is None else on_device
    positives, cache = [np.zeros(0, np.float32)], _Cache(cache_bytes)

    def first_pass() -> Iterator[_Tile]:
        for tile in _tiles(unit, labels, num_rows, block, cache):
            if tile.positive is not None and tile.positive.any():
                scores = np.asarray(tile.scores)[: tile.rows, : tile.columns]
                positives.append(scores[tile.positive])
            yield tile

    high = _count_high(first_pass(), on_device)
    total = int(high.sum())
    positive_scores = np.concatenate(positives)
    if not total:
        return StreamedScores(np.full(fars.shape, np.nan, np.float32), positive_scores, 0)
    bins, inner = _locate(high, threshold_ranks(fars, total))
    wanted = np.unique(bins)
    low = _count_low(_tiles(unit, labels, num_rows, block, cache), wanted, on_device)
    if not np.array_equal(low.sum(axis=1), high[wanted]):
        raise RuntimeError("the backend gave different scores for the same block twice")
    return StreamedScores(_resolve(bins, inner, wanted, low), positive_scores, total)
