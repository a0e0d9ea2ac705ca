"""The RecordIO format's constants, and the writer of insightface data sets."""

from __future__ import annotations

import io
import itertools
import os
import pathlib
import struct
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image

from fedfr_jax.atomic import write_text
from fedfr_jax.errors import InputError

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
HEADER = struct.Struct("<II")  # magic, cflag << 29 | length
IR_HEADER = struct.Struct("<IfQQ")  # flag, label, id, id2
_MAX_LENGTH = (1 << 29) - 1


def write_record(file: BinaryIO, payload: bytes) -> None:
    """Appends one record; cuts the payload where it contains the magic word, as dmlc does.

    Args:
      file: open for writing, at a multiple of 4.
      payload: fewer than 2^29 bytes.

    Raises:
      InputError: the payload is too long for the format.
    """
    if len(payload) > _MAX_LENGTH:
        raise InputError(f"a record of {len(payload)} bytes; the format ends at {_MAX_LENGTH}")
    cuts, found = [], payload.find(MAGIC_BYTES)
    while found >= 0:
        aligned = found % 4 == 0
        if aligned:
            cuts.append(found)
        found = payload.find(MAGIC_BYTES, found + (4 if aligned else 1))
    starts, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(payload)]
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        cflag = 0 if not cuts else 1 if i == 0 else 3 if i == len(cuts) else 2
        file.write(HEADER.pack(MAGIC, cflag << 29 | (end - start)))
        file.write(payload[start:end])
    file.write(b"\0" * (-len(payload) % 4))


class RecordWriter:
    """Writes ``train.rec``, ``train.idx`` and ``property``; a context manager.

    The files appear when the block ends without an error::

        with RecordWriter(folder, image_size=112) as writer:
            writer.add(jpeg_bytes, label=0)

    Args:
      folder: created if need be; the three files in it are replaced.
      image_size: side of the images in pixels, for ``property``.
    """

    def __init__(self, folder: str | os.PathLike, image_size: int):
        self._folder = pathlib.Path(folder)
        self._image_size = image_size
        self._offsets: list[int] = []
        self._first_keys: dict[int, int] = {}  # label -> key of its first image
        self._label: int | None = None
        self._folder.mkdir(parents=True, exist_ok=True)
        self._partial = self._folder / "train.rec.partial"
        self._file = self._partial.open("wb")
        self._put(2, 0.0, np.zeros(2, "<f4").tobytes())  # the header, filled in at the end

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)

    def add(self, image: bytes, label: int) -> None:
        """Appends an image; all images of an identity must follow one another.

        Args:
          image: JPEG or PNG bytes.
          label: identity, 0 <= label <= 2^24 (beyond, float32 does not hold every whole number).

        Raises:
          InputError: the label is out of range or its images are not together.
        """
        if not 0 <= label <= 1 << 24 or label != int(label):
            raise InputError(f"label {label}: must be a whole number from 0 to {1 << 24}")
        if label != self._label:
            if label in self._first_keys:
                raise InputError(f"label {label}: its images must follow one another; sort first")
            self._first_keys[label] = len(self._offsets)
            self._label = label
        self._put(0, float(label), image)

    def _put(self, flag: int, label: float, rest: bytes) -> None:
        key = len(self._offsets)
        self._offsets.append(self._file.tell())
        write_record(self._file, IR_HEADER.pack(flag, label, 0 if flag else key, 0) + rest)

    def _finish(self) -> None:
        if not self._first_keys:
            raise InputError(f"{self._folder}: no image was added")
        end_of_images = len(self._offsets)
        firsts = [*self._first_keys.values(), end_of_images]
        for first, end in itertools.pairwise(firsts):
            self._put(2, 0.0, np.array([first, end], "<f4").tobytes())
        self._file.seek(0)
        labels = np.array([end_of_images, len(self._offsets)], "<f4").tobytes()
        write_record(self._file, IR_HEADER.pack(2, 0.0, 0, 0) + labels)
        self._file.close()
        os.replace(self._partial, self._folder / "train.rec")
        lines = (f"{key}\t{offset}\n" for key, offset in enumerate(self._offsets))
        write_text(self._folder / "train.idx", "".join(lines))
        size = self._image_size
        summary = f"{len(self._first_keys)},{size},{size}"
        write_text(self._folder / "property", summary)


def write_recordio(
    folder: str | os.PathLike,
    images: np.ndarray | Sequence[bytes],
    labels: np.ndarray,
    *,
    image_format: str = "JPEG",
    quality: int = 95,
    image_size: int | None = None,
) -> None:
    """Writes images and labels as an insightface data set, sorted by label.

    Args:
      folder: receives ``train.rec``, ``train.idx`` and ``property``.
      images: (N, S, S, 3) uint8 RGB, or N encoded images.
      labels: (N,) whole numbers >= 0.
      image_format: ``"JPEG"`` or ``"PNG"``, for arrays.
      quality: of JPEG, 1 to 95.
      image_size: side in pixels, needed for encoded images; taken from arrays.

    Raises:
      InputError: numbers of images and labels differ, or a label is not allowed.
    """
    labels = np.asarray(labels)
    if len(images) != len(labels):
        raise InputError(f"{len(images)} images but {len(labels)} labels")
    if image_size is None:
        if not isinstance(images, np.ndarray):
            raise InputError("image_size: needed when the images are already encoded")
        image_size = images.shape[1]
    with RecordWriter(folder, image_size) as writer:
        for i in np.argsort(labels, kind="stable"):
            image = images[i]
            if not isinstance(image, bytes):
                image = encode_image(image, image_format, quality)
            writer.add(image, labels[i].item())


def encode_image(image: np.ndarray, image_format: str = "JPEG", quality: int = 95) -> bytes:
    """Encodes an (H, W, 3) uint8 RGB image as ``"JPEG"`` or ``"PNG"``."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, image_format, quality=quality)
    return out.getvalue()
