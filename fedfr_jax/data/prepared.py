"""Data sets that ``python -m fedfr_jax.prepare`` wrote: array_record shards and a manifest.

A prepared folder holds:

* ``manifest.json``: what it is, where it comes from, and size and SHA-256 of every file;
* ``images-00000-of-00012.array_record``, ...: one image file per record, person after person;
* ``labels.npy`` (N,) int32, ``sizes.npy`` (N, 2) int32 (width and height as stored),
  ``origins.npy`` (N,) int64 (number in the original source);
* ``names.npy`` (bytes,) uint8 and ``name_ends.npy`` (N,) int64: what each image was called;
* ``identities.json``: ``{"names": [...]}``;
* ``split.npz``, where settings for it were given: who holds what.

Files of array_record are read at random, see https://github.com/google/array_record.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from fedfr_jax.data.arrays import load_array
from fedfr_jax.data.decode import MAX_MEGAPIXELS, num_workers, stored_source
from fedfr_jax.data.types import ImageSource
from fedfr_jax.errors import DamagedError, InputError
from fedfr_jax.settings import DataConfig

MANIFEST, IDENTITIES, SPLIT = "manifest.json", "identities.json", "split.npz"
ARRAYS = {  # name of the file -> type of its numbers
    "labels": np.int32,
    "sizes": np.int32,
    "origins": np.int64,
    "names": np.uint8,
    "name_ends": np.int64,
}
RECORDIO = ("train.rec", "train.idx", "property")  # in place of shards, for that format
FORMAT, VERSION = "fedfr_jax prepared images", 1
WRITER_OPTIONS = "group_size:1,uncompressed"  # images are compressed already
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for random access
_SHARD = re.compile(r"images-\d{5,7}-of-\d{5,7}\.array_record")
_OPEN_SHARDS = 128  # most files that are open at a time
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ADVICE = "copy the folder again, or prepare it anew"


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a prepared folder: its name, its bytes, its SHA-256, and how many images it has."""

    name: str
    bytes: int
    sha256: str
    images: int = 0


def digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: pathlib.Path, file: File) -> None:
    """Raises DamagedError, which names the file, unless it is as it was written."""
    path = folder / file.name
    try:
        size = path.stat().st_size
        if size != file.bytes:
            raise DamagedError(
                f"{path}: has {size} bytes instead of {file.bytes}; it is damaged: {_ADVICE}"
            )
        if digest(path) != file.sha256:
            raise DamagedError(f"{path}: its checksum is wrong; it is damaged: {_ADVICE}")
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read ({error.strerror}); {_ADVICE}") from error


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a prepared folder, as it is written.

    Raises:
      InputError: there is none, or it is no manifest of this format.
    """
    path = pathlib.Path(folder) / MANIFEST
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); data.source=prepared needs the folder "
            "that 'python -m fedfr_jax.prepare --out=...' wrote to its end"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: is no valid JSON ({error}); {_ADVICE}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise InputError(f"{path}: is no manifest of a prepared data set")
    if value.get("version") != VERSION:
        raise InputError(
            f"{path}: has the version {value.get('version')!r}, but this program reads {VERSION}; "
            "prepare the data anew"
        )
    return value


def files_of(folder: str | os.PathLike, manifest: dict[str, Any]) -> tuple[list[File], list[File]]:
    """(the shards, the other files) that a manifest lists.

    Raises:
      DamagedError: an entry is not as this program writes it.
    """
    path = pathlib.Path(folder) / MANIFEST
    shards, others = _files(manifest.get("shards"), path), _files(manifest.get("files"), path)
    known = {f"{name}.npy" for name in ARRAYS} | {IDENTITIES, SPLIT, *RECORDIO}
    # So that no file outside the folder is read.
    strange = [file.name for file in shards if not _SHARD.fullmatch(file.name)]
    strange += [file.name for file in others if file.name not in known]
    if strange:
        raise DamagedError(f"{path}: lists an unknown file {strange[0]!r}; {_ADVICE}")
    return shards, others


def _files(entries: Any, path: pathlib.Path) -> list[File]:
    try:
        found = [File(**entry) for entry in entries]
        for file in found:
            numbers = all(type(n) is int and 0 <= n < 2**62 for n in (file.bytes, file.images))
            if not (isinstance(file.name, str) and numbers and _DIGEST.fullmatch(file.sha256)):
                raise ValueError(str(file)[:200])
    except (TypeError, ValueError) as error:
        raise DamagedError(f"{path}: its list of files is damaged ({error}); {_ADVICE}") from error
    return found


def open_source(config: DataConfig) -> ImageSource:
    """Opens the prepared folder ``data.root``; see :func:`open_prepared`."""
    if not config.root:
        raise InputError("data.root: empty; name the folder that fedfr_jax.prepare wrote")
    return open_prepared(
        config.root, config.image_size, workers=config.workers, max_megapixels=config.max_megapixels
    )


def open_prepared(
    root: str | os.PathLike,
    image_size: int,
    *,
    workers: int = 0,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> ImageSource:
    """Opens a data set that ``python -m fedfr_jax.prepare`` wrote, of either format.

    The checksums of labels and names are verified here, that of a shard when it is first read.

    Args:
      root: the folder of ``manifest.json``.
      image_size: side S of the images in pixels; others are resized.
      workers: decoding threads; 0 = one per core.
      max_megapixels: larger images are refused before they are decoded.

    Returns:
      The source; ``read`` and ``check`` raise DamagedError with the name of a damaged shard.

    Raises:
      InputError: the folder is not complete, or is damaged.
    """
    folder = pathlib.Path(root)
    manifest = read_manifest(folder)
    if manifest.get("container") == "recordio":
        raise InputError(
            f"{folder}: was prepared as RecordIO; read it with data.source=recordio, or prepare it "
            "with --format=array_record"
        )
    shards, others = files_of(folder, manifest)
    arrays, names = _read_index(folder, others)
    labels, ends = arrays["labels"].astype(np.int64), arrays["name_ends"]
    _check_index(folder, arrays, names, sum(shard.images for shard in shards))
    archive = _Shards(folder, shards)

    def name_of(image: int) -> str:
        start = int(ends[image - 1]) if image else 0
        text = bytes(arrays["names"][start : int(ends[image])]).decode("utf-8", "replace")
        return f"{archive.where(image)} ({text})"

    source = stored_source(
        f"prepared {folder}",
        labels,
        names,
        image_size,
        fetch=archive.read,
        name_of=name_of,
        workers=workers,
        max_megapixels=max_megapixels,
    )
    # All images were decoded when they were prepared: checksums say whether they are still so.
    return dataclasses.replace(
        source, check=lambda images: archive.verify(images, num_workers(workers))
    )


def _read_index(
    folder: pathlib.Path, others: list[File]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The arrays and the names of the identities, their checksums verified."""
    missing = [
        n
        for n in (*(f"{a}.npy" for a in ARRAYS), IDENTITIES)
        if n not in {file.name for file in others}
    ]
    if missing:
        raise DamagedError(f"{folder / MANIFEST}: lists no {missing[0]}; {_ADVICE}")
    for file in others:
        verify(folder, file)
    arrays = {}
    for name, kind in ARRAYS.items():
        array = load_array(folder / f"{name}.npy", in_memory=name == "labels")
        if array.dtype != kind or array.ndim != (2 if name == "sizes" else 1):
            raise DamagedError(f"{folder / name}.npy: holds {array.dtype} {array.shape}; {_ADVICE}")
        arrays[name] = array
    try:
        names = json.loads((folder / IDENTITIES).read_text(encoding="utf-8"))["names"]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("a name is no text")
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DamagedError(f"{folder / IDENTITIES}: is damaged ({error}); {_ADVICE}") from error
    return arrays, tuple(names)


def _check_index(
    folder: pathlib.Path, arrays: dict[str, np.ndarray], names: tuple[str, ...], images: int
) -> None:
    labels, ends = arrays["labels"], arrays["name_ends"]
    fits = all(len(arrays[name]) == images for name in ARRAYS if name != "names") and images
    if fits:
        steps = np.diff(labels)
        fits = (
            labels[0] == 0 and labels[-1] == len(names) - 1 and ((steps == 0) | (steps == 1)).all()
        )
        fits &= ends[0] >= 0 and (np.diff(ends) >= 0).all() and ends[-1] == len(arrays["names"])
    if not fits:
        raise DamagedError(f"{folder / MANIFEST}: does not fit the other files; {_ADVICE}")


class _Shards:
    """Random access to the images of all shards, from several threads."""

    def __init__(self, folder: pathlib.Path, shards: list[File]):
        self._folder, self._shards = folder, shards
        self._ends = np.cumsum([shard.images for shard in shards])
        self._verified = [False] * len(shards)
        self._locks = [threading.Lock() for _ in shards]
        # Readers that are dropped are closed when the last thread has used them.
        self._reader: Callable[[int], Any] = functools.lru_cache(_OPEN_SHARDS)(self._open)

    def _place(self, image: int) -> tuple[int, int]:
        if not 0 <= image < self._ends[-1]:
            raise InputError(f"{self._folder}: there is no image {image}")
        shard = int(np.searchsorted(self._ends, image, side="right"))
        return shard, image - (int(self._ends[shard - 1]) if shard else 0)

    def where(self, image: int) -> str:
        shard, within = self._place(image)
        return f"{self._folder / self._shards[shard].name}: record {within}"

    def read(self, image: int) -> bytes:
        shard, within = self._place(image)
        try:
            return self._reader(shard).read([within])[0]
        except (RuntimeError, IndexError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise DamagedError(f"{self.where(image)} cannot be read; {_ADVICE}") from error

    def _open(self, shard: int) -> Any:
        # It takes a second to import, which other sources do without.
        from array_record.python import array_record_module  # noqa: PLC0415

        self._verify(shard)
        path, images = self._folder / self._shards[shard].name, self._shards[shard].images
        reader = array_record_module.ArrayRecordReader(str(path), _READER_OPTIONS)
        if reader.num_records() != images:  # such as 0 for a file that is cut off
            raise DamagedError(
                f"{path}: holds {reader.num_records()} images instead of {images}; {_ADVICE}"
            )
        return reader

    def _verify(self, shard: int) -> None:
        with self._locks[shard]:  # once, however many threads want it
            if not self._verified[shard]:
                verify(self._folder, self._shards[shard])
                self._verified[shard] = True

    def verify(self, images: np.ndarray, workers: int) -> None:
        """Verifies the shards that hold ``images``."""
        images = np.asarray(images, np.int64)
        for image in (images.min(initial=0), images.max(initial=0)):
            self._place(int(image))
        shards = np.unique(np.searchsorted(self._ends, images, side="right"))
        with ThreadPoolExecutor(max(1, min(workers, len(shards)))) as pool:
            list(pool.map(self._verify, shards.tolist()))
