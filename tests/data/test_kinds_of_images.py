"""What users' images look like: each kind is read with the right values, or refused by name."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from absl import logging
from PIL import Image

from fedfr_jax.data.decode import decode_images
from fedfr_jax.data.folder import open_folder
from fedfr_jax.errors import InputError

SIDE = 24
_Y, _X = np.mgrid[:SIDE, :SIDE]
# No symmetry: each turn and mirror image of it is another image.
RGB = np.stack([10 * _X, 6 * _Y + 2 * _X, 250 - 10 * _Y], axis=-1).astype(np.uint8)
GRAY = (4 * _X + 6 * _Y).astype(np.uint8)
# The 8 orientations of EXIF: what has to be done to the stored pixels.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


def file_of(image, kind="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def repeated(gray):
    return np.repeat(np.asarray(gray)[..., None], 3, axis=-1)


def png_16_bit_colour(values):
    """Pillow writes no such file."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    high, wide = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", wide, high, 16, 2, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", head),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def blended(alpha):
    """RGB on black."""
    return (RGB * (alpha[..., None] / 255)).round()


ALPHA = (10 * _Y).astype(np.uint8)
WIDE = (_X * 2749).astype(np.uint16)  # up to 63,227
PALETTE = Image.fromarray(RGB).quantize(200)
HALF = np.where(_X < SIDE // 2, 255, 0).astype(np.uint8)


def cases():
    """Name -> (file, pixels, tolerance)."""
    found = {
        "png": (file_of(RGB), RGB, 0),
        "bmp": (file_of(RGB, "BMP"), RGB, 0),
        "webp": (file_of(RGB, "WEBP", lossless=True), RGB, 0),
        "lossy webp": (file_of(RGB, "WEBP", quality=95), RGB, 12),
        "jpeg": (file_of(RGB, "JPEG", quality=100, subsampling=0), RGB, 3),
        "progressive jpeg": (
            file_of(RGB, "JPEG", quality=100, subsampling=0, progressive=1),
            RGB,
            3,
        ),
        "gray png": (file_of(GRAY), repeated(GRAY), 0),
        "gray jpeg": (file_of(GRAY, "JPEG", quality=100), repeated(GRAY), 2),
        "gray bmp": (file_of(GRAY, "BMP"), repeated(GRAY), 0),
        "black and white": (file_of(Image.fromarray(HALF).convert("1")), repeated(HALF), 0),
        "palette": (file_of(PALETTE), np.asarray(PALETTE.convert("RGB")), 0),
        "palette bmp": (file_of(PALETTE, "BMP"), np.asarray(PALETTE.convert("RGB")), 0),
        "cmyk": (
            file_of(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=100, subsampling=0),
            RGB,
            4,
        ),
        "16-bit gray": (file_of(WIDE), repeated((WIDE / 257).round()), 0),
        "16-bit colour": (png_16_bit_colour(RGB.astype(np.uint16) * 257), RGB, 0),
        "alpha": (file_of(np.dstack([RGB, ALPHA])), blended(ALPHA), 1),
        "alpha webp": (
            file_of(np.dstack([RGB, ALPHA]), "WEBP", lossless=True, exact=True),
            blended(ALPHA),
            1,
        ),
        "gray and alpha": (
            file_of(np.dstack([GRAY, ALPHA])),
            repeated((GRAY * (ALPHA / 255)).round()),
            1,
        ),
        "one colour transparent": (
            file_of(HALF, transparency=255),
            np.zeros((SIDE, SIDE, 3)),
            0,
        ),
        "palette with transparency": (
            file_of(Image.fromarray(HALF).convert("P"), transparency=255),
            np.zeros((SIDE, SIDE, 3)),
            0,
        ),
        "16-bit, one value transparent": (
            file_of(WIDE, transparency=2749),
            repeated(np.where(WIDE == 2749, 0, (WIDE / 257).round())),
            0,
        ),
        "moving webp": (
            file_of(
                Image.fromarray(RGB),
                "WEBP",
                save_all=True,
                append_images=[Image.fromarray(255 - RGB)],
                lossless=True,
            ),
            RGB,
            0,
        ),
    }
    for number, turn in UPRIGHT.items():
        found[f"exif {number} png"] = (file_of(RGB, exif=exif(number)), turn(RGB), 0)
        found[f"exif {number} jpeg"] = (
            file_of(RGB, "JPEG", quality=100, subsampling=0, exif=exif(number)),
            turn(RGB),
            3,
        )
    found["exif 6 webp"] = (
        file_of(RGB, "WEBP", lossless=True, exif=exif(6)),
        UPRIGHT[6](RGB),
        0,
    )
    return found


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_pixels(name):
    blob, expected, tolerance = CASES[name]
    [image] = decode_images([blob], SIDE)
    assert np.abs(image - np.asarray(expected, float)).max() <= tolerance


@pytest.mark.parametrize("name", ["exif 6 jpeg", "alpha", "16-bit gray", "cmyk", "palette"])
def test_other_sizes_are_resized_after_conversion(name):
    blob, expected, _ = CASES[name]
    whole = Image.fromarray(np.asarray(expected, np.uint8)).resize(
        (9, 9), Image.Resampling.BILINEAR
    )
    [image] = decode_images([blob], 9)
    assert np.abs(image - np.asarray(whole, float)).max() <= 5


def test_a_file_that_is_not_square_is_stretched():
    tall = file_of(np.repeat(RGB, 2, axis=0))
    [image] = decode_images([tall], SIDE)
    assert np.abs(image - RGB.astype(float)).max() <= 6


REFUSED = {
    "empty": (b"", "it is empty"),
    "text": (b"no image at all", "none of JPEG, PNG, BMP, WEBP"),
    "a gif": (file_of(RGB, "GIF"), "none of JPEG, PNG, BMP, WEBP"),
    "a tiff of 32 bits": (file_of(GRAY.astype(np.float32), "TIFF"), "none of JPEG, PNG, BMP, WEBP"),
    "cut off": (CASES["jpeg"][0][:300], "Truncated"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name, tmp_path):
    blob, message = REFUSED[name]
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "x y.jpg").write_bytes(blob)
    with pytest.raises(InputError, match=message) as caught:
        open_folder(tmp_path, SIDE).read(np.array([0]))
    assert "x y.jpg" in str(caught.value) and "0x" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def image_into(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(CASES["png"][0])


def test_names_and_links(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: warnings.append(text % args))
    root, elsewhere = tmp_path / "faces", tmp_path / "elsewhere"
    image_into(root / "Zoë Ünal 王", "ä b.PNG", "c.Jpeg", ".hidden.png", "Thumbs.db")
    image_into(elsewhere, "real.png")
    image_into(root / "adam", "a.png")
    (root / "linked").symlink_to(elsewhere)
    (root / "adam" / "link.png").symlink_to(elsewhere / "real.png")
    (root / "adam" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "adam" / "itself.png").symlink_to(root / "adam" / "itself.png")
    (root / "circle").symlink_to(root / "circle")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    (root / "adam" / "up").symlink_to(root)  # a folder that holds itself
    (root / "round").symlink_to(root)
    os.mkfifo(root / "adam" / "pipe.png")
    (root / "empty").mkdir()
    source = open_folder(root, SIDE)
    assert source.identity_names == ("Zoë Ünal 王", "adam", "linked")
    assert source.labels.tolist() == [0, 0, 1, 1, 2]
    assert (source.read(np.arange(5)) == RGB).all()
    [broken] = [w for w in warnings if "lead to no file" in w]
    assert "7 names" in broken  # 2 people, 2 images, 1 pipe; the 2 people again through "round"
    assert any("2 of 5 identity folders" in w for w in warnings)  # empty, round


def test_names_that_are_no_utf8_can_be_printed(tmp_path):
    person = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        os.mkdir(person)
    except OSError:
        pytest.skip("this file system allows only UTF-8")
    with open(person + b"/\xff.png", "wb") as file:
        file.write(b"damaged")
    source = open_folder(tmp_path, SIDE)
    assert source.identity_names == ("caf\\xe9",)
    with pytest.raises(InputError) as caught:
        source.read(np.array([0]))
    assert "\\xff.png" in str(caught.value).encode().decode()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    image_into(tmp_path / "adam", "a.png")
    (tmp_path / "adam").chmod(0)
    try:
        with pytest.raises(InputError, match=r"adam: cannot be listed"):
            open_folder(tmp_path, SIDE)
    finally:
        (tmp_path / "adam").chmod(0o700)
