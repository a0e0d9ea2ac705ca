"""The pictures of a report: a sheet of faces, and pairs of images with their captions."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from fedfr_jax.errors import InputError

_SHEET_PIXELS = 1_500_000  # of the contact sheet; larger ones are scaled down
PAIRS = 60  # most pairs of a kind that are shown, so that the file stays small
_PAIR_SIDE = 160  # pixels; larger images of a pair are scaled down


def checked_image(image: Any, what: str) -> np.ndarray:
    """An image as an array; InputError, which says ``what`` it is, if not (S, S, 3) uint8."""
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise InputError(
            f"{what} is {array.dtype} of shape {array.shape}; the report takes "
            "images of shape (height, width, 3) uint8"
        )
    return array


def jpeg(image: np.ndarray) -> str:
    """An image as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=86, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def contact_sheet(faces: np.ndarray) -> np.ndarray:
    """(rows, cols, S, S, 3) to one image with light seams."""
    rows, cols, high, wide = faces.shape[:4]
    seam = max(1, high // 32)
    sheet = np.full((rows * (high + seam) - seam, cols * (wide + seam) - seam, 3), 235, np.uint8)
    for row in range(rows):
        for col in range(cols):
            y, x = row * (high + seam), col * (wide + seam)
            sheet[y : y + high, x : x + wide] = faces[row, col]
    scale = math.sqrt(_SHEET_PIXELS / (sheet.shape[0] * sheet.shape[1]))
    return _resized(sheet, scale) if scale < 1 else sheet


def _resized(image: np.ndarray, scale: float) -> np.ndarray:
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.LANCZOS)
    )


def _pair(first: Any, second: Any, what: str) -> tuple[str, str]:
    uris = []
    for image in (first, second):
        array = checked_image(image, what)
        scale = _PAIR_SIDE / max(array.shape[:2])
        uris.append(jpeg(_resized(array, scale) if scale < 1 else array))
    return uris[0], uris[1]


def _number(value: Any, form: str) -> str:
    return "–" if value is None or not math.isfinite(value) else format(float(value), form)


def hard_negative_cards(examples: Sequence[Mapping]) -> list[dict[str, Any]]:
    """Pairs of a client's and a public image, as the page shows them."""
    return [
        {
            "images": _pair(item["local_image"], item["public_image"], "a hard negative"),
            "alts": ("image of the client", "public image"),
            "head": f"client {item['client']}",
            "text": f"cosine {_number(item['cosine'], '.3f')}",
        }
        for item in examples[:PAIRS]
    ]


def mistake_cards(examples: Sequence[Mapping]) -> dict[str, list[dict[str, Any]]]:
    """Kind of mistake -> pairs of images, as the page shows them."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for item in examples:
        cards = groups.setdefault(f"{item['kind']}s", [])
        if len(cards) < PAIRS:
            cards.append(
                {
                    "images": _pair(item["image_a"], item["image_b"], "a mistake"),
                    "alts": ("first image of the pair", "second image of the pair"),
                    "head": f"{item['model']}, client {item['client']}",
                    "text": f"score {_number(item['score'], '.3f')}; "
                    f"threshold {_number(item['threshold'], '.3f')}",
                }
            )
    return groups
