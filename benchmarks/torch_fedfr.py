"""FedFR's local training in sequential PyTorch, as published, with the fastest settings.

Every step runs the frozen global and previous backbones in addition to the trained one (5 units
of work). Networks are plain functions of a dict of tensors, channels_last throughout.
"""

from __future__ import annotations

import contextlib
import time

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.problem import (
    DECAY,
    HEAD,
    MARGIN,
    MOMENTUM,
    MOVING,
    SCALE,
    Built,
    Case,
    part,
    previous_weights,
)

CONTRASTIVE, TEMPERATURE, BINARY, BALANCE, BINARY_SCALE = 5.0, 0.5, 10.0, 0.7, 30.0


def _prelu(x, slope):
    return F.prelu(x, slope.to(x.dtype))


def spherenet(p, x, train):
    """The names are those of FedFR's checkpoints."""
    del train
    for stage in range(1, 5):
        name = f"layer{stage}"
        x = F.conv2d(x, p[f"{name}.0.weight"], p[f"{name}.0.bias"], stride=2, padding=1)
        x = _prelu(x, p[f"{name}.1.weight"])
        unit = 2
        while f"{name}.{unit}.conv1.weight" in p:
            y = x
            for k in (1, 2):
                y = F.conv2d(y, p[f"{name}.{unit}.conv{k}.weight"], padding=1)
                y = _prelu(y, p[f"{name}.{unit}.prelu{k}.weight"])
            x, unit = x + y, unit + 1
    return F.linear(x.flatten(1), p["fc.weight"], p["fc.bias"])


def _conv_norm(p, x, name, train, stride=1, padding=0, linear=False):
    weight = p[f"{name}_conv2d_weight"]
    x = F.conv2d(
        x,
        weight,
        stride=stride,
        padding=padding,
        groups=1 if weight.shape[1] > 1 else weight.shape[0],
    )
    norm = f"{name}_batchnorm"
    x = F.batch_norm(
        x,
        p[f"{norm}_moving_mean"],
        p[f"{norm}_moving_var"],
        p[f"{norm}_gamma"],
        p[f"{norm}_beta"],
        training=train,
        momentum=0.1,
        eps=1e-3,
    )
    return x if linear else _prelu(x, p[f"{name}_relu_gamma"])


def _bottleneck(p, x, name, train, stride):
    x = _conv_norm(p, x, f"{name}_conv_sep", train)
    x = _conv_norm(p, x, f"{name}_conv_dw", train, stride, 1)
    return _conv_norm(p, x, f"{name}_conv_proj", train, linear=True)


def mobilefacenet(p, x, train):
    """The names are those of the MXNet original."""
    x = _conv_norm(p, x, "conv_1", train, 2, 1)
    x = _conv_norm(p, x, "conv_2_dw", train, 1, 1)
    for down, blocks, count in (
        ("dconv_23", "res_3", 4),
        ("dconv_34", "res_4", 6),
        ("dconv_45", "res_5", 2),
    ):
        x = _bottleneck(p, x, down, train, 2)
        for k in range(count):
            x = x + _bottleneck(p, x, f"{blocks}_block{k}", train, 1)
    x = _conv_norm(p, x, "conv_6sep", train)
    x = _conv_norm(p, x, "conv_6dw7_7", train, linear=True)
    x = F.linear(x.flatten(1), p["fc1_weight"], p["pre_fc1_bias"])
    return F.batch_norm(
        x,
        p["fc1_moving_mean"],
        p["fc1_moving_var"],
        None,
        p["fc1_beta"],
        training=train,
        momentum=0.1,
        eps=2e-5,
    )


NETWORKS = {"spherenet": spherenet, "mobilefacenet": mobilefacenet}


def cosface(f, classes, labels):
    cosine = F.normalize(f) @ F.normalize(classes).T
    return F.cross_entropy(SCALE * (cosine - MARGIN * F.one_hot(labels, len(classes))), labels)


def contrastive(f, g, p):
    difference = F.cosine_similarity(f, p) - F.cosine_similarity(f, g)
    return F.softplus(difference / TEMPERATURE).mean()


def binary(f, p, labels):
    h = F.linear(f, p["transform_weight"], p["transform_bias"])
    z = F.normalize(h) @ F.normalize(p["binary_weight"]).T
    q = 2 * ((z + 1).clamp(min=0) / 2) ** 3 - 1
    own = torch.arange(z.shape[1], device=z.device) == labels[:, None]
    logits = BINARY_SCALE * torch.where(own, q - MARGIN, q + MARGIN) + p["binary_bias"]
    terms = torch.where(own, BALANCE * F.softplus(-logits), (1 - BALANCE) * F.softplus(logits))
    return terms.sum(1).mean() / BINARY_SCALE


class Trainer:
    """One problem on one device, client after client."""

    def __init__(self, case: Case, problem, dtype: str, compiled: bool):
        self.case, self.problem = case, problem
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.half = dtype == "bfloat16"
        network = NETWORKS[case.model]
        self.network = torch.compile(network) if compiled else network
        self.images = torch.from_numpy(problem["images"]).to(self.device)
        self.start = self._tensors(part(problem, "backbone/"))
        self.frozen_global = self._frozen(self.start)
        self.previous = [
            self._frozen(self._tensors(previous_weights(problem, i)))
            for i in range(case.clients if case.contrastive else 0)
        ]
        self.labels, self.rows, self.flips = (
            torch.from_numpy(problem[f"client/batch_{k}"]).to(self.device, kind)
            for k, kind in (("labels", torch.long), ("rows", torch.long), ("flips", torch.bool))
        )

    def _tensors(self, arrays):
        """Copies on the device; convolution weights channels_last."""
        out = {}
        for name, array in arrays.items():
            tensor = torch.from_numpy(np.array(array)).to(self.device)
            out[name] = (
                tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
            )
        return out

    def _frozen(self, weights):
        """Frozen weights are cast once, not in every step (autocast keeps only trained ones)."""
        if not self.half:
            return weights
        return {k: v.bfloat16() if v.ndim > 1 else v for k, v in weights.items()}

    def _autocast(self):
        return (
            torch.autocast(self.device, torch.bfloat16) if self.half else contextlib.nullcontext()
        )

    def _batch(self, client, step):
        images = self.images[self.rows[client, step]]
        flips = self.flips[client, step][:, None, None, None]
        x = torch.where(flips, images.flip(2), images).permute(0, 3, 1, 2)
        return x.float().div_(127.5).sub_(1.0)  # a permuted NHWC tensor is channels_last

    def _loss(self, p, client, step):
        x, labels = self._batch(client, step), self.labels[client, step]
        with self._autocast():
            f = self.network(p, x, True).float()
            if self.case.contrastive:
                with torch.no_grad():
                    g, q = (
                        self.network(w, x, False).float()
                        for w in (self.frozen_global, self.previous[client])
                    )
        total = cosface(f, torch.cat([p["class_embeddings"], p["public_embeddings"]]), labels)
        if self.case.contrastive:
            total = total + CONTRASTIVE * contrastive(f, g, q)
        return total + BINARY * binary(f, p, labels) if self.case.binary else total

    def train(self, client: int, steps: int):
        """Trained tensors of one client."""
        head = {h: self.problem[f"client/{h}"][client] for h in self.heads()}
        p = {k: v.clone() for k, v in self.start.items()} | self._tensors(
            head | {"public_embeddings": self.problem["public_embeddings"]}
        )
        trained = [v.requires_grad_() for k, v in p.items() if not k.endswith(MOVING)]
        # fused=True is the fastest of SGD's forms on a GPU and on a CPU.
        optimizer = torch.optim.SGD(
            trained, lr=self.case.lr, momentum=MOMENTUM, weight_decay=DECAY, fused=True
        )
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = float(self.problem["rates"][step])
            optimizer.zero_grad(set_to_none=True)
            self._loss(p, client, step).backward()
            optimizer.step()
        return {k: v.detach() for k, v in p.items()}

    def heads(self):
        return HEAD if self.case.binary else HEAD[:1]

    def round(self):
        """(mean of what is sent, what each client keeps)."""
        total, kept = None, []
        for client in range(self.case.clients):
            p = self.train(client, self.case.steps)
            kept.append({h: p.pop(h) for h in self.heads()})
            if total is None:
                total = p
            else:
                torch._foreach_add_(list(total.values()), [p[k] for k in total])
        torch._foreach_div_(list(total.values()), self.case.clients)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return total, kept


def _named(case, average, kept):
    average = {k: v.cpu().numpy() for k, v in average.items()}
    public = {"public_embeddings": average.pop("public_embeddings")}
    return (
        {f"backbone/{k}": v for k, v in average.items()}
        | (public if case.public else {})
        | {f"client/{h}": np.stack([k[h].cpu().numpy() for k in kept]) for h in kept[0]}
    )


def fastest_threads(once) -> int:
    """1 or as many threads as there are cores, whichever does ``once`` faster."""
    seconds = {}
    for count in {1, torch.get_num_threads()}:
        torch.set_num_threads(count)
        once()
        started = time.perf_counter()
        once()
        once()
        seconds[count] = time.perf_counter() - started
    return min(seconds, key=seconds.get)


def _trainer(captured: bool) -> type[Trainer]:
    if not captured:
        return Trainer
    from benchmarks.torch_capture import CapturedTrainer  # noqa: PLC0415  (it extends Trainer)

    return CapturedTrainer


def build(
    case: Case,
    problem,
    *,
    dtype: str = "float32",
    threads: int = 0,
    compiled: bool = False,
    captured: bool = False,
    tf32: bool = True,
) -> Built:
    """Sequential PyTorch; ``threads`` 0 tries one and all and uses the faster.

    Args:
      dtype: float32, or bfloat16 by autocast.
      compiled: networks through ``torch.compile``.
      captured: steps as a CUDA graph.
      tf32: on a GPU, as JAX does by default.
    """
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    trainer = _trainer(captured)(case, problem, dtype, compiled)
    if trainer.device == "cpu":
        threads = threads or fastest_threads(lambda: trainer.train(0, min(2, case.steps)))
        torch.set_num_threads(threads)
    result = {}

    def run():
        result["all"] = trainer.round()

    return Built(
        run,
        lambda: _named(case, *result["all"]),
        case.trained_images,
        5.0 if case.contrastive else 3.0,
        "cuDNN benchmark" if trainer.device == "cuda" else f"{threads} thread(s)",
    )
