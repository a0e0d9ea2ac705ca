"""Whether faces lie where a face model expects them, seen from their mean picture alone.

The mean of aligned faces has eyes and a mouth; that of others is a blur. No landmarks are needed,
and nothing is learned: a drawing of two eyes, nose and mouth is moved over the mean picture.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import ndimage

SIDE = 56  # pixels of the pictures that are looked at
LEAST_IMAGES = 30  # with fewer, backgrounds do not vanish from the mean
_BLUR = 5.0  # pixels; only finer detail is looked at
_BORDER = 8  # pixels that are left out, where backgrounds are
# Share of the images' detail that is in their mean, too. Labeled Faces in the Wild, aligned: 0.2;
# moved at random by up to 10 % of the side and 10 degrees: 0.04; by 15 % and 20 degrees: 0.006.
_BLURRED, _SHARP = 0.03, 0.06
# Correlation with the drawing from which it counts as found. Labeled Faces in the Wild, aligned,
# also moved by up to 10 %: 0.84 to 0.93; moved by 15 %: 0.49; generated faces: up to 0.77.
_FACE_LIKE = 0.81
_OFF = 0.03  # of the side: how far eyes may be from the template's without a warning
_TURNED, _SIZED = 5.0, 0.12  # degrees, and the logarithm of the size
_AGREE = 0.03  # of the side: how far the eyes of two halves of the images may differ
# insightface's template for 112 x 112 pixels (face_align.py, arcface_dst), as shares of the side.
TEMPLATE_EYES = np.array([[38.2946, 51.6963], [73.5318, 51.5014]]) / 112
_OF_96 = TEMPLATE_EYES - [8 / 112, 0]  # the one for 96 x 112, in images of 112 x 112
_DISTANCE = float(TEMPLATE_EYES[1, 0] - TEMPLATE_EYES[0, 0])
# What is drawn, in distances of the eyes from the point between them: place, size, brightness.
_DRAWN = (
    (-0.50, -0.05, 0.22, 0.13, -1.6),  # eyes and brows
    (0.50, -0.05, 0.22, 0.13, -1.6),
    (0.00, -0.45, 0.60, 0.15, 0.7),  # forehead
    (0.00, 0.10, 0.10, 0.30, 1.0),  # bridge of the nose
    (-0.55, 0.42, 0.25, 0.15, 0.9),  # cheeks
    (0.55, 0.42, 0.25, 0.15, 0.9),
    (0.00, 0.78, 0.20, 0.09, -0.6),  # tip of the nose
    (0.00, 1.08, 0.35, 0.12, -0.5),  # mouth
    (0.00, 1.55, 0.35, 0.12, 0.4),  # chin
)
_GRID = np.stack(np.meshgrid(np.linspace(-0.95, 0.95, 24), np.linspace(-0.6, 1.6, 28)), -1)
_SCALES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4)
_ANGLES = (-30, -20, -10, 0, 10, 20, 30, 170, 180, 190)  # degrees


@dataclasses.dataclass(frozen=True)
class Alignment:
    """What the mean picture says.

    Attributes:
      verdict: "aligned", "displaced" (all alike, but elsewhere), "not aligned", or "not decided".
      text: the same for people, with what to do.
      shared: share of the images' detail that their mean has, too, in [0, 1].
      eyes: (2, 2) x and y of both eyes as shares of the side, the left one in the picture first
        (for upright faces); None if they were not found.
      mean: (56, 56) float32 gray mean picture.
    """

    verdict: str
    text: str
    shared: float
    eyes: np.ndarray | None
    mean: np.ndarray

    @property
    def is_warning(self) -> bool:
        return self.verdict in ("displaced", "not aligned")


def check_alignment(images: np.ndarray) -> Alignment:
    """Looks whether faces are aligned to insightface's template.

    Args:
      images: (n, S, S, 3) uint8, drawn from all over the data set; a few hundred are enough.
    """
    gray = _small_gray(images)
    mean = gray.mean(axis=0)
    if len(gray) < LEAST_IMAGES:
        text = f"not decided: {len(gray)} images are too few, {LEAST_IMAGES} are needed"
        return Alignment("not decided", text, 0.0, None, mean)
    shared = _shared_detail(gray)
    halves = [find_eyes(gray[half::2].mean(axis=0)) for half in (0, 1)]
    eyes, likeness = find_eyes(mean)
    agree = all(np.abs(found - eyes).max() <= _AGREE for found, _ in halves)
    if shared < _BLURRED:
        text = (
            f"not aligned: the mean of the images has {100 * shared:.1f} % of their detail (some "
            "20 % where faces are aligned). Cut them out by their landmarks, with eyes and mouth "
            "at the same place in all images, or expect poor models"
        )
        return Alignment("not aligned", text, shared, None, mean)
    if shared < _SHARP or likeness < _FACE_LIKE or not agree:
        text = (
            "not decided: the mean picture shows no clear eyes and mouth. The faces differ in pose "
            "or are not well aligned; look at the mean picture and the contact sheets"
        )
        return Alignment("not decided", text, shared, None, mean)
    return _compared(eyes, shared, mean)


def _compared(eyes: np.ndarray, shared: float, mean: np.ndarray) -> Alignment:
    """The verdict for eyes that were found."""

    def off(template: np.ndarray) -> float:
        return float(np.linalg.norm(eyes - template, axis=1).mean())

    (x, y), wanted = eyes.mean(axis=0), TEMPLATE_EYES.mean(axis=0)
    across, down = eyes[1] - eyes[0]
    angle, size = math.degrees(math.atan2(down, across)), math.hypot(across, down) / _DISTANCE
    if off(TEMPLATE_EYES) <= _OFF and abs(angle) <= _TURNED and abs(math.log(size)) <= _SIZED:
        text = (
            "aligned: the mean eyes are "
            f"{100 * off(TEMPLATE_EYES):.1f} % of the side from those of insightface's template"
        )
        return Alignment("aligned", text, shared, eyes, mean)
    parts = [
        f"{100 * abs(d):.0f} % of the side too far {way}"
        for d, way in (
            (x - wanted[0], "right" if x > wanted[0] else "left"),
            (y - wanted[1], "down" if y > wanted[1] else "up"),
        )
        if abs(d) > 0.02
    ]
    parts += [f"{size:.2f} times as far apart"] if abs(math.log(size)) > _SIZED else []
    parts += [f"turned by {angle:.0f} degrees"] if abs(angle) > _TURNED else []
    text = (
        "displaced: the faces lie alike, but other than in insightface's template for 112 x 112 "
        f"pixels: eyes {', '.join(parts) or 'elsewhere'}. A pretrained model or a verification set "
        "may expect that template"
    )
    if off(_OF_96) <= _OFF:
        text += "; they fit its template for 96 x 112, which is 8 pixels further left"
    return Alignment("displaced", text, shared, eyes, mean)


def _small_gray(images: np.ndarray) -> np.ndarray:
    """(n, 56, 56) float32."""
    gray = images.mean(axis=-1, dtype=np.float32)
    if gray.shape[1] == SIDE:
        return gray
    if gray.shape[1] % SIDE == 0:
        k = gray.shape[1] // SIDE
        return gray.reshape(len(gray), SIDE, k, SIDE, k).mean(axis=(2, 4))
    zoom = SIDE / gray.shape[1]
    return ndimage.zoom(gray, (1, zoom, zoom), order=1, grid_mode=True, mode="nearest")


def _detail(pictures: np.ndarray) -> np.ndarray:
    """Pictures (..., 56, 56) without what is blurred anyway."""
    blur = [0.0] * (pictures.ndim - 2) + [_BLUR, _BLUR]
    return pictures - ndimage.gaussian_filter(pictures, blur)


def _shared_detail(gray: np.ndarray) -> float:
    inner = slice(_BORDER, SIDE - _BORDER)
    every = _detail(gray)[:, inner, inner].var(axis=(1, 2)).mean()
    mean = _detail(gray.mean(axis=0))[inner, inner].var()
    # Of n images that share nothing, the mean has one n-th of the variance.
    return float(max(mean - every / len(gray), 0.0) / max(every, 1e-6))


def _drawing(grid: np.ndarray) -> np.ndarray:
    """The drawing on the (h, w, 2) points of a grid: (h w,) of mean 0 and length 1."""
    x, y = grid[..., 0], grid[..., 1]
    drawn = sum(
        b * np.exp(-(((x - cx) / wide) ** 2 + ((y - cy) / high) ** 2) / 2)
        for cx, cy, wide, high, b in _DRAWN
    )
    flat = np.ravel(drawn - np.mean(drawn))
    return flat / np.linalg.norm(flat)


def find_eyes(mean: np.ndarray) -> tuple[np.ndarray, float]:
    """Moves the drawing over a mean picture.

    Args:
      mean: (56, 56) gray.

    Returns:
      ((2, 2) places of the eyes as shares of the side, correlation with the drawing there).
    """
    detail = _detail(mean)
    places = np.arange(0.26, 0.75, 0.04)
    tried = np.array(
        [
            (x, y, scale, angle)
            for angle in _ANGLES
            for scale in _SCALES
            for y in places
            for x in places
        ]
    )
    scores = _likeness(detail, _GRID[::2, ::2], tried)
    upright = np.abs(tried[:, 3]) < 90
    # Upside down, forehead and hair look a little like cheeks and a mouth: both are looked into.
    ends = [_refined(detail, tried[rows][np.argmax(scores[rows])]) for rows in (upright, ~upright)]
    best, score = max(ends, key=lambda end: end[1])
    _, _, scale, angle = best
    turn = math.radians(angle)
    half = 0.5 * scale * _DISTANCE * np.array([math.cos(turn), math.sin(turn)])
    return np.stack([best[:2] - half, best[:2] + half]), score


def _refined(detail: np.ndarray, best: np.ndarray) -> tuple[np.ndarray, float]:
    """The best pose near another one, and its correlation."""
    signs = np.stack(np.meshgrid(*[[-1, 0, 1]] * 4), axis=-1).reshape(-1, 4)
    for step in (0.02, 0.01, 0.005):
        for _ in range(4):
            near = best + step * signs * [1, 1, 2, 150]
            best, before = near[np.argmax(_likeness(detail, _GRID, near))], best
            if np.array_equal(best, before):
                break
    return best, float(_likeness(detail, _GRID, best[None])[0])


def _likeness(detail: np.ndarray, grid: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """(n,) correlations of the drawing with the picture, for (n, 4) poses (x, y, scale, angle)."""
    found, drawing = np.empty(len(poses)), _drawing(grid)
    for start in range(0, len(poses), 1024):
        x, y, scale, angle = poses[start : start + 1024].T[..., None]
        u, v = scale * _DISTANCE * grid.reshape(-1, 2).T[:, None]
        cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        across = SIDE * (x + u * cos - v * sin) - 0.5
        down = SIDE * (y + u * sin + v * cos) - 0.5
        seen = ndimage.map_coordinates(detail, [down, across], order=1, mode="constant")
        seen = seen - seen.mean(axis=1, keepdims=True)
        length = np.linalg.norm(seen, axis=1)
        found[start : start + 1024] = seen @ drawing / np.maximum(length, 1e-6)
    return found
