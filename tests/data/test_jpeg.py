"""The fast path for JPEGs: the same pixels as Pillow's, and nothing that it should not take."""

import io

import numpy as np
import pytest
from PIL import Image

from fedfr_jax.data import decode, jpeg

pytest.importorskip("simplejpeg")

SIZE = 33


def picture(mode="RGB", size=SIZE) -> Image.Image:
    """Something smooth with noise on it, so that all coefficients count."""
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.linspace(0, 120, size), np.linspace(0, 90, size))[..., None]
    noisy = smooth + rng.integers(0, 46, (size, size, 3))
    return Image.fromarray(noisy.astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def by_pillow(blob: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(blob)).convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [5, 60, 98])
def test_the_pixels_are_those_of_pillow(mode, progressive, subsampling, quality):
    options = {"progressive": progressive, "subsampling": subsampling, "quality": quality}
    blob = encoded(picture(mode), **options)
    np.testing.assert_array_equal(jpeg.decode_usual(blob, SIZE), by_pillow(blob))
    np.testing.assert_array_equal(decode.decode_image(blob, SIZE), by_pillow(blob))


def test_what_needs_more_than_decoding_is_left_to_pillow():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = encoded(picture(), exif=exif)
    assert jpeg.decode_usual(turned, SIZE) is None
    upright = decode.decode_image(turned, SIZE)
    np.testing.assert_array_equal(upright, by_pillow(turned).swapaxes(0, 1)[:, ::-1])

    assert jpeg.decode_usual(encoded(picture("CMYK")), SIZE) is None
    assert jpeg.decode_usual(encoded(picture()), SIZE + 1) is None
    file = io.BytesIO()
    picture().save(file, "PNG")
    assert jpeg.decode_usual(file.getvalue(), SIZE) is None


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_file_is_still_an_error(share):
    blob = encoded(picture(size=64), quality=90)
    cut = blob[: int(share * len(blob))]
    assert jpeg.decode_usual(cut, 64) is None
    with pytest.raises(OSError, match=r"(?i)truncated"):
        decode.decode_image(cut, 64)


def test_the_limit_of_sizes_holds():
    with pytest.raises(ValueError, match="max_megapixels"):
        decode.decode_image(encoded(picture()), SIZE, max_megapixels=1e-4)


def test_pillow_alone_gives_the_same(monkeypatch):
    blob = encoded(picture())
    expected = decode.decode_image(blob, SIZE)
    monkeypatch.setattr(jpeg, "_decoder", lambda: None)
    assert jpeg.decode_usual(blob, SIZE) is None
    np.testing.assert_array_equal(decode.decode_image(blob, SIZE), expected)
