"""Damaged images are found before training, without decoding what is whole."""

import io

import numpy as np
import pytest
from PIL import Image
from small import settings

from fedfr_jax.data import decode
from fedfr_jax.data.folder import open_folder
from fedfr_jax.data.recordio import open_recordio
from fedfr_jax.data.recordio_format import write_recordio
from fedfr_jax.errors import InputError
from fedfr_jax.runtime.simulation import build_simulation

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)


def encoded(kind, **options):
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, kind, **options)
    return out.getvalue()


def with_thumbnail():
    exif = Image.Exif()
    exif[0x010E] = b"\xff\xd8\xff\xda" + b"x" * 20 + b"\xff\xd9"
    return encoded("JPEG", exif=exif)


WHOLE = {
    "jpeg": encoded("JPEG"),
    "progressive": encoded("JPEG", progressive=True),
    "thumbnail": with_thumbnail(),
    "png": encoded("PNG"),
    "bmp": encoded("BMP"),
    "webp": encoded("WEBP"),
    "trailing": encoded("JPEG") + b"\0" * 9,
}


def fails(function, *arguments):
    try:
        function(*arguments)
    except Exception:
        return True
    return False


@pytest.mark.parametrize("kind", WHOLE)
def test_a_cut_off_image_is_found(kind):
    blob = WHOLE[kind]
    assert not fails(decode.check_image, blob)
    for end in range(0, len(blob), max(1, len(blob) // 60)):
        if fails(decode.decode_image, blob[:end], 8):
            assert fails(decode.check_image, blob[:end]), end


def test_a_changed_byte_of_a_png_is_found():
    blob = WHOLE["png"]
    for at in range(60, len(blob) - 20, 97):
        assert fails(decode.check_image, blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :])


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png", "webp"])
def test_what_is_whole_is_not_decoded(kind, monkeypatch):
    monkeypatch.setattr(decode, "decode_image", None)
    decode.check_image(WHOLE[kind])


def test_what_cannot_be_used_is_found_too():
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "GIF")
    for blob, message in (
        (out.getvalue(), "none of JPEG, PNG, BMP, WEBP"),
        (b"", "empty"),
        (WHOLE["png"], "max_megapixels"),
    ):
        with pytest.raises(InputError, match=f"image 0: .*{message}"):
            decode.check_lazily([blob].__getitem__, 1, max_megapixels=1e-4)


def test_sources_name_the_damaged_image(tmp_path):
    blobs = [WHOLE["jpeg"], WHOLE["jpeg"], WHOLE["jpeg"][:-40]]
    (tmp_path / "p").mkdir()
    for i, blob in enumerate(blobs):
        (tmp_path / "p" / f"{i}.jpg").write_bytes(blob)
    write_recordio(tmp_path, blobs, np.zeros(3, int), image_size=24)
    for source, name in (
        (open_folder(tmp_path, 16), r"p/2\.jpg"),
        (open_recordio(tmp_path, 16), "record key 3"),
    ):
        source.check(np.array([1, 0]))
        with pytest.raises(InputError, match=name):
            source.check(np.arange(3))


@pytest.mark.parametrize(
    "images, which",
    [
        ("stream", lambda split: split.clients[0].train_images),
        ("resident", lambda split: split.clients[1].verification_images),
        ("resident", lambda split: split.pairs[3]),
    ],
    ids=["streamed", "test", "held out"],
)
def test_damage_in_what_is_read_later_is_found_before_training(tmp_path, images, which):
    rng = np.random.default_rng(1)
    for person in range(40):
        (tmp_path / f"p{person:02d}").mkdir()
        for k in range(8):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
                tmp_path / f"p{person:02d}" / f"{k}.png"
            )
    config = settings(data={"source": "folder", "root": str(tmp_path), "images": images})
    number = int(which(build_simulation(config).split)[0])
    path = tmp_path / f"p{number // 8:02d}" / f"{number % 8}.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=path.name):
        build_simulation(config)
