"""The end of a preparation: labels, names, split, RecordIO, and the manifest as the last file."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np

import fedfr_jax
from fedfr_jax.atomic import write_file, write_text
from fedfr_jax.config import Config
from fedfr_jax.data.prepared import (
    ARRAYS,
    FORMAT,
    IDENTITIES,
    MANIFEST,
    RECORDIO,
    SPLIT,
    VERSION,
    digest,
)
from fedfr_jax.data.recordio_format import RecordWriter
from fedfr_jax.data.split import make_split
from fedfr_jax.data.split_file import describe_split, save_split
from fedfr_jax.data.types import FederatedSplit
from fedfr_jax.errors import InputError
from fedfr_jax.prepare.plan import PROGRESS, Plan
from fedfr_jax.runtime.json_file import write_json
from fedfr_jax.runtime.progress import track

LEFT_OUT = "left_out.txt"
_LARGEST_LABEL = 1 << 24  # of RecordIO


@dataclasses.dataclass(frozen=True)
class Kept:
    """The images that were written, in order.

    Attributes:
      origins: (n,) int64 numbers in the source.
      labels: (n,) int32, ascending, without gaps.
      names: one per identity that has an image left.
      sizes: (n, 2) int32 width and height.
      left_out: (number in the source, reason) of the others.
    """

    origins: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    sizes: np.ndarray
    left_out: list[tuple[int, str]]


def kept_images(plan: Plan, notes: list[dict[str, Any]]) -> Kept:
    """Puts together what the notes of all shards say.

    Raises:
      InputError: no image could be read.
    """
    left_out = [(int(number), str(why)) for note in notes for number, why in note["left_out"]]
    dropped = np.array([number for number, _ in left_out], np.int64)
    origins = plan.order[~np.isin(plan.order, dropped)]
    if not len(origins):
        raise InputError(
            f"{plan.source.name}: none of {len(plan.order)} images can be read; the first: "
            f"{plan.source.called(left_out[0][0])} ({left_out[0][1]})"
        )
    people, labels = np.unique(np.asarray(plan.source.labels)[origins], return_inverse=True)
    sizes = [np.array(note["sizes"], np.int32).reshape(-1, 2) for note in notes]
    return Kept(
        origins=origins,
        labels=labels.astype(np.int32),
        names=tuple(plan.source.identity_names[i] for i in people.tolist()),
        sizes=np.concatenate(sizes),
        left_out=left_out,
    )


def split_of_labels(labels: np.ndarray, config: Config) -> FederatedSplit:
    """The split that a configuration makes of (N,) labels, as training makes it."""
    return make_split(
        labels,
        config.fed.num_clients,
        config.data.split,
        config.data.seed,
        min_client_images=config.fed.least_images,
    )


def finish(
    plan: Plan, notes: list[dict[str, Any]], kept: Kept, config: Config | None
) -> dict[str, Any]:
    """Writes everything but the shards, and returns the manifest.

    Raises:
      InputError: the images cannot be split as the configuration asks.
    """
    split = None if config is None else split_of_labels(kept.labels, config)
    _write_index(plan, kept)
    names = [*(f"{name}.npy" for name in ARRAYS), IDENTITIES]
    if split is not None:
        save_split(plan.out / SPLIT, split)
        names.append(SPLIT)
    if kept.left_out:
        lines = (f"{plan.source.called(n)}\t{why}\n" for n, why in kept.left_out)
        write_text(plan.out / LEFT_OUT, "".join(map(_utf8, lines)))
    shards = [{**_entry(note), "images": note["images"]} for note in notes]
    if plan.container == "recordio":
        _write_recordio(plan, notes, kept)
        names += RECORDIO
        shards = []
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "container": plan.container,
        "images": len(kept.labels),
        "identities": len(kept.names),
        "left_out": len(kept.left_out),
        "plan": plan.identity,
        "split": None if split is None or config is None else split_note(plan, split, config),
        "fedfr_jax": fedfr_jax.__version__,
        "shards": shards,
        "files": [described(plan.out / name) for name in names],
    }
    write_json(plan.out / MANIFEST, manifest)
    shutil.rmtree(plan.out / PROGRESS)
    return manifest


def split_note(plan: Plan, split: FederatedSplit, config: Config) -> dict[str, Any]:
    """What the manifest says of a split: enough to make it again."""
    return {
        "seed": config.data.seed,
        "num_clients": config.fed.num_clients,
        "least_client_images": config.fed.least_images,
        "settings": dataclasses.asdict(config.data.split),
        "counts": describe_split(split, plan.source.name),
    }


def _entry(note: dict[str, Any]) -> dict[str, Any]:
    return {"name": note["file"], "bytes": note["bytes"], "sha256": note["sha256"]}


def described(path: pathlib.Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest(path)}


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _write_index(plan: Plan, kept: Kept) -> None:
    ends, names = np.empty(len(kept.origins), np.int64), bytearray()
    for i, number in enumerate(kept.origins.tolist()):
        names += _utf8(plan.source.called(number)).encode()
        ends[i] = len(names)
    arrays = {
        "labels": kept.labels,
        "sizes": kept.sizes,
        "origins": kept.origins,
        "names": np.frombuffer(names, np.uint8),
        "name_ends": ends,
    }
    for name, array in arrays.items():
        write_file(plan.out / f"{name}.npy", _saver(array.astype(ARRAYS[name], copy=False)))
    write_json(plan.out / IDENTITIES, {"names": list(map(_utf8, kept.names))})


def _saver(array: np.ndarray) -> Callable[[Any], None]:
    return lambda file: np.save(file, array)


def record_labels(names: tuple[str, ...]) -> np.ndarray:
    """(K,) int64 labels in RecordIO: the names themselves if they are ascending numbers."""
    numbers = np.array(
        [int(n) if n.isascii() and n.isdecimal() and len(n) < 9 else -1 for n in names], np.int64
    )
    same = all(str(number) == name for number, name in zip(numbers.tolist(), names, strict=True))
    if same and (np.diff(numbers) > 0).all() and numbers[-1] <= _LARGEST_LABEL:
        return numbers
    return np.arange(len(names))


def _write_recordio(plan: Plan, notes: list[dict[str, Any]], kept: Kept) -> None:
    from array_record.python import array_record_module  # noqa: PLC0415 - as in shards.py

    labels = record_labels(kept.names)[kept.labels].tolist()
    sides = np.unique(kept.sizes)
    # ``property`` can name one size: that of all images, or what they will be resized to.
    side = int(sides[0]) if len(sides) == 1 else plan.source.image_size
    with (
        track("writing RecordIO", len(labels), "image") as bar,
        RecordWriter(plan.out, side) as writer,
    ):
        done = 0
        for note in notes:
            path = str(plan.shard_folder / note["file"])
            reader = array_record_module.ArrayRecordReader(path)
            for i in range(note["images"]):
                writer.add(reader.read([i])[0], labels[done])
                done += 1
                bar.update(1, images=1)
            reader.close()
