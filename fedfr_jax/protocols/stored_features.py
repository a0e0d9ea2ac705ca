"""Features of many images in a file, computed block by block; an interrupted run goes on.

``features-KEY.f32`` holds (n, 2, d) float32, little-endian: of each image and of its mirror image.
``features-KEY.jsonl`` says in its first line what they belong to, and then has a line with a
checksum for each finished block. A block whose checksum does not fit is computed again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from fedfr_jax.atomic import write_text
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.face_model import FaceModel, image_and_mirror
from fedfr_jax.runtime.progress import track

BLOCK = 1024  # images decoded at a time, and lost at most by a kill
_FORMAT = 1
_TRIAL_IMAGES = 2
_SAME = 1e-5  # two models are the same if their trial features differ less, relative to the largest


@dataclasses.dataclass(frozen=True)
class ImageList:
    """Images of a protocol.

    Attributes:
      read: maps (n,) numbers to (n, S, S, 3) uint8 RGB images.
      count: how many there are.
      key: text that changes if the images, their order or their alignment do.
    """

    read: Callable[[np.ndarray], np.ndarray]
    count: int
    key: str


def data_key(*parts: Any) -> str:
    """A digest of texts, numbers and arrays."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            text = "\0".join(map(str, part)) if isinstance(part, (tuple, list)) else str(part)
            digest.update(text.encode("utf-8", "surrogateescape") + b"\1")
    return digest.hexdigest()


def stored_features(
    model: FaceModel,
    images: ImageList,
    folder: pathlib.Path,
    *,
    batch_size: int = 64,
    label: str = "features",
    block: int = BLOCK,
) -> np.ndarray:
    """Computes features, or takes those that are in the folder already.

    Features are those of the same model if it gives the same features for two made-up images, up to
    the error of float32 sums. A model on another kind of device may count as another one.

    Args:
      model: see :class:`~fedfr_jax.evaluation.face_model.FaceModel`.
      images: what to embed.
      folder: where the files are; it exists.
      batch_size: images per call of the model.
      label: what the progress bar calls them.
      block: images per checksum; from another run it may differ, and then nothing is kept.

    Returns:
      (n, 2, d) float32, memory-mapped for reading; not normalized.

    Raises:
      InputError: an image cannot be read, or a feature is not finite.
    """
    trial = _trial(model, batch_size)
    head = {
        "format": _FORMAT,
        "data": images.key,
        "count": images.count,
        "embedding": model.embedding,
        "block": block,
    }
    journal = _find(folder, head, trial)
    if journal is None:
        name = data_key(json.dumps(head), trial)[:16]
        journal = folder / f"features-{name}.jsonl"
        write_text(journal, json.dumps({**head, "trial": trial.ravel().tolist()}) + "\n")
    path, shape = journal.with_suffix(".f32"), (images.count, 2, model.embedding)
    _fill(model, images, path, journal, shape, batch_size, label, block)
    return np.memmap(path, "<f4", "r", shape=shape)


def _trial(model: FaceModel, batch_size: int) -> np.ndarray:
    size = model.image_size
    made_up = np.random.default_rng(0).integers(0, 256, (_TRIAL_IMAGES, size, size, 3), np.uint8)
    return image_and_mirror(model, made_up, batch_size)


def _find(folder: pathlib.Path, head: Mapping[str, Any], trial: np.ndarray) -> pathlib.Path | None:
    """The journal of the same images and model, if there is one."""
    for path in sorted(folder.glob("features-*.jsonl")):
        found, _ = _read_journal(path)
        theirs = found.pop("trial", None)
        try:
            other = np.array(theirs, np.float32).reshape(trial.shape)
        except (ValueError, TypeError):
            continue
        if found == head and np.abs(other - trial).max() <= _SAME * np.abs(trial).max():
            return path
    return None


def _read_journal(path: pathlib.Path) -> tuple[dict[str, Any], dict[int, int]]:
    """What the features belong to, and the checksum of each block; what is damaged is left out."""
    head: dict[str, Any] = {}
    sums: dict[int, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if not isinstance(entry, dict):
                continue
            if not number:
                head = entry
            elif isinstance(entry.get("block"), int) and isinstance(entry.get("crc32"), int):
                sums[entry["block"]] = entry["crc32"]
    return head, sums


def _fill(model, images, path, journal, shape, batch_size, label, block) -> None:
    """Computes the blocks that are missing or damaged."""
    size = int(np.prod(shape[1:])) * 4
    _, sums = _read_journal(journal)
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b") as file:
        if os.fstat(file.fileno()).st_size != size * images.count:
            file.truncate(size * images.count)
        spans = [(s, min(s + block, images.count)) for s in range(0, images.count, block)]
        todo = [
            (number, span)
            for number, span in enumerate(spans)
            if number not in sums or _checksum(file, span, size) != sums[number]
        ]
        if not todo:
            return
        done = images.count - sum(end - start for _, (start, end) in todo)
        with track(label, images.count, "image") as bar, journal.open("ab") as log:
            bar.update(done)
            for (number, (start, end)), read in _ahead(images.read, todo):
                features = image_and_mirror(model, read, batch_size).astype("<f4").tobytes()
                file.seek(start * size)
                file.write(features)
                file.flush()
                os.fsync(file.fileno())
                # A line cut off by a kill must not swallow this one.
                entry = json.dumps({"block": number, "crc32": zlib.crc32(features)})
                log.write(b"\n" + entry.encode() + b"\n")
                log.flush()
                os.fsync(log.fileno())
                bar.update(end - start, images=end - start)


def _checksum(file, span: tuple[int, int], size: int) -> int:
    file.seek(span[0] * size)
    return zlib.crc32(file.read((span[1] - span[0]) * size))


def _ahead(read, todo) -> Iterator[tuple[Any, np.ndarray]]:
    """Reads the next block while the present one is computed."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(read, np.arange(*todo[0][1]))]
        for place, entry in enumerate(todo):
            if place + 1 < len(todo):
                waiting.append(pool.submit(read, np.arange(*todo[place + 1][1])))
            yield entry, waiting.pop(0).result()


def listed_files(folder: pathlib.Path) -> dict[str, int]:
    """Name -> size in bytes of the files of a folder.

    Raises:
      InputError: there is no such folder.
    """
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from error
