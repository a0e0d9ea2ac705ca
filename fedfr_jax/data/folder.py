"""Images in one folder per identity: ``root/identity/image.jpg``."""
from __future__ import annotations

import os
import pathlib

import numpy as np
from absl import logging

from fedfr_jax.config import DataConfig
from fedfr_jax.data.decode import decode_lazily
from fedfr_jax.data.types import ImageSource
from fedfr_jax.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def open_source(config: DataConfig) -> ImageSource:
    """Opens the folder tree ``data.root``; see :func:`open_folder`."""
    if not config.root:
        raise InputError("data.root: empty; name the folder that holds one folder per identity")
    return open_folder(config.root, config.image_size, workers=config.workers)


def open_folder(root: str | os.PathLike, image_size: int, *, workers: int = 0) -> ImageSource:
    """Lists ``root/identity/image`` files; folder names, sorted, are the identities.

    Folders without an image are left out and images outside an identity folder are ignored,
    each with one warning that says how many.

    Args:
      root: the folder that holds one folder per identity.
      image_size: side S of the images in pixels; others are resized.
      workers: decoding threads; 0 = one per core.

    Returns:
      The source; ``read`` raises InputError with the file's path if an image is damaged.

    Raises:
      InputError: ``root`` is not a folder or holds no image.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise InputError(f"data.root: {root} is not a folder")
    people = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    files = [_images(root / person) for person in people]
    empty = [person for person, found in zip(people, files, strict=True) if not found]
    stray = len(_images(root))
    if len(empty) == len(people):
        raise InputError(
            f"data.root: no images in {root}; expected {root}/<identity>/<image> "
            f"with one of the suffixes {', '.join(SUFFIXES)}"
            + (f" ({stray} images lie outside an identity folder)" if stray else "")
        )
    if empty:
        logging.warning(
            "%s: %d of %d identity folders hold no image and are left out (first: %s)",
            root, len(empty), len(people), empty[0],
        )
    if stray:
        logging.warning("%s: %d images outside an identity folder are ignored", root, stray)
    kept = [(person, found) for person, found in zip(people, files, strict=True) if found]
    paths = [root / person / file for person, found in kept for file in found]
    counts = [len(found) for _, found in kept]

    def read(images: np.ndarray) -> np.ndarray:
        chosen = [paths[i] for i in np.asarray(images, np.int64)]
        return decode_lazily(
            lambda i: chosen[i].read_bytes(), len(chosen), image_size, workers=workers,
            name_of=lambda i: str(chosen[i]),
        )

    return ImageSource(
        name=f"folder {root}",
        labels=np.repeat(np.arange(len(kept), dtype=np.int64), counts),
        image_size=image_size,
        read=read,
        identity_names=tuple(person for person, _ in kept),
    )


def _images(folder: pathlib.Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(SUFFIXES) and entry.is_file()
    )
