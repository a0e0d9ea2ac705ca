"""Images in a folder, or in one folder per person, read and embedded."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from fedfr_jax.data.alignment import decode_aligned
from fedfr_jax.data.decode import decode_lazily
from fedfr_jax.data.folder import SUFFIXES
from fedfr_jax.data.landmarks import Landmarks
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.face_model import FaceModel, checked_features
from fedfr_jax.runtime.progress import track

_CHUNK = 512  # images in memory at a time


@dataclasses.dataclass(frozen=True)
class FaceImages:
    """Image files.

    Attributes:
      folder: where they are.
      files: (n) paths below it, with ``/``, as they are shown.
      people: (n) the folder of each, which is the person; None if the images lie in ``folder``.
      landmarks: (n, 5, 2) points to align them by; None: they are aligned.
      paths: (n) where they are; ``folder / file`` if not given. File systems allow names that are
        no text.
    """

    folder: pathlib.Path
    files: tuple[str, ...]
    people: tuple[str, ...] | None = None
    landmarks: np.ndarray | None = None
    paths: tuple[pathlib.Path, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def read(self, numbers: Sequence[int] | np.ndarray, image_size: int, workers: int = 0):
        """(n, S, S, 3) uint8 RGB images, aligned or resized.

        Raises:
          InputError: one cannot be read; the message has its path.
        """
        paths = [self.paths[i] if self.paths else self.folder / self.files[i] for i in numbers]

        def fetch(i: int):
            blob = paths[i].read_bytes()
            if self.landmarks is None:
                return blob
            return decode_aligned(blob, self.landmarks[numbers[i]], image_size)

        return decode_lazily(
            fetch,
            len(paths),
            image_size,
            workers=workers,
            name_of=lambda i: _printable(str(paths[i])),
        )


def list_images(
    folder: str | os.PathLike, *, people: bool | None = None, what: str = "the folder"
) -> FaceImages:
    """Lists images, sorted by name.

    Hidden files and folders are ignored, and so are files that are no images.

    Args:
      folder: of images, or of one folder per person.
      people: True: there must be folders; False: they are searched too, but who is in them does not
        matter; None: folders are people if there are any.
      what: what error messages call it.

    Raises:
      InputError: there are no images, or there are some both in folders and outside.
    """
    root = pathlib.Path(folder).expanduser()
    outside, inner = _entries(root, what)
    inside = [(person, name) for person in inner for name in _entries(root / person, what)[0]]
    if not inside and not outside:
        raise InputError(f"{what}: no images in {root} (with {', '.join(SUFFIXES)})")
    if people and not inside:
        raise InputError(f"{what}: {root} must hold one folder of images per person")
    if inside and outside and people is not False:
        raise InputError(
            f"{what}: {root} holds images in folders and images outside of them (first: "
            f"{outside[0]}); move these into a folder of their person, or elsewhere"
        )
    files = [*outside, *(f"{person}/{name}" for person, name in inside)]
    whose = [_printable(person) for person, _ in inside] if people is not False else []
    return FaceImages(
        root,
        tuple(map(_printable, files)),
        tuple(whose) or None,
        paths=tuple(root / file for file in files),
    )


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _entries(folder: pathlib.Path, what: str) -> tuple[list[str], list[str]]:
    """Names of the images and of the folders in a folder."""
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not entry.name.startswith((".", "@", "__"))]
    except OSError as error:
        raise InputError(f"{what}: cannot read the folder {folder}: {error.strerror}") from error
    images = [e.name for e in entries if e.name.lower().endswith(SUFFIXES) and e.is_file()]
    return sorted(images), sorted(entry.name for entry in entries if entry.is_dir())


def with_landmarks(images: Sequence[FaceImages], landmarks: Landmarks) -> list[FaceImages]:
    """The same images, to be aligned.

    A name in the file is the path below the folder (``alice/1.jpg``), or below the folder's parent
    (``gallery/alice/1.jpg``) where that would fit two images.

    Args:
      images: all folders that the file is for.
      landmarks: the file.

    Raises:
      InputError: an image has no line, or a line fits two images.
    """
    keys = [(f"{some.folder.name}/{file}", file) for some in images for file in some.files]
    points = landmarks.points[landmarks.rows_of(keys)]
    ends = np.cumsum([len(some) for some in images])[:-1]
    return [
        dataclasses.replace(some, landmarks=own)
        for some, own in zip(images, np.split(points, ends), strict=True)
    ]


def embed_images(
    model: FaceModel,
    images: FaceImages,
    *,
    mirror: bool = True,
    batch_size: int = 64,
    workers: int = 0,
    label: str = "images",
) -> np.ndarray:
    """Features of images, some at a time.

    Args:
      model: see :class:`~fedfr_jax.evaluation.face_model.FaceModel`.
      images: from :func:`list_images`.
      mirror: add the features of the mirror image.
      batch_size: images per call of the model.
      workers: decoding threads; 0 = one per core.
      label: what the progress bar calls them.

    Returns:
      (n, d) float32 unit features.

    Raises:
      InputError: an image cannot be read, or a feature is not finite.
    """
    out = np.empty((len(images), model.embedding), np.float32)
    with track(label, len(images), "image") as bar:
        for start in range(0, len(images), _CHUNK):
            numbers = np.arange(start, min(start + _CHUNK, len(images)))
            seen = images.read(numbers, model.image_size, workers)
            found = model.embed(seen, batch_size=batch_size, mirror=mirror)
            out[numbers] = checked_features(found, len(numbers), model)
            bar.update(len(numbers), images=len(numbers))
    return out
