"""Images per second: decoding, and features of a MobileFaceNet, against PyTorch on this machine.

    python -m benchmarks.throughput --root=LFW

``LFW`` is a folder with ``train.rec`` and ``train.idx``. Decoding: batches of images in random
order, here from the RecordIO source, there by a torch DataLoader whose workers read the same bytes
and decode them with Pillow. Features: arcface_torch's MobileFaceNet (``mbf``), 112 x 112 pixels,
random weights, float32, the same in both. Pixels and features are compared before times are taken.
Each case has a process of its own for its threads; the two sides take turns, and the medians of
their times are shown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

BATCH = 256
_DIFFERENCE = 1e-4  # of features, of the largest


def batches(count: int, images: int, seed: int = 0) -> list[np.ndarray]:
    """``count`` batches of image numbers in random order."""
    order = np.random.default_rng(seed).permutation(images)
    return np.split(np.resize(order, count * BATCH), count)


def seconds_of(work: Callable[[], Any]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternate(
    ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int
) -> tuple[float, float]:
    """Median seconds of both, taking turns after one warm call of each."""
    ours(), theirs()
    times = [(seconds_of(ours), seconds_of(theirs)) for _ in range(repeats)]
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times)


def decoding(root: str, count: int, repeats: int, workers: int) -> tuple[float, float]:
    """(ours, PyTorch) seconds to decode ``count`` batches."""
    from torch.utils.data import DataLoader  # noqa: PLC0415 - optional

    from fedfr_jax.config import settings_of  # noqa: PLC0415 - torch first, for its threads
    from fedfr_jax.data import open_source  # noqa: PLC0415

    data = {"source": "recordio", "root": root, "image_size": 112, "workers": workers}
    source = open_source(settings_of(data=data).data)
    todo = batches(count, len(source.labels))
    loader = DataLoader(
        _Encoded(source.fetch),
        batch_sampler=[[int(i) for i in batch] for batch in todo],
        num_workers=workers,
        multiprocessing_context="fork",
        persistent_workers=True,
    )

    def theirs() -> Iterator[Any]:
        return iter(loader)

    for mine, other in zip(todo, theirs(), strict=True):
        np.testing.assert_array_equal(source.read(mine), other.numpy())
    return alternate(
        lambda: [source.read(batch) for batch in todo], lambda: list(theirs()), repeats
    )


class _Encoded:
    """A torch data set of encoded images, decoded with Pillow."""

    def __init__(self, fetch: Callable[[int], bytes]):
        self.fetch = fetch

    def __getitem__(self, number: int) -> Any:
        import io  # noqa: PLC0415 - in the worker

        import torch  # noqa: PLC0415 - optional
        from PIL import Image  # noqa: PLC0415

        with Image.open(io.BytesIO(self.fetch(number))) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))


def features(count: int, repeats: int, threads: int) -> tuple[float, float]:
    """(ours, PyTorch) seconds for the features of ``count`` batches of 64 images."""
    import jax  # noqa: PLC0415 - its threads belong to this process
    import torch  # noqa: PLC0415 - optional

    from benchmarks import torch_networks  # noqa: PLC0415 - needs torch
    from fedfr_jax.export.model import of_weights  # noqa: PLC0415
    from fedfr_jax.export.network import Architecture  # noqa: PLC0415
    from fedfr_jax.models import from_torch  # noqa: PLC0415
    from fedfr_jax.models.mobilefacenet_arcface import NORMAL  # noqa: PLC0415
    from fedfr_jax.settings import ModelConfig  # noqa: PLC0415

    torch.set_num_threads(threads)
    model = ModelConfig(name="mobilefacenet_arcface", widths=(64, 128, 256, 512))
    net = torch_networks.draw(torch_networks.mobilefacenet(*NORMAL, model.widths, 512, 7))
    net = net.to(memory_format=torch.channels_last)
    architecture = Architecture.of(model, 112)
    arrays = {name: value.numpy() for name, value in net.state_dict().items()}
    ours = of_weights(architecture, from_torch(arrays, architecture.backbone("grouped")), {})
    images = np.random.default_rng(0).integers(0, 256, (64 * count, 112, 112, 3), np.uint8)

    def theirs() -> np.ndarray:
        found = []
        with torch.inference_mode():
            for start in range(0, len(images), 64):
                batch = torch.from_numpy(images[start : start + 64]).permute(0, 3, 1, 2)
                batch = (batch.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
                found.append(torch.nn.functional.normalize(net.forward(batch)).numpy())
        return np.concatenate(found)

    difference = np.abs(ours.embed(images, mirror=False) - theirs()).max()
    if difference > _DIFFERENCE:
        raise SystemExit(f"features differ by {difference:.1e}; nothing was measured")
    del jax
    return alternate(lambda: ours.embed(images, mirror=False), theirs, repeats)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="", help="folder of train.rec; without it, no decoding")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    cases = []
    if asked.root:
        seconds = decoding(asked.root, asked.batches, asked.repeats, asked.workers)
        cases.append(("decoding, 112 x 112 JPEG", asked.batches * BATCH, seconds))
    seconds = features(asked.batches, asked.repeats, asked.workers)
    cases.append(("features, MobileFaceNet, batch 64", asked.batches * 64, seconds))
    print("| | ours, images/s | PyTorch, images/s | ratio |\n|---|---:|---:|---:|")
    for name, images, (ours, theirs) in cases:
        print(f"| {name} | {images / ours:.0f} | {images / theirs:.0f} | {theirs / ours:.2f} |")


if __name__ == "__main__":
    main()
