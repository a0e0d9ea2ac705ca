"""What people can be grouped by: how their images look, or features from a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from PIL import Image

from fedfr_jax.data.arrays import load_array
from fedfr_jax.data.types import ImageSource
from fedfr_jax.errors import ConfigError, InputError
from fedfr_jax.settings import SplitConfig

LOOKED_AT = 3  # images of each person
MOST_PEOPLE = 50_000  # whose images are looked at: minutes, not hours
MOST_BYTES = 2 << 30  # of features from a file
_THUMBNAIL = 8  # side, in pixels
_BLOCK = 64  # people at a time

# Maps (n,) people and (n, LOOKED_AT) image numbers to features: (n, d), or (n,) one number each.
Features = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Progress(Protocol):
    """As :func:`fedfr_jax.runtime.progress.track`."""

    def __call__(
        self, label: str, total: int | None, unit: str = ...
    ) -> contextlib.AbstractContextManager[Any]: ...


class _Silent:
    def update(self, n: int = 1) -> None:
        """Shows nothing."""


@contextlib.contextmanager
def silent(label: str, total: int | None, unit: str = "") -> Iterator[_Silent]:
    """A progress bar that is not there."""
    del label, total, unit
    yield _Silent()


def features_of(
    source: ImageSource, config: SplitConfig, progress: Progress = silent
) -> Features | None:
    """What ``data.split.skew_by`` groups people by; None if it is not set.

    Images are those of the source, before ``data.degrade``.

    Args:
      source: of the images.
      config: the ``data.split`` settings.
      progress: shown while images are looked at.

    Raises:
      InputError: the file of ``data.split.skew_features`` cannot be used.
    """
    if not config.skew_by:
        return None
    if config.skew_features:
        return _from_file(config.skew_features, source.num_identities)
    measure = MEASURES[config.skew_by]

    def look(people: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        if len(people) > MOST_PEOPLE:
            raise ConfigError(
                f"data.split.skew_by is {config.skew_by!r}, but images of {len(people):,} people "
                f"would have to be looked at; at most {MOST_PEOPLE:,} are. Lower "
                "data.split.client_fraction, narrow data.split.client_images, or give features "
                "in a file (data.split.skew_features)"
            )
        found = []
        with progress("looking at people's images", len(people), "person") as bar:
            for start in range(0, len(people), _BLOCK):
                part = numbers[start : start + _BLOCK]
                images = source.read(part.reshape(-1))
                values = np.stack([measure(image) for image in images])
                found.append(values.reshape(*part.shape, *values.shape[1:]).mean(axis=1))
                bar.update(len(part))
        return np.concatenate(found)

    return look


def thumbnail(image: np.ndarray) -> np.ndarray:
    """(192,) the image, (S, S, 3) uint8, as 8 x 8 pixels: 0 to 255."""
    size = (_THUMBNAIL, _THUMBNAIL)
    small = Image.fromarray(image).resize(size, Image.Resampling.BOX)
    return np.asarray(small, np.float64).reshape(-1)


def brightness(image: np.ndarray) -> float:
    """Mean luma (ITU-R BT.601) of an (S, S, 3) uint8 image: 0 to 255."""
    return float(_luma(image).mean())


def sharpness(image: np.ndarray) -> float:
    """Variance of the Laplacian of the luma, a measure of focus; >= 0, in squared gray levels.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
    """
    y = _luma(image)
    inner = y[1:-1, 1:-1]
    return float((y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:] - 4 * inner).var())


def _luma(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


MEASURES: dict[str, Callable[[np.ndarray], Any]] = {
    "cluster": thumbnail,
    "brightness": brightness,
    "sharpness": sharpness,
}


def _from_file(path: str, people: int) -> Features:
    """Features from an ``.npy`` file, one row per person of the source; read where needed."""
    rows = load_array(path, in_memory=False)
    if rows.dtype.kind not in "fiu" or rows.ndim != 2 or len(rows) != people or not rows.shape[1]:
        raise InputError(
            f"data.split.skew_features: {path} holds {rows.dtype} of shape {rows.shape}; give a "
            f"number array of shape ({people}, d), a row per person of the source"
        )

    def look(people: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        del numbers
        needed = len(people) * rows.shape[1] * rows.itemsize
        if needed > MOST_BYTES:
            raise ConfigError(
                f"data.split.skew_features: {len(people):,} people with {rows.shape[1]} features "
                f"are {needed / 2**30:.1f} GiB; at most {MOST_BYTES / 2**30:.0f} are read. Give "
                "fewer features, lower data.split.client_fraction, or narrow "
                "data.split.client_images"
            )
        found = rows[people]
        bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(bad):
            raise InputError(
                f"data.split.skew_features: row {people[bad[0]]} of {path} is not finite"
            )
        return found

    return look
