"""What becomes of one image when it is prepared."""

from __future__ import annotations

import dataclasses

import numpy as np

from fedfr_jax.data.decode import MAX_MEGAPIXELS, decode_image, from_array, inspect_image
from fedfr_jax.data.recordio_format import encode_image

_SMALL = 8  # pixels; decoding to so few is enough to find damage
_OF_RECORDIO = ("JPEG", "PNG")


@dataclasses.dataclass(frozen=True)
class Stored:
    """An image as it is written: a whole file, and its width and height in pixels."""

    blob: bytes
    width: int
    height: int


def stored_image(
    image: bytes | np.ndarray,
    *,
    image_size: int | None = None,
    container: str = "array_record",
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Stored:
    """Decodes an image to see that it can be read, and returns what is to be written.

    Files stay as they are, byte for byte, unless they are to be resized or RecordIO cannot hold
    them (it takes JPEG and PNG). Anything else becomes PNG, which loses nothing.

    Args:
      image: a file, or an array of shape (H, W), (H, W, 1) or (H, W, 3) uint8.
      image_size: resize to this side in pixels; None: keep the image as it is.
      container: "array_record" or "recordio".
      max_megapixels: larger images are refused.

    Raises:
      Any error of Pillow, or ValueError, if the image cannot be read.
    """
    if isinstance(image, np.ndarray):
        return _as_png(from_array(image, image_size))
    if image_size is not None:
        return _as_png(decode_image(image, image_size, max_megapixels))
    kind, width, height = inspect_image(image)
    if container == "recordio" and kind not in _OF_RECORDIO:
        return _as_png(decode_image(image, None, max_megapixels))
    decode_image(image, _SMALL, max_megapixels)
    return Stored(image, width, height)


def _as_png(pixels: np.ndarray) -> Stored:
    return Stored(encode_image(pixels, "PNG"), pixels.shape[1], pixels.shape[0])
