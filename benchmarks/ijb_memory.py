"""Time and memory of IJB-C's protocol at its full size, on a made-up release.

    python -m benchmarks.ijb_memory --folder /tmp/ijb

writes a release with IJB-C's numbers (469,375 images, 23,124 templates, 15.7 million pairs, two
galleries), whose images are hard links to a few small files. The same command again runs the
protocol on it, with a model of random features, and prints the peak of the resident memory. Needs
5 GB on the disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from fedfr_jax.data.alignment import TEMPLATE
from fedfr_jax.protocols import model_arguments
from fedfr_jax.protocols.__main__ import command
from fedfr_jax.runtime.process_memory import peak_bytes

IMAGES, TEMPLATES, SUBJECTS, PAIRS, GENUINE = 469_375, 23_124, 3_531, 15_658_489, 19_557
_LINKS = 1000  # per file: file systems have a limit
_SIDE = 64


@dataclasses.dataclass
class RandomModel:
    """Random features without any computation on pixels."""

    image_size: int = 112
    embedding: int = 512
    card: dict = dataclasses.field(default_factory=dict)
    asked: int = 0

    @property
    def features(self) -> Callable[[np.ndarray], np.ndarray]:
        return self._features

    def _features(self, images: np.ndarray) -> np.ndarray:
        self.asked += 1
        rng = np.random.default_rng(self.asked)
        return rng.standard_normal((len(images), self.embedding), np.float32)

    def embed(self, images: np.ndarray, **unused: object) -> np.ndarray:
        return self._features(images)


def write_release(folder: pathlib.Path, images: int = IMAGES, pairs: int = PAIRS) -> None:
    """A release of IJB-C's form and size; all people look alike."""
    rng = np.random.default_rng(0)
    crops, meta = folder / "loose_crop", folder / "meta"
    crops.mkdir(parents=True)
    meta.mkdir()
    for start in range(0, images, _LINKS):
        first = crops / f"{start + 1}.jpg"
        noise = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).resize((_SIDE, _SIDE)).save(first, quality=80)
        for number in range(start + 2, min(start + _LINKS, images) + 1):
            os.link(first, crops / f"{number}.jpg")
    templates = np.concatenate(
        [np.arange(TEMPLATES), rng.integers(0, TEMPLATES, images - TEMPLATES)]
    )
    media = rng.integers(0, 140_000, images)
    points = " ".join(f"{v * _SIDE / 112:.3f}" for v in TEMPLATE.ravel())
    with (meta / "ijbc_face_tid_mid.txt").open("w") as file:
        rows = enumerate(zip(templates, media, strict=True), 1)
        file.writelines(f"{k}.jpg {t} {m}\n" for k, (t, m) in rows)
    with (meta / "ijbc_name_5pts_score.txt").open("w") as file:
        file.writelines(f"{k + 1}.jpg {points} 0.9{k % 10}\n" for k in range(images))
    left, right = rng.integers(0, TEMPLATES, (2, pairs))
    with (meta / "ijbc_template_pair_label.txt").open("w") as file:
        for start in range(0, pairs, 100_000):
            part = slice(start, start + 100_000)
            same = np.arange(start, min(start + 100_000, pairs)) < GENUINE
            file.writelines(
                f"{a} {b} {int(c)}\n" for a, b, c in zip(left[part], right[part], same, strict=True)
            )
    half = 1772
    lists = {
        "gallery_G1": np.arange(half),
        "gallery_G2": np.arange(half, SUBJECTS),
        "probe_mixed": np.arange(SUBJECTS, TEMPLATES),
    }
    for name, chosen in lists.items():
        with (meta / f"ijbc_1N_{name}.csv").open("w") as file:
            file.write("TEMPLATE_ID,SUBJECT_ID\n")
            file.writelines(f"{t},{t % SUBJECTS}\n" for t in chosen)


def main() -> None:
    """Writes the release if it is not there, and runs the protocol."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, type=pathlib.Path)
    given = parser.parse_args()
    if not (given.folder / "IJBC").exists():
        write_release(given.folder / "IJBC")
        print("the release is written; the same command again measures", flush=True)
        return
    model_arguments.open_model = lambda given: RandomModel()  # type: ignore[assignment]
    start = time.monotonic()
    command(
        [
            "ijb",
            f"--folder={given.folder / 'IJBC'}",
            "--model=random",
            f"--workdir={given.folder / 'out'}",
        ]
    )
    peak = peak_bytes() / 2**30
    print(json.dumps({"seconds": round(time.monotonic() - start, 1), "peak GiB": round(peak, 2)}))


if __name__ == "__main__":
    main()
