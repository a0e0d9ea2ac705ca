"""Faces cut out by five landmarks: a similarity transform to the template of ArcFace.

The five points are the eyes, the tip of the nose and the corners of the mouth, in the order left
eye, right eye, nose, left corner, right corner, where left is the left side of the picture. They
are (x, y) in pixels, and a whole number is the centre of a pixel, as detectors and OpenCV count.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image

from fedfr_jax.data.decode import MAX_MEGAPIXELS, decode_image
from fedfr_jax.errors import InputError

# The points of an aligned face of 112 x 112 pixels (insightface, ``arcface_dst``).
TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
TEMPLATE.setflags(write=False)
TEMPLATE_SIZE = 112
VERSION = 1  # of the pixels made here: cached features of other versions are not used
_MOST_SAMPLES = 8  # per side of an output pixel, before the image itself is shrunk


def template(image_size: int) -> np.ndarray:
    """The (5, 2) points of an aligned face of ``image_size`` pixels: the standard ones, scaled."""
    return TEMPLATE * (image_size / TEMPLATE_SIZE)


@dataclasses.dataclass(frozen=True)
class Similarity:
    """``(x, y) -> scale * rotation @ (x, y) + shift``, as one complex factor and summand.

    Attributes:
      factor: ``scale * exp(i * angle)``.
      shift: ``x + i y`` in pixels.
    """

    factor: complex
    shift: complex

    @property
    def scale(self) -> float:
        """Pixels of the result per pixel of the image."""
        return abs(self.factor)

    def apply(self, points) -> np.ndarray:
        """Maps (n, 2) points."""
        moved = self.factor * _complex(points) + self.shift
        return np.stack([moved.real, moved.imag], axis=-1)


def _complex(points) -> np.ndarray:
    points = np.asarray(points, np.float64)
    return points[..., 0] + 1j * points[..., 1]


def is_usable(points) -> np.ndarray:
    """(n,) bool: which of (n, 5, 2) landmarks are finite and not all the same point."""
    points = _complex(points)
    middle = points.mean(axis=-1)
    spread = np.sum(np.abs(points - middle[..., None]) ** 2, axis=-1)
    # Relative to the coordinates: their rounding alone leaves such a spread. False for NaN.
    return spread > 1e-10 * (1 + np.abs(middle) ** 2)


def find_similarity(source, target) -> Similarity:
    """The rotation, scale and shift that bring points closest to others (least squares).

    The closed form of Umeyama (1991, "Least-squares estimation of transformation parameters between
    two point patterns") without reflections; in the plane it is one quotient of complex numbers.
    Points on one line determine it as well.

    Args:
      source: (n, 2) points, n >= 2.
      target: (n, 2) points.

    Raises:
      InputError: shapes differ, a number is not finite, all points are the same, or no turn brings
        them nearer to the target than a single point would be.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1:] != (2,):
        raise InputError(
            f"landmarks have shape {source.shape}, {target.shape} is needed: x and y of the eyes, "
            "the nose and the corners of the mouth"
        )
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise InputError(f"landmarks are not finite numbers: {source.tolist()}")
    start, end = _complex(source), _complex(target)
    middle, centre = start.mean(), end.mean()
    start, end = start - middle, end - centre
    spread = float(np.sum(np.abs(start) ** 2))
    if not is_usable(source):
        raise InputError(f"all landmarks are the same point: {source.tolist()}")
    factor = complex(np.sum(start.conj() * end) / spread)
    if abs(factor) ** 2 * spread <= 1e-6 * float(np.sum(np.abs(end) ** 2)):
        raise InputError(
            f"landmarks do not look like a face: {source.tolist()}; the order is left eye, right "
            "eye, nose, left and right corner of the mouth, as seen in the picture"
        )
    return Similarity(factor, complex(centre - factor * middle))


def is_mirrored(points) -> np.ndarray:
    """(n,) bool: which faces of (n, 5, 2) points have left and right swapped.

    That is the sign of the area between the eyes and the middle of the mouth; a profile seen from
    far behind may have it, too.
    """
    points = np.asarray(points, np.float64)
    across = points[:, 1] - points[:, 0]
    down = points[:, 3:].mean(axis=1) - points[:, :2].mean(axis=1)
    return across[:, 0] * down[:, 1] - across[:, 1] * down[:, 0] < 0


def align(image: Image.Image, points, image_size: int) -> np.ndarray:
    """Cuts the face out of a picture, upright and of the standard size.

    Bilinear interpolation where the face is not shrunk. Where it is, each pixel is the mean of
    k x k bilinear samples, k so large that no pixel of the picture falls between them; for more
    than 8 x 8 the picture is shrunk first, by a whole factor. What lies outside of the picture is
    black.

    Args:
      image: a Pillow image; converted to RGB.
      points: (5, 2) landmarks in it.
      image_size: side S of the result.

    Returns:
      (S, S, 3) uint8.

    Raises:
      InputError: as :func:`find_similarity`, or the face would be magnified more than 1000 times.
    """
    if np.shape(points) != (5, 2):
        raise InputError(f"a face needs five landmarks (5, 2), got shape {np.shape(points)}")
    found = find_similarity(points, template(image_size))
    if found.scale > 1000:
        raise InputError(
            f"the landmarks are less than a pixel apart: {np.asarray(points).tolist()}"
        )
    image = image if image.mode == "RGB" else image.convert("RGB")
    shrunk = 1
    if found.scale * _MOST_SAMPLES < 1:
        # Not smaller than one pixel: landmarks may be much farther apart than the picture is wide.
        shrunk = min(int(1 / (found.scale * _MOST_SAMPLES)) + 1, *image.size)
        image = image.reduce(shrunk)
    samples = min(max(1, math.ceil(1 / (found.scale * shrunk) - 1e-6)), 2 * _MOST_SAMPLES)
    side = samples * image_size
    cut = image.transform(
        (side, side),
        Image.Transform.AFFINE,
        _pillow_coefficients(found, samples, shrunk),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(cut.reduce(samples) if samples > 1 else cut)


def _pillow_coefficients(found: Similarity, samples: int, shrunk: int) -> tuple[float, ...]:
    """From the places of the (finer) result to those of the (shrunk) picture.

    Pillow's places count from the corner of a picture, so that a pixel's centre is at a half.
    """
    inverse = 1 / found.factor
    turn = inverse / (samples * shrunk)
    centre = (-(0.5 + 0.5j) - found.shift) * inverse + (0.5 + 0.5j)
    shift = centre / shrunk
    return (turn.real, -turn.imag, shift.real, turn.imag, turn.real, shift.imag)


def decode_aligned(
    blob: bytes, points, image_size: int, max_megapixels: float = MAX_MEGAPIXELS
) -> np.ndarray:
    """Decodes an image (JPEG, PNG, BMP, WebP) and cuts the face out: (S, S, 3) uint8 RGB.

    Pixels become RGB and pictures that are stored turned are set upright as by
    :func:`fedfr_jax.data.decode.decode_image`; landmarks are those of the upright picture, as
    OpenCV reads it.

    Raises:
      InputError: as :func:`align`.
      ValueError: as ``decode_image``.
      Any error of Pillow if the file is damaged.
    """
    upright = decode_image(blob, None, max_megapixels)
    return align(Image.fromarray(upright), points, image_size)
