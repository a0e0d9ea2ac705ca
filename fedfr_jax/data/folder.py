"""Images in one folder per identity: ``root/identity/image.jpg``."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import numpy as np
from absl import logging

from fedfr_jax.data.decode import MAX_MEGAPIXELS, stored_source
from fedfr_jax.data.types import ImageSource
from fedfr_jax.errors import InputError
from fedfr_jax.settings import DataConfig

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".webp")
_UNREAD = (".tif", ".tiff", ".gif", ".heic", ".heif", ".avif", ".jp2", ".ppm", ".pgm", ".tga")
# Folders and files that systems and programs create; other such names begin with a dot.
_LITTER = frozenset(
    {
        "@eadir",
        "__macosx",
        "#recycle",
        "$recycle.bin",
        "lost+found",
        "system volume information",
        "__pycache__",
    }
)


def open_source(config: DataConfig) -> ImageSource:
    """Opens the folder tree ``data.root``; see :func:`open_folder`."""
    if not config.root:
        raise InputError("data.root: empty; name the folder that holds one folder per identity")
    return open_folder(
        config.root, config.image_size, workers=config.workers, max_megapixels=config.max_megapixels
    )


def open_folder(
    root: str | os.PathLike,
    image_size: int,
    *,
    workers: int = 0,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> ImageSource:
    """Lists ``root/identity/image`` files; folder names, sorted, are the identities.

    Hidden folders and files, and those created by systems (``@eaDir``, ``__MACOSX``), are
    ignored. Identity folders without an image, images outside one or in deeper
    folders, images of an unsupported format, and what has the name of an image but is no file are
    left out, with one warning per kind that gives their number. Symbolic links to files and to
    identity folders are followed; those that lead nowhere or in a circle are left out, too.

    Args:
      root: the folder that holds one folder per identity.
      image_size: side S of the images in pixels; others are resized.
      workers: decoding threads; 0 = one per core.
      max_megapixels: larger images are refused before they are decoded.

    Returns:
      The source; ``read`` raises InputError with the file's path if an image is damaged.

    Raises:
      InputError: ``root`` is not a folder or holds no image.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise InputError(f"data.root: {root} is not a folder")
    people = sorted(
        entry.name
        for entry in _entries(root)
        if not _hidden(entry.name) and _leads_to(entry, "dir")
    )
    found = [_list(root / person) for person in people]
    _report(root, people, found)
    kept = [(person, own.images) for person, own in zip(people, found, strict=True) if own.images]
    paths = [root / person / file for person, files in kept for file in files]
    counts = [len(files) for _, files in kept]

    return stored_source(
        f"folder {root}",
        np.repeat(np.arange(len(kept), dtype=np.int64), counts),
        tuple(_printable(person) for person, _ in kept),
        image_size,
        fetch=lambda i: paths[i].read_bytes(),
        name_of=lambda i: _printable(str(paths[i])),
        workers=workers,
        max_megapixels=max_megapixels,
    )


def _report(root: pathlib.Path, people: list[str], found: list[_Listing]) -> None:
    """Says what is ignored, or raises InputError if nothing is left."""
    empty = [person for person, listing in zip(people, found, strict=True) if not listing.images]
    top = _list(root, deep=False)
    ignored = {
        f"of {len(people)} identity folders hold no image and are left out": empty,
        "images outside an identity folder are ignored": top.images,
        "images in folders within an identity's are ignored": [
            name for listing in found for name in listing.deeper
        ],
        f"images are neither of {', '.join(SUFFIXES)} and are ignored; convert them": [
            name for listing in found for name in listing.unread
        ],
        "names lead to no file (such as links to what is gone) and are ignored": [
            name for listing in (top, *found) for name in listing.broken
        ],
    }
    if len(empty) == len(people):
        more = "; ".join(
            f"{len(names)} {what}"
            for what, names in ignored.items()
            if names and names is not empty
        )
        raise InputError(
            f"data.root: no images in {root}; expected {root}/<identity>/<image> "
            f"with one of the suffixes {', '.join(SUFFIXES)}" + (f" ({more})" if more else "")
        )
    for what, names in ignored.items():
        if names:
            first = _printable(names[0])
            logging.warning("%s: %d %s (first: %s)", root, len(names), what, first)


@dataclasses.dataclass(frozen=True)
class _Listing:
    """Contents of a folder: image files, those of other formats or in subfolders, and no files."""

    images: list[str]
    unread: list[str]
    deeper: list[str]
    broken: list[str]


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _printable(name: str) -> str:
    """A name that is not UTF-8 on the disk, with its odd bytes written as ``\\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(os.fspath(folder)) as found:
            return list(found)
    except OSError as error:
        raise InputError(
            f"{_printable(os.fspath(folder))}: cannot be listed ({error.strerror}); change its "
            "permissions or remove it"
        ) from error


def _leads_to(entry: os.DirEntry, kind: str) -> bool:
    """Whether an entry is a file ("file") or folder ("dir"), itself or through links."""
    try:
        return entry.is_file() if kind == "file" else entry.is_dir()
    except OSError:  # a circle of links, or a folder on the way that may not be entered
        return False


def _list(folder: pathlib.Path, *, deep: bool = True) -> _Listing:
    """Lists a folder; with ``deep`` also the images in all folders below it."""
    images, unread, deeper, broken, inner = [], [], [], [], []
    for entry in _entries(folder):
        suffix = os.path.splitext(entry.name)[1].lower()
        if _hidden(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            inner.append(entry.path)
        elif not _leads_to(entry, "file"):
            if not _leads_to(entry, "dir") and (suffix in SUFFIXES or entry.is_symlink()):
                broken.append(entry.path)
        elif suffix in SUFFIXES:
            images.append(entry.name)
        elif suffix in _UNREAD:
            unread.append(entry.path)
    while deep and inner:
        for entry in _entries(inner.pop()):
            if _hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                inner.append(entry.path)
            elif entry.name.lower().endswith(SUFFIXES):
                deeper.append(entry.path)
    return _Listing(sorted(images), sorted(unread), sorted(deeper), sorted(broken))
