"""In which rounds clients take part, and what that means for noise that is shared by rounds."""

from __future__ import annotations

import numpy as np


def most_rounds(cohorts: np.ndarray) -> int:
    """In how many rounds a client takes part, at most.

    Args:
      cohorts: (rounds, n) client numbers, -1 = none.
    """
    return int(np.bincount(cohorts[cohorts >= 0], minlength=1).max()) if cohorts.size else 0


def least_separation(cohorts: np.ndarray) -> int:
    """The fewest rounds from one participation of a client to its next; 0 if none comes twice.

    Args:
      cohorts: (rounds, n) client numbers, -1 = none; a client once in a round.
    """
    rounds, slots = np.nonzero(cohorts >= 0)
    clients = cohorts[rounds, slots]
    order = np.lexsort((rounds, clients))
    same = clients[order][1:] == clients[order][:-1]
    gaps = np.diff(rounds[order])[same]
    return int(gaps.min()) if gaps.size else 0


def tree_sensitivities(cohorts: np.ndarray) -> np.ndarray:
    """The L2 sensitivity of all noisy nodes of the tree after 0, 1, ... rounds, in bounds.

    A client that takes part c times in the rounds of a node changes the node's sum by at most c
    bounds, so the sensitivity is the root of the sum of c^2 over nodes, for the client with most.
    Only nodes that are part of a sum over the first rounds have been released: those with an even
    place whose last round is done (see :mod:`fedfr_jax.algorithm.tree_noise`). A client that takes
    part once, in the first of T rounds, is in floor(log2 T) + 1 of them.

    Args:
      cohorts: (rounds, n) client numbers, -1 = none.

    Returns:
      (rounds + 1,) float64, not decreasing.
    """
    present, numbers = np.unique(cohorts[cohorts >= 0], return_inverse=True)
    members = np.full(cohorts.shape, -1, np.int64)
    members[cohorts >= 0] = numbers.reshape(-1)
    levels = max(1, len(cohorts).bit_length())
    open_nodes = np.zeros((levels, len(present)), np.int64)
    squares = np.zeros(len(present), np.int64)
    found = np.zeros(len(cohorts) + 1)
    for done, row in enumerate(members, start=1):
        open_nodes[:, row[row >= 0]] += 1
        for level in range(levels):
            if done % (1 << level):
                break
            if (done >> level) % 2:  # its place, one less, is even
                squares += open_nodes[level] ** 2
            open_nodes[level] = 0
        found[done] = np.sqrt(squares.max(initial=0))
    return found
