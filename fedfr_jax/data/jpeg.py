"""The usual JPEG, at half of Pillow's cost: libjpeg-turbo called without Python's lock.

Pillow decodes with the same library, and the pixels are the same. Only images that need nothing but
decoding are taken; for all others :mod:`fedfr_jax.data.decode` asks Pillow.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

_START = b"\xff\xd8\xff"
_APP1 = b"\xff\xe1"  # EXIF or XMP data, which may say that the image is rotated
_COLORS = ("YCbCr", "Gray")  # JPEG's own; others are CMYK, or RGB without conversion


@functools.cache
def _decoder() -> Any:
    """The module simplejpeg; None where it has no wheel and is not installed."""
    try:
        import simplejpeg  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return simplejpeg


def decode_usual(blob: bytes, image_size: int) -> np.ndarray | None:
    """(S, S, 3) uint8 RGB of a JPEG of just that size; None if it is anything else, or damaged.

    Args:
      blob: an encoded image of any format.
      image_size: S in pixels.
    """
    if not blob.startswith(_START) or _APP1 in blob:
        return None
    decoder = _decoder()
    if decoder is None:
        return None
    try:
        height, width, color, _ = decoder.decode_jpeg_header(blob)
        if (height, width) != (image_size, image_size) or color not in _COLORS:
            return None
        return decoder.decode_jpeg(blob, "RGB")
    except ValueError:  # also raised for what a decoder only warns of: Pillow decides
        return None
