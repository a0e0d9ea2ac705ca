"""The work of a benchmark, as settings and plain NumPy arrays, without JAX or PyTorch.

A *problem* is a dict of arrays that every competitor reads: images, initial weights in
PyTorch's layout, heads, and the batches of every client and step in order. So all of them
do the same work, and their results can be compared. Arrays whose name begins with
``client/`` have a leading client axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

MOMENTUM, DECAY, SCALE, MARGIN = 0.9, 5e-4, 30.0, 0.4
MOVING = ("moving_mean", "moving_var")  # batch norm's running statistics: averaged, not trained


@dataclasses.dataclass(frozen=True)
class Case:
    """One FedFR round of local training; every client has the same number of images.

    Attributes:
      images: of each client; every client also trains on ``public`` public images.
      identities: of each client, and of the public set.
      epochs: local epochs E; the learning rate is divided by 10 at the end, as in the paper.
      lr: a third of the paper's. At 1e-3 this random network amplifies rounding within ten
        steps from 1e-5 to 1e-3 of the update (PyTorch with one thread against two: 3e-4 to 9e-4).
      contrastive, binary: the two terms in addition to CosFace.
    """

    depth: int
    widths: tuple[int, ...]
    size: int
    batch: int
    clients: int
    images: int
    public: int
    embedding: int = 128
    identities: int = 8
    epochs: int = 10
    lr: float = 3e-4
    model: str = "spherenet"
    contrastive: bool = True
    binary: bool = True

    @property
    def steps(self) -> int:
        """Steps of a client in a round."""
        return self.epochs * ((self.images + self.public) // self.batch)

    @property
    def decay_epoch(self) -> int:
        return max(1, int(0.8 * self.epochs))

    @property
    def trained_images(self) -> int:
        """Images trained on in a round (forward and backward), over all clients."""
        return self.clients * self.steps * self.batch


def large_case(
    batch: int, clients: int, model: str = "spherenet", depth: int = 20, embedding: int = 512
) -> Case:
    """A network of the paper's widths at 112 x 112 pixels, as for accelerators."""
    return Case(
        model=model,
        depth=depth,
        widths=(64, 128, 256, 512),
        size=112,
        batch=batch,
        clients=clients,
        images=3 * max(64, batch) // 4,
        public=max(64, batch) // 4,
        embedding=embedding,
        epochs=2,
    )


@dataclasses.dataclass(frozen=True)
class Workload:
    """A small FedAvg client, unrelated to FedFR (ENGINE_FACTS.md, A and B)."""

    name: str
    clients: int
    size: int
    batch: int
    steps: int
    lr: float
    momentum: float = 0.0
    decay: float = 0.0
    classes: int = 10

    @property
    def trained_images(self) -> int:
        return self.clients * self.steps * self.batch


WORKLOADS = {
    "A": Workload("A", clients=32, size=32, batch=10, steps=5, lr=0.1),
    "B": Workload(
        "B", clients=32, size=64, batch=16, steps=10, lr=0.01, momentum=MOMENTUM, decay=DECAY
    ),
}


@dataclasses.dataclass
class Built:
    """A competitor that is ready to run.

    Attributes:
      run: runs one round and returns when it is done.
      update: the arrays after the last round, named as in the problem.
      images: images trained in one ``run`` (fewer than the case's if it runs fewer steps).
      units: work per trained image in forward passes; forward and backward are 3.
      note: settings that were chosen automatically.
      expected: what ``update`` must equal, for a competitor that runs fewer steps than the others.
    """

    run: Callable[[], None]
    update: Callable[[], Mapping[str, np.ndarray]]
    images: int
    units: float = 3.0
    note: str = ""
    expected: Callable[[], Mapping[str, np.ndarray]] | None = None


def previous_weights(problem: Mapping[str, np.ndarray], client: int) -> dict[str, np.ndarray]:
    """A client's previous backbone, made from the global one so that it need not be stored."""
    shift = int(problem["client/number"][client]) + 1  # a process may hold only some clients
    return {
        name: np.float32(0.8) * w + np.float32(0.2) * np.roll(w, shift) if w.ndim > 1 else w
        for name, w in part(problem, "backbone/").items()
    }


def part(problem: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The arrays of a group, without the prefix."""
    return {k.removeprefix(prefix): v for k, v in problem.items() if k.startswith(prefix)}


def clients_of(problem: Mapping[str, Any], keep: slice) -> dict[str, Any]:
    """The same problem for some of the clients."""
    return {k: v[keep] if k.startswith("client/") else v for k, v in problem.items()}


def relative_difference(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray]
) -> float:
    """||a - b|| / ||b - start||, the largest over groups of arrays.

    The backbone is one group; its batch-norm statistics are another, because they change much
    more than weights and would hide them. Every personal array is a group.
    """
    if set(a) != set(b):
        raise ValueError(f"compared arrays differ in name: {sorted(set(a) ^ set(b))}")
    squares: dict[str, np.ndarray] = {}
    for name in a:
        group = name if name.startswith("client/") else name.split("/")[0]
        group += " statistics" * name.endswith(MOVING)
        pair = [
            np.sum(np.square(d, dtype=np.float64))
            for d in (a[name] - b[name], b[name] - start[name])
        ]
        squares[group] = squares.get(group, 0) + np.array(pair)
    return float(max(np.sqrt(d / m) if m else np.sqrt(d) for d, m in squares.values()))


def _patterns(rng, count: int, size: int) -> np.ndarray:
    """(count, size, size, 3): coarse random patterns, shared by the images of one class.

    Images of pure noise would not work: the gradients of many clients would cancel, and a single
    activation whose sign changes by rounding would be 1e-3 of their mean.
    """
    coarse = rng.standard_normal((count, 4, 4, 3)).astype(np.float32)
    places = np.arange(size) * 4 // size
    return coarse[:, places][:, :, places]


def federation(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Images and heads, of equal shapes for all clients; public images come first.

    Weights are not included.
    """
    rng = np.random.default_rng(seed)
    c, k, d = case.clients, case.identities, case.embedding

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    patterns = 40 * _patterns(rng, 2 * k, case.size) + 128
    local_labels = rng.integers(0, k, (c, case.images)).astype(np.int32)
    public_labels = rng.integers(0, k, case.public).astype(np.int32)
    images = np.empty((case.public + c * case.images, case.size, case.size, 3), np.uint8)
    for i, y in enumerate(np.concatenate([k + public_labels, local_labels.reshape(-1)])):
        noise = 30 * rng.standard_normal(images.shape[1:], np.float32)
        images[i] = np.clip(patterns[y] + noise, 0, 255)

    def rows():  # of length 1
        return (normal(1, k, d) + normal(c, k, d, scale=0.1)) * np.float32(d**-0.5)

    return {
        "images": images,
        "public_labels": public_labels,
        "client/number": np.arange(c),
        "client/image_rows": case.public
        + np.arange(c * case.images, dtype=np.int32).reshape(c, case.images),
        "client/image_labels": local_labels,
        "client/class_embeddings": rows(),
        "client/transform_weight": np.eye(d, dtype=np.float32) + normal(c, d, d, scale=0.02),
        "client/transform_bias": normal(c, d, scale=0.1),
        "client/binary_weight": rows(),
        "client/binary_bias": normal(c, k, scale=0.1),
        "public_embeddings": normal(k if case.public else 0, d, scale=d**-0.5),
    }


HEAD = ("class_embeddings", "transform_weight", "transform_bias", "binary_weight", "binary_bias")


def compared(problem: Mapping[str, np.ndarray], case: Case) -> dict[str, np.ndarray]:
    """The arrays of a FedFR problem that a round changes."""
    heads = HEAD if case.binary else HEAD[:1]
    names = [k for k in problem if k.startswith("backbone/")] + [f"client/{h}" for h in heads]
    return {k: problem[k] for k in names + (["public_embeddings"] if case.public else [])}


def workload_problem(workload: Workload, seed: int = 0) -> dict[str, np.ndarray]:
    """Images, labels and random weights (PyTorch's layout, maps flattened as H, W, C)."""
    rng = np.random.default_rng(seed)
    count = workload.steps * workload.batch

    def layer(*shape):
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    def zeros(n):
        return np.zeros(n, np.float32)

    s = (workload.clients, count, workload.size, workload.size, 3)
    labels = rng.integers(0, workload.classes, s[:2]).astype(np.int32)
    images = rng.standard_normal(s, np.float32)
    images += _patterns(rng, workload.classes, workload.size)[labels]
    problem = {"client/images": images, "client/labels": labels}
    if workload.name == "A":
        flat = 64 * (workload.size // 4) ** 2
        weights = {
            "conv1.weight": layer(32, 3, 3, 3),
            "conv1.bias": zeros(32),
            "conv2.weight": layer(64, 32, 3, 3),
            "conv2.bias": zeros(64),
            "fc1.weight": layer(512, flat),
            "fc1.bias": zeros(512),
            "fc2.weight": layer(workload.classes, 512),
            "fc2.bias": zeros(10),
        }
    else:
        weights, before = {}, 3
        for i, width in enumerate((16, 32, 64, 128), start=1):
            weights[f"conv{i}.weight"] = layer(width, before, 3, 3)
            weights[f"conv{i}.bias"] = zeros(width)
            weights[f"prelu{i}.weight"] = np.full(width, 0.25, np.float32)
            before = width
        weights["fc1.weight"] = layer(128, 128 * (workload.size // 16) ** 2)
        weights["fc1.bias"] = zeros(128)
        rows = rng.standard_normal((workload.classes, 128)) * 128**-0.5
        problem["client/classes"] = np.tile(rows.astype(np.float32), (workload.clients, 1, 1))
    return problem | {f"model/{k}": v for k, v in weights.items()}


def workload_compared(problem: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a workload that a round changes."""
    return {k: v for k, v in problem.items() if k.startswith("model/") or k == "client/classes"}


def workload_macs(workload: Workload) -> int:
    """Multiply-adds of convolutions and dense layers, forward, per image."""
    if workload.name == "A":
        s = workload.size
        return (
            s * s * 27 * 32
            + (s // 2) ** 2 * 288 * 64
            + 64 * (s // 4) ** 2 * 512
            + 512 * workload.classes
        )
    side, before, total = workload.size, 3, 0
    for width in (16, 32, 64, 128):
        side //= 2
        total, before = total + side * side * 9 * before * width, width
    return total + side * side * 128 * 128 + 128 * workload.classes
