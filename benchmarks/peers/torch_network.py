"""The network in PyTorch, as its peers write it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.peers.child import Job
from benchmarks.peers.work import Work, user_images, weights_of


class Network(nn.Module):
    """Two valid convolutions, maxima, dropout, a hidden layer, dropout, classes."""

    def __init__(self, work: Work, rates: tuple[float, float]):
        super().__init__()
        first, second = work.filters
        self.conv1 = nn.Conv2d(work.channels, first, 3)
        self.conv2 = nn.Conv2d(first, second, 3)
        self.fc1 = nn.Linear(work.flat, work.hidden)
        self.fc2 = nn.Linear(work.hidden, work.classes)
        self.rates = rates

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = F.dropout(F.max_pool2d(x, 2), self.rates[0]).flatten(1)
        x = F.dropout(F.relu(self.fc1(x)), self.rates[1])
        return self.fc2(x)

    def loss(self, x, y, is_eval=False):
        """Mean cross-entropy; pfl-research calls it by this name."""
        return F.cross_entropy(self(x), y)

    def metrics(self, x, y, is_eval=False):
        """pfl-research demands it; nothing is evaluated here."""
        return {}


def network(job: Job) -> Network:
    """With the initial weights of the problem, channels last as far as PyTorch keeps that."""
    found = Network(job.work, job.rates)
    found.load_state_dict({k: torch.from_numpy(v) for k, v in weights_of(job.problem).items()})
    return found.to(memory_format=torch.channels_last)


def tensors(job: Job, user: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A user's images (M, C, H, W), channels last in memory, and labels."""
    images, labels = user_images(job.problem, user)
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels).long()


def train(job: Job, model: Network, user: int) -> int:
    """A user's local training with plain SGD; gives its number of images."""
    images, labels = tensors(job, user)
    optimizer = torch.optim.SGD(model.parameters(), lr=job.work.lr, fused=True)
    for _ in range(job.work.epochs):
        for at in range(0, len(labels), job.work.batch):
            part = slice(at, at + job.work.batch)
            optimizer.zero_grad(set_to_none=True)
            model.loss(images[part], labels[part]).backward()
            optimizer.step()
    return len(labels)


def set_threads(job: Job, once: Callable[[], None]) -> int:
    """Uses ``options["threads"]``, or the faster of one and all for ``once``."""
    threads = job.options.get("threads", 0)
    if not threads:
        seconds = {}
        for count in (1, torch.get_num_threads()):
            torch.set_num_threads(count)
            once()
            started = time.perf_counter()
            for _ in range(3):
                once()
            seconds[count] = time.perf_counter() - started
        threads = min(seconds, key=seconds.__getitem__)
    torch.set_num_threads(threads)
    return threads


class Server:
    """The server's model and optimizer, which steps along the average of its clients' changes."""

    def __init__(self, job: Job, model: nn.Module):
        self.model = model
        work = job.work
        if work.server == "adam":
            # PyTorch's epsilon is added in the same place as optax's and FedJAX's.
            self.optimizer = torch.optim.Adam(
                model.parameters(), lr=work.server_lr, betas=(0.9, 0.999), eps=1e-4
            )
        else:
            self.optimizer = torch.optim.SGD(model.parameters(), lr=work.server_lr)

    @torch.no_grad()
    def step(self, average) -> None:
        for parameter, mean in zip(self.model.parameters(), average, strict=True):
            parameter.grad = parameter - mean
        self.optimizer.step()


def final_weights(model: nn.Module) -> dict:
    return {k: v.detach().contiguous().numpy() for k, v in model.state_dict().items()}
