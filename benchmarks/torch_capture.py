"""PyTorch's local training with its steps captured as a CUDA graph: no launch per kernel.

Weights, gradients and inputs of a step have fixed places in memory; each client's are copied there.
The optimizer's fused step stays outside. On a CPU the same code runs without a graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.problem import DECAY, MOMENTUM, MOVING
from benchmarks.torch_fedfr import Trainer


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """``step``, whose tensors keep their places, as a graph to replay; itself on a CPU."""
    if not torch.cuda.is_available():
        return step
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # cuDNN chooses its algorithms before the capture
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def gradient_step(trained: list[torch.Tensor], loss: Callable[[], torch.Tensor]):
    """A captured step that writes the gradients of ``trained`` in place."""
    for tensor in trained:
        tensor.grad = torch.zeros_like(tensor)
    gradients = [tensor.grad for tensor in trained]

    def step():
        torch._foreach_zero_(gradients)
        loss().backward()

    return captured(step)


class CapturedTrainer(Trainer):
    """:class:`Trainer` with captured steps."""

    _step: Callable[[], None] | None = None

    def _prepare(self) -> None:
        """Gives everything in a step its place."""
        self._inputs = (self.labels, self.rows, self.flips)
        self._previous = self.previous
        self.labels, self.rows, self.flips = (x[:1, :1].clone() for x in self._inputs)
        self.previous = [{k: v.clone() for k, v in p.items()} for p in self._previous[:1]]
        self._p = {k: v.clone() for k, v in (self.start | self._heads(0)).items()}
        self._trained = [v.requires_grad_() for k, v in self._p.items() if not k.endswith(MOVING)]
        self._step = gradient_step(self._trained, lambda: self._loss(self._p, 0, 0))

    def _heads(self, client: int) -> dict[str, torch.Tensor]:
        own = {h: self.problem[f"client/{h}"][client] for h in self.heads()}
        return self._tensors(own | {"public_embeddings": self.problem["public_embeddings"]})

    def train(self, client: int, steps: int):
        if self._step is None:
            self._prepare()
        with torch.no_grad():
            for k, v in (self.start | self._heads(client)).items():
                self._p[k].copy_(v)
            for place, given in zip(self.previous, self._previous[client:], strict=False):
                for k, v in given.items():
                    place[k].copy_(v)
        optimizer = torch.optim.SGD(
            self._trained, lr=self.case.lr, momentum=MOMENTUM, weight_decay=DECAY, fused=True
        )
        for step in range(steps):
            places = (self.labels, self.rows, self.flips)
            for place, given in zip(places, self._inputs, strict=True):
                place[0, 0].copy_(given[client, step])
            optimizer.param_groups[0]["lr"] = float(self.problem["rates"][step])
            self._step()
            optimizer.step()
        return {k: v.detach().clone() for k, v in self._p.items()}
