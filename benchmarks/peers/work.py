"""The work that peers are compared on, as settings and plain NumPy arrays.

Only NumPy is needed here: every peer's environment imports this module. Weights are in PyTorch's
layout, (out, in, height, width) and (out, in), with maps flattened as C, H, W.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

WEIGHTS = tuple(
    f"{layer}.{kind}" for layer in ("conv1", "conv2", "fc1", "fc2") for kind in ("weight", "bias")
)


@dataclasses.dataclass(frozen=True)
class Work:
    """Federated averaging of a small CNN with dropout.

    Attributes:
      users: of the population.
      cohort: users per round.
      sizes: fewest and most images of a user.
      rounds: of the whole training, to which the measured ones are extrapolated.
      weighted: the mean is weighted by the users' images.
      whole_batches: users have whole batches only. FedJAX fills the last one of an epoch up with
        images that were shown already, where the others let it be smaller.
      server: "sgd", or "adam" with FedJAX's settings of it.
    """

    title: str
    users: int
    cohort: int
    sizes: tuple[int, int]
    size: int
    channels: int
    classes: int
    batch: int
    lr: float
    epochs: int = 1
    server: str = "sgd"
    server_lr: float = 1.0
    weighted: bool = False
    whole_batches: bool = False
    rounds: int = 1500
    filters: tuple[int, int] = (32, 64)
    hidden: int = 128
    dropout: tuple[float, float] = (0.25, 0.5)

    @property
    def flat(self) -> int:
        """Features after pooling: two valid convolutions of 3x3, then 2x2 maxima."""
        return self.filters[1] * ((self.size - 4) // 2) ** 2


# Of Reddi et al., "Adaptive Federated Optimization", as in FedJAX's example for EMNIST.
ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-4}

WORKS = {
    "cifar10": Work(
        "pfl-research's CIFAR-10 benchmark: 1,000 users x 50 images, cohort 50, batch 10",
        users=1000,
        cohort=50,
        sizes=(50, 50),
        size=32,
        channels=3,
        classes=10,
        batch=10,
        lr=0.1,
    ),
    "five_epochs": Work(
        "BlazeFL's setting: 100 clients per round x 5 epochs, batch 50; 100 of their 500 images",
        users=100,
        cohort=100,
        sizes=(100, 100),
        size=32,
        channels=3,
        classes=10,
        batch=50,
        lr=0.1,
        epochs=5,
        rounds=5,
    ),
    "emnist": Work(
        "FedJAX's EMNIST CNN: 3,400 users of 100 to 300 images, cohort 10, batch 10, Adam",
        users=3400,
        cohort=10,
        sizes=(100, 300),
        size=28,
        channels=1,
        classes=62,
        batch=10,
        lr=10**-1.5,
        server="adam",
        server_lr=10**-2.5,
        weighted=True,
        whole_batches=True,
    ),
}


def initial_weights(work: Work, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """PyTorch's default: uniform, with a bound of fan_in ** -0.5."""
    first, second = work.filters
    shapes = {
        "conv1": (first, work.channels, 3, 3),
        "conv2": (second, first, 3, 3),
        "fc1": (work.hidden, work.flat),
        "fc2": (work.classes, work.hidden),
    }
    weights = {}
    for layer, shape in shapes.items():
        bound = np.prod(shape[1:]) ** -0.5
        weights[f"{layer}.weight"] = rng.uniform(-bound, bound, shape).astype(np.float32)
        weights[f"{layer}.bias"] = rng.uniform(-bound, bound, shape[:1]).astype(np.float32)
    return weights


def make_problem(work: Work, rounds: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Images of the users in the cohorts, initial weights and the cohorts of all rounds.

    Images are patterns under noise; only those of users that take part are made. A user's images
    have a fixed order, as in pfl-research's benchmark: its batches are the same in every epoch.

    Returns:
      ``images`` (N, H, W, C) uint8 and ``labels`` (N,) of all users in turn, ``first``
      (users + 1,): the row at which a user's images begin, ``cohorts`` (rounds, cohort), and
      ``weights/...``.
    """
    rng = np.random.default_rng(seed)
    cohorts = np.stack([rng.choice(work.users, work.cohort, replace=False) for _ in range(rounds)])
    sizes = rng.integers(work.sizes[0], work.sizes[1] + 1, work.users)
    if work.whole_batches:
        sizes -= sizes % work.batch
    sizes[np.setdiff1d(np.arange(work.users), cohorts)] = 0
    first = np.concatenate([[0], np.cumsum(sizes)])
    labels = rng.integers(work.classes, size=first[-1]).astype(np.int32)
    coarse = rng.integers(128, size=(work.classes, 4, 4, work.channels), dtype=np.uint8)
    places = np.arange(work.size) * 4 // work.size
    images = coarse[:, places][:, :, places][labels]
    images += rng.integers(128, size=images.shape, dtype=np.uint8)
    weights = {f"weights/{k}": v for k, v in initial_weights(work, rng).items()}
    return {"images": images, "labels": labels, "first": first, "cohorts": cohorts} | weights


def weights_of(problem: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The initial weights."""
    return {name: np.array(problem[f"weights/{name}"]) for name in WEIGHTS}


def user_images(problem: Mapping[str, Any], user: int) -> tuple[np.ndarray, np.ndarray]:
    """A user's images (M, H, W, C), float32 in [0, 1], and labels (M,)."""
    rows = slice(problem["first"][user], problem["first"][user + 1])
    return problem["images"][rows].astype(np.float32) / 255, problem["labels"][rows]


def images_per_round(work: Work, problem: Mapping[str, Any]) -> float:
    """Images trained on in a round, the mean over all rounds."""
    sizes = np.diff(problem["first"])
    return float(work.epochs * sizes[problem["cohorts"]].sum(1).mean())


def to_channels_last(work: Work, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights for NHWC: kernels (height, width, in, out), matrices (in, out), maps as H, W, C."""
    side = (work.size - 4) // 2
    found = dict(weights)
    for name in ("conv1.weight", "conv2.weight"):
        found[name] = np.transpose(weights[name], (2, 3, 1, 0))
    rows = weights["fc1.weight"].reshape(-1, work.filters[1], side, side)
    found["fc1.weight"] = rows.transpose(2, 3, 1, 0).reshape(work.flat, -1)
    found["fc2.weight"] = weights["fc2.weight"].T
    return {k: np.ascontiguousarray(v) for k, v in found.items()}


def from_channels_last(work: Work, weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of :func:`to_channels_last`."""
    side = (work.size - 4) // 2
    found = {k: np.asarray(v) for k, v in weights.items()}
    for name in ("conv1.weight", "conv2.weight"):
        found[name] = np.transpose(found[name], (3, 2, 0, 1))
    rows = found["fc1.weight"].reshape(side, side, work.filters[1], -1)
    found["fc1.weight"] = rows.transpose(3, 2, 0, 1).reshape(-1, work.flat)
    found["fc2.weight"] = found["fc2.weight"].T
    return found
