"""The likelihood-ratio attack (Carlini et al., "Membership inference attacks from first
principles", S&P 2022), as functions of scores of a target and of shadow models.

The variances are pooled over all examples, which is what the paper advises for few shadow models.
"""

from __future__ import annotations

import numpy as np

_LEAST = 2  # shadow models of a kind that an example needs


def to_normal(cosines: np.ndarray) -> np.ndarray:
    """Cosines on a scale on which they are nearly normal (Fisher's z)."""
    return np.arctanh(np.clip(cosines, -0.999999, 0.999999))


def _moments(shadows: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, float]:
    """((n,) mean over the chosen models, NaN where there are too few; pooled std)."""
    count = chosen.sum(0)
    mean = np.where(chosen, shadows, 0).sum(0) / np.maximum(count, 1)
    squares = np.where(chosen, (shadows - mean) ** 2, 0).sum(0)
    good = count >= _LEAST
    freedom = (count[good] - 1).sum()
    std = float(np.sqrt(squares[good].sum() / freedom)) if freedom > 0 else float("nan")
    return np.where(good, mean, np.nan), max(std, 1e-6)


def offline(target: np.ndarray, shadows: np.ndarray, without: np.ndarray) -> np.ndarray:
    """How far the target's score is above those of models that never saw the example.

    Args:
      target: (n,) scores, larger for what was trained on.
      shadows: (S, n) of the shadow models.
      without: (S, n) bool, whether the model was trained without the example.

    Returns:
      (n,) in standard deviations, which orders examples as the probability of the paper does; NaN
      where fewer than two models were trained without the example.
    """
    mean, std = _moments(shadows, without)
    return (target - mean) / std


def online(
    target: np.ndarray, shadows: np.ndarray, within: np.ndarray, without: np.ndarray
) -> np.ndarray:
    """The logarithm of the likelihood ratio of "trained with" to "trained without".

    Args:
      target, shadows, without: as for :func:`offline`.
      within: (S, n) bool, whether the model was trained with the example.

    Returns:
      (n,); NaN where fewer than two models of either kind exist.
    """
    total = np.zeros(len(target))
    for chosen, sign in ((within, 1.0), (without, -1.0)):
        mean, std = _moments(shadows, chosen)
        total += sign * (-0.5 * ((target - mean) / std) ** 2 - np.log(std))
    return total
