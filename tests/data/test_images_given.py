"""Images that a caller hands over."""

import numpy as np
import pytest

from fedfr_jax.data.types import as_images
from fedfr_jax.errors import InputError

GOOD = np.zeros((2, 8, 8, 3), np.uint8)


def test_good_images_pass():
    assert as_images(GOOD, 8) is GOOD
    assert as_images(list(GOOD), 8).shape == GOOD.shape


@pytest.mark.parametrize(
    ("images", "advice"),
    [
        (GOOD / 255.0, r"255 \* x"),
        (GOOD.astype(np.int64), "uint8"),
        (GOOD[0], r"images\[None\]"),
        (GOOD[0, ..., 0], "gray"),
        (GOOD[..., 0], "gray"),
        (GOOD[..., :1], "gray"),
        (GOOD[:, :4], "resize them to 8 x 8"),
        (GOOD.transpose(0, 3, 1, 2), "channels last"),
        (np.zeros((2, 8, 8, 4), np.uint8), "RGB"),
        (GOOD[:0], "at least one"),
        (None, "uint8"),
        ([GOOD[0], GOOD[0, :4]], "resize"),
    ],
)
def test_other_images_are_refused_with_advice(images, advice):
    with pytest.raises(InputError, match=f"images.*{advice}"):
        as_images(images, 8)
