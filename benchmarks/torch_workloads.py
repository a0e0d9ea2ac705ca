"""Workloads A and B in sequential PyTorch, channels_last."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.problem import Built, Workload, part
from benchmarks.torch_fedfr import cosface, fastest_threads


def _flat(x):
    """Flattens as H, W, C: no copy of a channels_last map."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1)


def loss_a(p, x, labels):
    for layer in ("conv1", "conv2"):
        x = F.relu(F.conv2d(x, p[f"{layer}.weight"], p[f"{layer}.bias"], padding=1))
        x = F.max_pool2d(x, 2)
    x = F.relu(F.linear(_flat(x), p["fc1.weight"], p["fc1.bias"]))
    return F.cross_entropy(F.linear(x, p["fc2.weight"], p["fc2.bias"]), labels)


def loss_b(p, x, labels):
    for i in range(1, 5):
        x = F.conv2d(x, p[f"conv{i}.weight"], p[f"conv{i}.bias"], stride=2, padding=1)
        x = F.prelu(x, p[f"prelu{i}.weight"])
    return cosface(F.linear(_flat(x), p["fc1.weight"], p["fc1.bias"]), p["classes"], labels)


LOSSES = {"A": loss_a, "B": loss_b}


def _tensor(array):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensor = torch.from_numpy(np.array(array)).to(device)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _captured(workload: Workload, start, images, labels, rows, loss):
    """A client's training with fixed places for its tensors, ``client -> trained tensors``."""
    from benchmarks.torch_capture import gradient_step  # noqa: PLC0415

    def first(client):
        return start | ({} if rows is None else {"classes": _tensor(rows[client])})

    p = {k: v.clone().requires_grad_() for k, v in first(0).items()}
    x, y = images[0, : workload.batch].clone(), labels[0, : workload.batch].clone()
    step = gradient_step(list(p.values()), lambda: loss(p, x, y))

    def train(client):
        with torch.no_grad():
            for k, v in first(client).items():
                p[k].copy_(v)
        optimizer = torch.optim.SGD(
            list(p.values()),
            lr=workload.lr,
            momentum=workload.momentum,
            weight_decay=workload.decay,
            fused=True,
        )
        for s in range(0, workload.steps * workload.batch, workload.batch):
            x.copy_(images[client, s : s + workload.batch])
            y.copy_(labels[client, s : s + workload.batch])
            step()
            optimizer.step()
        return {k: v.detach().clone() for k, v in p.items()}

    return train


def build(workload: Workload, problem, *, threads: int = 0, captured: bool = False) -> Built:
    """Clients one after another; ``threads`` 0 tries one and all and uses the faster.

    Args:
      captured: steps as a CUDA graph.
    """
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    start = {k: _tensor(v) for k, v in part(problem, "model/").items()}
    images = _tensor(problem["client/images"]).permute(0, 1, 4, 2, 3)
    labels = _tensor(problem["client/labels"]).long()
    rows, loss = problem.get("client/classes"), LOSSES[workload.name]

    def train(client):
        p = {k: v.clone() for k, v in start.items()}
        if rows is not None:
            p["classes"] = _tensor(rows[client])
        optimizer = torch.optim.SGD(
            [v.requires_grad_() for v in p.values()],
            lr=workload.lr,
            momentum=workload.momentum,
            weight_decay=workload.decay,
            fused=True,
        )
        for s in range(0, workload.steps * workload.batch, workload.batch):
            optimizer.zero_grad(set_to_none=True)
            loss(
                p, images[client, s : s + workload.batch], labels[client, s : s + workload.batch]
            ).backward()
            optimizer.step()
        return {k: v.detach() for k, v in p.items()}

    if captured:
        train = _captured(workload, start, images, labels, rows, loss)

    result = {}

    def run():
        done = [train(i) for i in range(workload.clients)]
        result["kept"] = [p.pop("classes") for p in done if "classes" in p]
        result["model"] = {k: sum(p[k] for p in done) / len(done) for k in start}
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def update():
        found = {f"model/{k}": v.cpu().numpy() for k, v in result["model"].items()}
        if result["kept"]:
            found["client/classes"] = np.stack([v.cpu().numpy() for v in result["kept"]])
        return found

    threads = threads or fastest_threads(lambda: train(0))
    torch.set_num_threads(threads)
    return Built(run, update, workload.trained_images, note=f"{threads} thread(s)")
