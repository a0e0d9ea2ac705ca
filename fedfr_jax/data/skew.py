"""Clients whose people resemble each other: groups of people, drawn by a Dirichlet distribution.

People are grouped by k-means on features, or by quantiles of a number per person. Each client draws
its shares of the groups from a Dirichlet distribution whose mean is the groups' size, as is done
for classes in federated learning (Hsu et al., arXiv 1909.06335), and its people accordingly,
without replacement.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.cluster.vq import kmeans2, vq

from fedfr_jax.errors import ConfigError, InputError

KINDS = ("cluster", "brightness", "sharpness")
MOST_GROUPS = 256
_MOST_SHARES = 50_000_000  # clients x groups, 8 bytes each
_SAMPLE = 20_000  # people on whom the centres are found; the others go to the nearest
_ITERATIONS = 30
_BLOCK = 1 << 16  # rows at a time


def group_people(features: np.ndarray, groups: int, rng: np.random.Generator) -> np.ndarray:
    """Groups people by what they have in common.

    Args:
      features: (n, d) numbers: k-means; or (n,), one per person: quantiles.
      groups: how many, at most n; empty ones are left out.
      rng: for the centres of k-means.

    Returns:
      (n,) int64 groups, numbered from 0 without gaps; of quantiles in ascending order.

    Raises:
      InputError: they do not differ.
    """
    if (features == features[0]).all():
        raise InputError(
            f"data.split.skew_by: the {len(features)} people that can be drawn for clients do not "
            "differ in it; set it to ''"
        )
    if features.ndim == 1:
        group = np.empty(len(features), np.int64)
        group[np.argsort(features, kind="stable")] = (
            np.arange(len(features)) * groups // len(features)
        )
        return group
    some = np.sort(rng.choice(len(features), min(len(features), _SAMPLE), replace=False))
    sample = np.asarray(features[some], np.float64)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")  # of empty clusters
        centres, _ = kmeans2(sample, groups, iter=_ITERATIONS, minit="++", seed=rng)
    nearest = [
        vq(np.asarray(features[i : i + _BLOCK], np.float64), centres)[0]
        for i in range(0, len(features), _BLOCK)
    ]
    return np.unique(np.concatenate(nearest), return_inverse=True)[1].astype(np.int64)


def draw_people(
    group: np.ndarray, sizes: np.ndarray, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """Draws each client's people from the groups that it prefers.

    A client's shares of the groups are Dirichlet with parameters ``alpha * G * (share of the
    people in the group)``: small ``alpha`` makes clients of one group, a large one makes all like
    the whole. Where more people of a group are wanted than there are, it is chance who gets them;
    the others draw again among the groups that are left. Each such turn empties a group, so there
    are at most as many turns as groups.

    Args:
      group: (n,) int64 group of each person, from 0 without gaps.
      sizes: (N,) people that each client needs; at most n together.
      alpha: concentration, above 0.
      rng: a stream of its own.

    Returns:
      (T,) int64 distinct positions in ``group``, client after client. Within a group people are
      taken in their order.

    Raises:
      ConfigError: clients and groups are too many.
    """
    left = np.bincount(group)
    if len(left) * len(sizes) > _MOST_SHARES:
        raise ConfigError(
            f"data.split.skew_groups: {len(left)} groups and {len(sizes)} clients are more than "
            f"{_MOST_SHARES:,} shares to draw; lower it or fed.num_clients"
        )
    weights = _log_dirichlet(alpha * len(left) * left / left.sum(), len(sizes), rng)
    owner, found = np.repeat(np.arange(len(sizes)), sizes), np.full(sizes.sum(), -1)
    first, waiting = np.cumsum(left) - left, np.arange(sizes.sum())
    taken = np.zeros(len(left), np.int64)
    while len(waiting):
        wanted = _draw(weights, owner[waiting], taken < left, rng)
        order = rng.permutation(len(waiting))
        waiting, wanted = waiting[order], wanted[order]
        rank = taken[wanted] + _rank(wanted)
        has = rank < left[wanted]
        found[waiting[has]] = (first[wanted] + rank)[has]
        taken += np.bincount(wanted[has], minlength=len(left))
        waiting = waiting[~has]
    return np.argsort(group, kind="stable")[found]


def _log_dirichlet(parameters: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, G) logarithms of unnormalized shares; parameters near 0 do not underflow."""
    shape = (count, len(parameters))
    uniform = 1 - rng.random(shape)  # in (0, 1]
    return np.log(rng.standard_gamma(parameters + 1, shape)) + np.log(uniform) / parameters


def _draw(
    weights: np.ndarray, clients: np.ndarray, is_open: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(n,) a group for each, of those that are open, by its client's shares."""
    found = np.empty(len(clients), np.int64)
    step = max(1, _BLOCK * 8 // len(is_open))
    for i in range(0, len(clients), step):
        log = np.where(is_open, weights[clients[i : i + step]], -np.inf)
        ends = np.cumsum(np.exp(log - log.max(axis=1, keepdims=True)), axis=1)
        drawn = rng.random(len(log)) * ends[:, -1]
        group = (ends <= drawn[:, None]).sum(axis=1)
        beyond = group == len(is_open)  # by rounding
        found[i : i + step] = np.where(beyond, log.argmax(axis=1), group)
    return found


def _rank(groups: np.ndarray) -> np.ndarray:
    """(n,) how many earlier entries are equal."""
    order = np.argsort(groups, kind="stable")
    counts = np.bincount(groups)
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank


def effective_groups(groups: np.ndarray, client: np.ndarray, clients: int) -> np.ndarray:
    """(N,) effective number of groups per client: e to the entropy of its shares of the groups.

    Args:
      groups: (T,) group of each person; client: (T,) who has the person.
    """
    width = int(groups.max(initial=0)) + 1
    keys, counts = np.unique(client * width + groups, return_counts=True)
    owner = keys // width
    share = counts / np.bincount(owner, counts)[owner]
    return np.exp(-np.bincount(owner, share * np.log(share), clients))


def group_counts(groups: np.ndarray, client: np.ndarray, clients: int) -> np.ndarray:
    """(N, G) people of each group at each client."""
    width = int(groups.max(initial=0)) + 1
    return np.bincount(client * width + groups, minlength=clients * width).reshape(clients, width)
