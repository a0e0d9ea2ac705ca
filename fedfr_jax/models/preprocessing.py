"""What a network of published weights expects as its input, and how that becomes ours.

Images in this program are always RGB, scaled to ``(x - 127.5) / 127.5``. Where published weights
expect something else, the difference is folded into the first convolution when they are loaded,
so that no command has to know of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedfr_jax.errors import InputError

CHANNELS = ("RGB", "BGR")
_MEAN = 127.5
_LARGEST_SIZE = 4096  # pixels
_LONGEST = 500  # characters of a source


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How published weights want their images: ``(x - mean) * scale`` for x from 0 to 255.

    Attributes:
      channels: order of the colour channels, "RGB" or "BGR".
      mean: subtracted from every grey level.
      scale: factor per grey level.
      image_size: side of the images, in pixels.
      source: where the weights come from, for people.

    Raises:
      InputError: a value is of the wrong type or out of range.
    """

    channels: str = "RGB"
    mean: float = _MEAN
    scale: float = 1 / 127.5
    image_size: int = 112
    source: str = ""

    def __post_init__(self) -> None:
        if self.channels not in CHANNELS:
            raise InputError(f"channels are {self.channels!r}; use one of {', '.join(CHANNELS)}")
        for name in ("mean", "scale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"the {name} of the input is {value!r}, which is no number")
            if not math.isfinite(value):
                raise InputError(f"the {name} of the input is {value}; it must be finite")
            object.__setattr__(self, name, float(value))
        if not 1e-6 <= self.scale <= 1e6:
            raise InputError(f"the scale of the input is {self.scale:g}; use about 1 / 127.5")
        size = self.image_size
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _LARGEST_SIZE:
            raise InputError(f"the images' size is {size!r}, not 1 to {_LARGEST_SIZE} pixels")
        if not isinstance(self.source, str) or len(self.source) > _LONGEST:
            raise InputError(f"the source of the weights is no text of {_LONGEST} characters")

    def to_dict(self) -> dict[str, Any]:
        """The values by name, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Preprocessing:
        """The inverse of :meth:`to_dict`; what is missing has its default.

        Raises:
          InputError: there are other names, or a value cannot be used.
        """
        if not isinstance(values, Mapping):
            raise InputError("what is recorded about the input is no dictionary")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(str(name)[:40] for name in set(values) - known):
            raise InputError(f"{unknown[0]!r} is recorded about the input, which is not known")
        return cls(**values)

    def formula(self) -> str:
        """Channels, scaling and size in words, e.g. ``RGB, (x - 127.5) / 127.5, 112 pixels``."""
        divisor = f"{1 / self.scale:.6g}"
        return f"{self.channels}, (x - {self.mean:g}) / {divisor}, {self.image_size} pixels"


def fold(kernel: np.ndarray, preprocessing: Preprocessing, source: str) -> np.ndarray:
    """The first convolution of published weights, for this program's images.

    Args:
      kernel: (out, 3, h, w) as published.
      preprocessing: what it expects.
      source: what an error message calls the weights.

    Raises:
      InputError: the mean is not 127.5. A convolution pads with zeros, which are the mean; weights
        and a bias cannot make up for another value there.
    """
    return _turned(kernel * kernel.dtype.type(_ratio(preprocessing, source)), preprocessing)


def unfold(kernel: np.ndarray, preprocessing: Preprocessing, source: str) -> np.ndarray:
    """The inverse of :func:`fold`: our first convolution in a published convention."""
    return _turned(kernel / kernel.dtype.type(_ratio(preprocessing, source)), preprocessing)


def _turned(kernel: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    return kernel[:, ::-1] if preprocessing.channels == "BGR" else kernel


def _ratio(preprocessing: Preprocessing, source: str) -> float:
    """Published scale over ours; exactly 1 where they are the same."""
    if preprocessing.mean != _MEAN:
        raise InputError(
            f"{source}: its images have the mean {preprocessing.mean:g} subtracted. Only "
            f"{_MEAN} can be used: with another mean, the zeros around an image mean another grey"
        )
    return preprocessing.scale / Preprocessing().scale
