"""Enrolled people, and who a face is among them (1:N) or whether it is a given one (1:1)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from fedfr_jax.data.landmarks import Landmarks
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.face_model import FaceModel
from fedfr_jax.evaluation.scores import on_grid, padded_blocks, score_block
from fedfr_jax.evaluation.streaming import unit_rows
from fedfr_jax.identify.images import FaceImages, embed_images, list_images, with_landmarks

_BLOCK_SCORES = 1 << 24  # in memory at a time


@dataclasses.dataclass(frozen=True)
class Matches:
    """The best matches of n probes.

    Attributes:
      rows: (n, k) int64 rows of the gallery, the best first.
      scores: (n, k) float32 cosines, descending.
    """

    rows: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Claims:
    """Outcome of :func:`verify`.

    Attributes:
      rows: (n,) rows of the claimed people.
      scores: (n,) float32 cosines.
      accepted: (n,) bool.
    """

    rows: np.ndarray
    scores: np.ndarray
    accepted: np.ndarray


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Enrolled people.

    Attributes:
      names: (K) of the people.
      features: (K, d) float32 unit features: of each person the mean of the images' unit features,
        normalized again.
      image_features: (n, d) float32 unit features of the enrolled images.
      image_rows: (n,) int64 whose they are.
    """

    names: tuple[str, ...]
    features: np.ndarray
    image_features: np.ndarray
    image_rows: np.ndarray

    def search(self, features: np.ndarray, k: int = 5) -> Matches:
        """Finds the k most similar people for each probe; of equal ones the first comes first.

        Args:
          features: (n, d) features of probes; normalized here.
          k: most people per probe; at most K are returned.

        Raises:
          InputError: features of another size, or not finite, or k < 1.
        """
        if k < 1:
            raise InputError(f"k is {k}; a search returns at least one person")
        k = min(k, len(self.names))
        rows, scores = [np.zeros((0, k), np.int64)], [np.zeros((0, k), np.float32)]
        for block in self.score_blocks(features):
            top, where = jax.lax.top_k(block, k)
            rows.append(np.asarray(where, np.int64))
            scores.append(np.asarray(top))
        return Matches(np.concatenate(rows), np.concatenate(scores))

    def score_blocks(self, features: np.ndarray) -> Iterator[np.ndarray]:
        """Yields (b, K) cosines of some probes after the other with everybody."""
        unit = self._checked(features)
        columns = padded_blocks(self.features, len(self.names))[0][2]
        size = max(1, min(4096, _BLOCK_SCORES // len(columns)))
        for _, count, rows in padded_blocks(unit, size) if len(unit) else ():
            yield np.asarray(score_block(rows, columns))[:count, : len(self.names)]

    def _checked(self, features: np.ndarray) -> np.ndarray:
        unit = unit_rows(features, "probes")
        if unit.shape[1] != self.features.shape[1]:
            raise InputError(
                f"probes have {unit.shape[1]} dimensions, the gallery "
                f"{self.features.shape[1]}; use one model for both"
            )
        return unit

    def rows_of(self, names: Sequence[str]) -> np.ndarray:
        """(n,) rows of people; -1 for those who are not enrolled."""
        place = {name: row for row, name in enumerate(self.names)}
        return np.array([place.get(name, -1) for name in names], np.int64)


def gallery_of(names: Sequence[str], features: np.ndarray) -> Gallery:
    """Makes a gallery.

    Args:
      names: (n) person of each image.
      features: (n, d) features of the images; normalized here.

    Raises:
      InputError: there is no image, sizes differ, or a feature is not finite.
    """
    unit = unit_rows(features, "enrolled images")
    if len(names) != len(unit) or not len(unit):
        raise InputError(f"{len(names)} names for {len(unit)} enrolled images")
    people, rows = np.unique(np.array(names, object).astype(str), return_inverse=True)
    sums = np.zeros((len(people), unit.shape[1]))
    np.add.at(sums, rows, unit)
    means = (sums / np.bincount(rows)[:, None]).astype(np.float32)
    return Gallery(tuple(people.tolist()), unit_rows(means), unit, rows.astype(np.int64))


def enrol(
    model: FaceModel,
    folder: str | os.PathLike | FaceImages,
    *,
    landmarks: Landmarks | None = None,
    mirror: bool = True,
    batch_size: int = 64,
    workers: int = 0,
) -> Gallery:
    """Enrols everybody who has a folder.

    Args:
      model: see :class:`~fedfr_jax.evaluation.face_model.FaceModel`.
      folder: one folder of images per person, or what :func:`list_images` returns for it.
      landmarks: to align the images; None: they are aligned.
      mirror: add the features of the mirror image.
      batch_size: images per call of the model.
      workers: decoding threads; 0 = one per core.

    Raises:
      InputError: there are no such folders, or an image cannot be read.
    """
    images = (
        folder
        if isinstance(folder, FaceImages)
        else list_images(folder, people=True, what="gallery")
    )
    if landmarks is not None:
        (images,) = with_landmarks([images], landmarks)
    if images.people is None:
        raise InputError(f"gallery: {images.folder} must hold one folder of images per person")
    features = embed_images(
        model, images, mirror=mirror, batch_size=batch_size, workers=workers, label="enrolled"
    )
    return gallery_of(images.people, features)


def verify(
    gallery: Gallery, features: np.ndarray, names: Sequence[str], threshold: float
) -> Claims:
    """Decides whether each probe is the person that it claims to be.

    Args:
      gallery: the enrolled people.
      features: (n, d) features of probes; normalized here.
      names: (n) claimed people.
      threshold: a cosine; a claim is accepted if its score is greater.

    Raises:
      InputError: somebody is not enrolled, or sizes differ.
    """
    unit = gallery._checked(features)
    if len(unit) != len(names):
        raise InputError(f"{len(names)} claims for {len(unit)} probes; give one each")
    rows = gallery.rows_of(names)
    missing = [name for name, row in zip(names, rows, strict=True) if row < 0]
    if missing:
        raise InputError(
            f"{missing[0]!r} is not enrolled; the gallery has {len(gallery.names)} people, such as "
            f"{', '.join(map(repr, gallery.names[:3]))}"
        )
    scores = on_grid(np.einsum("nd,nd->n", unit, gallery.features[rows])).astype(np.float32)
    return Claims(rows, scores, scores > np.float32(threshold))
