"""What a preparation is to write, and whether a folder holds the beginning of the same one."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from fedfr_jax.errors import InputError
from fedfr_jax.runtime.json_file import read_json, write_json

if TYPE_CHECKING:
    from fedfr_jax.data.types import ImageSource

PROGRESS = "progress"  # folder of what is removed at the end
CONTAINERS = ("array_record", "recordio")
PIXELS = ("original", "resized")
UNREADABLE = ("leave_out", "refuse")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A preparation.

    Attributes:
      source: where the images come from.
      out: the folder that receives them.
      container: one of :data:`CONTAINERS`.
      pixels: "original": files are copied as they are; "resized": all images become PNG of the
        source's size, which are exactly what the source reads.
      unreadable: "leave_out" of the result, or "refuse" at the first one.
      shard_images: images per shard, those that are left out included.
      workers: threads; 0 = one per core.
      max_megapixels: larger images count as unreadable.
    """

    source: ImageSource
    out: pathlib.Path
    container: str = "array_record"
    pixels: str = "original"
    unreadable: str = "leave_out"
    shard_images: int = 8192
    workers: int = 0
    max_megapixels: float = 50.0

    def __post_init__(self):
        for name, choices in (
            ("container", CONTAINERS),
            ("pixels", PIXELS),
            ("unreadable", UNREADABLE),
        ):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"--{'format' if name == 'container' else name}: {getattr(self, name)!r}; "
                    f"choose one of: {', '.join(choices)}"
                )
        if self.shard_images < 1:
            raise InputError(f"--shard_images: {self.shard_images}; give at least 1")

    @functools.cached_property
    def order(self) -> np.ndarray:
        """(N,) int64 numbers of the source's images, person after person."""
        return np.argsort(self.source.labels, kind="stable")

    @property
    def shards(self) -> int:
        return -(-len(self.source.labels) // self.shard_images)

    def images_of(self, shard: int) -> np.ndarray:
        """Numbers of the source's images that a shard is to hold, in their order."""
        return self.order[shard * self.shard_images : (shard + 1) * self.shard_images]

    def shard_name(self, shard: int) -> str:
        return f"images-{shard:05d}-of-{self.shards:05d}.array_record"

    @property
    def shard_folder(self) -> pathlib.Path:
        """RecordIO is one file: its shards are put together at the end, and removed."""
        return self.out / PROGRESS if self.container == "recordio" else self.out

    @property
    def image_size(self) -> int | None:
        """What images are resized to; None: nothing."""
        return self.source.image_size if self.pixels == "resized" else None

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a preparation to be continued; ready for JSON."""
        found = hashlib.sha256(np.ascontiguousarray(self.source.labels, np.int64).tobytes())
        for name in self.source.identity_names:
            found.update(name.encode("utf-8", "backslashreplace") + b"\0")
        if self.source.name_of is not None:
            for image in range(len(self.source.labels)):
                found.update(self.source.name_of(image).encode("utf-8", "backslashreplace") + b"\0")
        made = self.source.fetch is None  # such images are drawn in the source's size
        return {
            "source": self.source.name,
            "images": len(self.source.labels),
            "content": found.hexdigest(),
            "container": self.container,
            "pixels": self.pixels,
            "image_size": self.source.image_size if made else self.image_size,
            "unreadable": self.unreadable,
            "shard_images": self.shard_images,
            "max_megapixels": self.max_megapixels,
        }


def begin(plan: Plan) -> None:
    """Makes the folder of a preparation, or finds the beginning of the same one in it.

    Raises:
      InputError: the folder holds something else.
    """
    path = plan.out / PROGRESS / "plan.json"
    if path.exists():
        found = read_json(path)
        differing = [k for k in plan.identity if found.get(k) != plan.identity[k]]
        if differing:
            raise refusal(plan.out, differing[0], found.get(differing[0]), plan.identity)
        return
    if plan.out.exists():
        if not plan.out.is_dir():
            raise InputError(f"--out: {plan.out} is no folder")
        strange = [p.name for p in plan.out.iterdir() if p.name not in ("lock", PROGRESS)]
        if strange:
            raise InputError(
                f"--out: {plan.out} holds {strange[0]!r}, which no preparation left there; choose "
                "an empty or new folder"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, plan.identity)


def refusal(out: pathlib.Path, name: str, found: Any, wanted: dict[str, Any]) -> InputError:
    """The error for a folder that holds another preparation."""
    return InputError(
        f"--out: {out} holds the preparation of other data or with other settings ({name}: "
        f"{found!r} there, {wanted[name]!r} now); choose another folder, or remove it"
    )
