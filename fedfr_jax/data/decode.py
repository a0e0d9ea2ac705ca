"""Encoded images to uint8 arrays of one size, on several threads."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fedfr_jax.data.complete import is_complete
from fedfr_jax.data.jpeg import decode_usual
from fedfr_jax.data.types import ImageSource
from fedfr_jax.errors import InputError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # no others: some of Pillow's readers start programs
_TASK = 16  # images per thread task: little overhead, and the load is still balanced
_ORIENTATION = 0x0112  # EXIF tag
_BACKGROUND = (0, 0, 0)  # behind transparent pixels; alignment leaves the same at the borders
_EIGHT_BITS = ((255 * np.arange(65536) + 32767) // 65535).astype(np.uint8)  # of 16, rounded
MAX_MEGAPIXELS = 50.0  # default of ``data.max_megapixels``


def num_workers(workers: int) -> int:
    """Returns the number of threads for the setting ``data.workers`` (0 = one per core).

    Raises:
      InputError: the setting is negative.
    """
    if workers < 0:
        raise InputError(f"data.workers: {workers} is negative; use 0 for one thread per core")
    if workers:
        return workers
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _open(blob: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(blob), formats=FORMATS)
    except UnidentifiedImageError:
        what = "it is empty" if not blob else "its content is none of " + ", ".join(FORMATS)
        raise ValueError(what) from None


def _check_mode(image: Image.Image) -> None:
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}; convert the image to 8 or 16 bits")


def _check_size(image: Image.Image, max_megapixels: float) -> None:
    if image.width * image.height > 1e6 * max_megapixels:
        raise ValueError(
            f"{image.width} x {image.height} pixels; data.max_megapixels="
            f"{max_megapixels:g} allows less"
        )


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit gray, scaled; Pillow's own conversion would clip it. Keeps what is transparent."""
    values = np.asarray(image)
    gray = Image.fromarray(_EIGHT_BITS[values])
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):
        gray.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    return gray


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts a Pillow image to 8-bit RGB.

    Gray values are repeated, palettes looked up, CMYK is converted without its profile, 16-bit gray
    is scaled by 255 / 65535, and transparent pixels are blended with black.

    Raises:
      ValueError: pixels of 32 bits.
    """
    _check_mode(image)
    if image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*_BACKGROUND, 255))
        image = Image.alpha_composite(background, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def resize(image: Image.Image, image_size: int | None) -> np.ndarray:
    """Converts a Pillow image to (S, S, 3) uint8 RGB; bilinear with antialiasing if needed.

    Without a size it becomes (height, width, 3).

    Raises:
      ValueError: as :func:`to_rgb`.
    """
    image = to_rgb(image)
    if image_size is not None and image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def decode_image(
    blob: bytes, image_size: int | None, max_megapixels: float = MAX_MEGAPIXELS
) -> np.ndarray:
    """Decodes one image (JPEG, PNG, BMP, WebP; the first frame) to (S, S, 3) uint8 RGB.

    Without ``image_size`` it keeps its own: (height, width, 3).

    It is turned upright as its EXIF data say and converted as by :func:`to_rgb`; images of another
    size are resized, without keeping the aspect ratio.

    Raises:
      ValueError: the image is of another format, or larger than ``max_megapixels``; it is not
        decoded then.
      Any error of Pillow if the image is damaged; :func:`decode_images` translates it.
    """
    if image_size is not None and image_size**2 <= 1e6 * max_megapixels:
        usual = decode_usual(blob, image_size)
        if usual is not None:
            return usual
    with _open(blob) as image:
        _check_size(image, max_megapixels)
        # A JPEG decoder can shrink by 2, 4 or 8, which is cheaper than full decoding; the
        # result is never smaller than requested here.
        if image_size is not None:
            image.draft("RGB", (image_size, image_size))
        upright: Image.Image = image
        # Cameras may store an image rotated and note the rotation in the EXIF data.
        if image.getexif().get(_ORIENTATION, 1) != 1:
            upright = ImageOps.exif_transpose(image)
        return resize(upright, image_size)


def inspect_image(blob: bytes) -> tuple[str, int, int]:
    """(format, width, height) of an encoded image, from its header; width and height as stored.

    Raises:
      ValueError: it is of none of the :data:`FORMATS`.
    """
    with _open(blob) as image:
        return image.format or "", image.width, image.height


def check_image(image: bytes | np.ndarray, max_megapixels: float = MAX_MEGAPIXELS) -> None:
    """Raises the same errors as :func:`decode_image`, in a fraction of the time.

    Checks the header and whether the file is complete; decodes it only if that is not conclusive.
    Wrong bytes within a JPEG's scan, which decoders do not notice either, are not found.
    """
    if isinstance(image, np.ndarray):
        return
    with _open(image) as opened:
        _check_size(opened, max_megapixels)
        _check_mode(opened)
        whole = is_complete(image, opened.format or "")
        if whole and opened.format != "PNG":  # a PNG may have its EXIF data after the pixels
            opened.getexif().get(_ORIENTATION)
    if not whole:
        decode_image(image, 8, max_megapixels)


def from_array(image: np.ndarray, image_size: int | None) -> np.ndarray:
    """An array of shape (H, W), (H, W, 1) or (H, W, 3) uint8, as :func:`decode_image` gives it."""
    if image.dtype != np.uint8:
        raise ValueError(f"pixels of type {image.dtype}; 8 bits are needed")
    flat = image[:, :, 0] if image.shape[2:] == (1,) else image
    return resize(Image.fromarray(flat), image_size)


def decode_lazily(
    fetch: Callable[[int], bytes | np.ndarray],
    count: int,
    image_size: int,
    *,
    workers: int = 0,
    max_megapixels: float = MAX_MEGAPIXELS,
    name_of: Callable[[int], str] = "image {}".format,
) -> np.ndarray:
    """Fetches and decodes images on several threads.

    Args:
      fetch: maps the position ``0 <= i < count`` to an encoded image, or to a decoded one of
        shape (H, W), (H, W, 1) or (H, W, 3) uint8; called on the threads, so that reading files
        overlaps with decoding.
      count: number of images.
      image_size: side S of the result in pixels; images of another size are resized.
      workers: threads; 0 = one per core.
      max_megapixels: larger encoded images are refused before they are decoded.
      name_of: maps a position to what an error message calls the image.

    Returns:
      (count, S, S, 3) uint8 RGB.

    Raises:
      InputError: an image cannot be read or decoded; the message has its name.
    """
    out = np.empty((count, image_size, image_size, 3), np.uint8)

    def one(i: int) -> None:
        image = fetch(i)
        out[i] = (
            from_array(image, image_size)
            if isinstance(image, np.ndarray)
            else decode_image(image, image_size, max_megapixels)
        )

    _on_threads(one, count, workers, name_of)
    return out


def check_lazily(
    fetch: Callable[[int], bytes | np.ndarray],
    count: int,
    *,
    workers: int = 0,
    max_megapixels: float = MAX_MEGAPIXELS,
    name_of: Callable[[int], str] = "image {}".format,
) -> None:
    """Raises InputError for an image that :func:`check_image` finds damaged; arguments as above."""
    _on_threads(lambda i: check_image(fetch(i), max_megapixels), count, workers, name_of)


def _on_threads(
    one: Callable[[int], None], count: int, workers: int, name_of: Callable[[int], str]
) -> None:
    """Calls ``one`` with 0 to ``count`` - 1; its errors become InputError with the image's name."""

    def task(start: int) -> None:
        for i in range(start, min(start + _TASK, count)):
            try:
                one(i)
            except InputError:
                raise
            except Exception as error:  # Pillow's decoders raise anything on damaged files
                raise InputError(
                    f"{name_of(i)}: cannot be read as an image ({error}); replace or remove it"
                ) from error

    threads = min(num_workers(workers), -(-count // _TASK))
    if threads <= 1:
        for start in range(0, count, _TASK):
            task(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(task, range(0, count, _TASK)):
                pass


def decode_images(
    blobs: Sequence[bytes],
    image_size: int,
    *,
    workers: int = 0,
    max_megapixels: float = MAX_MEGAPIXELS,
    name_of: Callable[[int], str] = "image {}".format,
) -> np.ndarray:
    """Decodes encoded images to (n, S, S, 3) uint8 RGB; see :func:`decode_lazily`."""
    return decode_lazily(
        blobs.__getitem__,
        len(blobs),
        image_size,
        workers=workers,
        max_megapixels=max_megapixels,
        name_of=name_of,
    )


def stored_source(
    name: str,
    labels: np.ndarray,
    identity_names: Sequence[str],
    image_size: int,
    *,
    fetch: Callable[[int], bytes | np.ndarray],
    name_of: Callable[[int], str],
    workers: int = 0,
    max_megapixels: float = MAX_MEGAPIXELS,
    splits: Mapping[str, range] | None = None,
) -> ImageSource:
    """A source of images that are stored somewhere, decoded on several threads when they are read.

    Args:
      name, labels, identity_names, image_size, fetch, name_of, splits: attributes of
        :class:`ImageSource`.
      workers, max_megapixels: as for :func:`decode_lazily`.
    """

    def locate(images: np.ndarray) -> dict[str, Any]:
        chosen = np.asarray(images, np.int64)
        return {
            "fetch": lambda i: fetch(int(chosen[i])),
            "count": len(chosen),
            "workers": workers,
            "max_megapixels": max_megapixels,
            "name_of": lambda i: name_of(int(chosen[i])),
        }

    return ImageSource(
        name=name,
        labels=labels,
        image_size=image_size,
        read=lambda images: decode_lazily(image_size=image_size, **locate(images)),
        identity_names=identity_names,
        check=lambda images: check_lazily(**locate(images)),
        fetch=fetch,
        name_of=name_of,
        splits=splits or {},
    )
