"""The folds of the verification protocol: divides pairs, and checks that it is possible."""

from __future__ import annotations

import dataclasses

import numpy as np

from fedfr_jax.data.types import VerificationSet
from fedfr_jax.errors import InputError

FOLDS = 10
_SEED = 0  # of the shuffle: results on one set stay comparable between runs


@dataclasses.dataclass(frozen=True)
class Folds:
    """How P pairs are divided.

    Attributes:
      parts: (n_k,) int64 pair numbers of each fold.
      mixed: whether pairs were shuffled; else folds are contiguous parts of the list, the first
        ones larger by one if their number does not divide P.
    """

    parts: tuple[np.ndarray, ...]
    mixed: bool


def make_folds(is_same: np.ndarray, folds: int = FOLDS) -> Folds:
    """Divides pairs into folds that each hold genuine and impostor pairs.

    They are contiguous, as in published results, unless one of them would lack a kind; then
    the pairs of each kind are shuffled with a fixed seed and distributed over the folds.

    Args:
      is_same: (P,) bool.
      folds: at least 2.

    Raises:
      InputError: there are fewer genuine or impostor pairs than folds.
    """
    is_same = np.asarray(is_same, bool)
    if folds < 2:
        raise InputError(f"folds must be at least 2, got {folds}")
    genuine, impostor = np.flatnonzero(is_same), np.flatnonzero(~is_same)
    if min(len(genuine), len(impostor)) < folds:
        raise InputError(
            f"{len(genuine)} genuine and {len(impostor)} impostor pairs are too few "
            f"for {folds} folds, each of which needs a pair of either kind"
        )
    parts = np.array_split(np.arange(len(is_same)), folds)
    if all(0 < is_same[part].sum() < len(part) for part in parts):
        return Folds(tuple(parts), mixed=False)
    rng = np.random.default_rng(_SEED)
    dealt = [np.array_split(rng.permutation(kind), folds) for kind in (genuine, impostor)]
    # Larger parts of one kind are combined with smaller parts of the other.
    parts = [np.sort(np.concatenate(pair)) for pair in zip(dealt[0], dealt[1][::-1], strict=True)]
    return Folds(tuple(parts), mixed=True)


def scorable(pairs: VerificationSet) -> VerificationSet:
    """Returns the set as it is.

    Raises:
      InputError: it cannot be divided into folds, so that a finished run could not be evaluated.
    """
    try:
        make_folds(pairs.is_same)
    except InputError as error:
        raise InputError(
            f"verification set {pairs.name}: {error}; take it out of data.verification_sets, or "
            "leave more pairs in it (data.verification_labels drops those of people who are "
            "trained on: raise data.split.held_out_identities)"
        ) from error
    return pairs
