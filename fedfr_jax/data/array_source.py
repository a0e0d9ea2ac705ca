"""Images and labels that are in memory already, as a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedfr_jax.data.types import ImageSource, as_images
from fedfr_jax.errors import InputError


def array_source(
    images: np.ndarray,
    labels: np.ndarray,
    splits: Mapping[str, int] | None = None,
    *,
    names: Sequence[str] | None = None,
) -> ImageSource:
    """A source of the images in an array, which may be a memory-mapped file.

    Args:
      images: (N, S, S, 3) uint8 RGB.
      labels: (N,) whole numbers from 0, without gaps.
      splits: number of images of each split, which follow each other in ``images``.
      names: of the labels; None: their numbers.

    Raises:
      InputError: shapes, types, labels or sizes of splits do not fit.
    """
    images = as_images(images, np.shape(images)[1] if np.ndim(images) > 1 else 0)
    labels, splits = np.asarray(labels), dict(splits or {})
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise InputError(
            f"the labels are {labels.dtype} of shape {labels.shape}; give ({len(images)},) whole "
            "numbers, one per image"
        )
    found = np.unique(labels)
    if not np.array_equal(found, np.arange(len(found))):
        raise InputError(
            f"the labels are from {found[0]} to {found[-1]} and {len(found)} different ones; "
            "number them from 0 without gaps (np.unique(labels, return_inverse=True)[1])"
        )
    names = tuple(str(label) for label in found.tolist()) if names is None else tuple(names)
    if len(names) != len(found):
        raise InputError(f"names: {len(names)} for {len(found)} labels; give one for each")
    if splits and (sum(splits.values()) != len(images) or min(splits.values()) < 0):
        raise InputError(f"splits: {splits} are not the {len(images)} images; give all, in order")
    ends = np.cumsum(list(splits.values()), dtype=np.int64).tolist()
    return ImageSource(
        name="array",
        labels=labels.astype(np.int64),
        image_size=images.shape[1],
        read=lambda numbers: images[numbers],
        identity_names=names,
        splits={
            name: range(end - count, end)
            for (name, count), end in zip(splits.items(), ends, strict=True)
        },
    )
