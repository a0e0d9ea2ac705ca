"""One folder per identity."""

import numpy as np
import pytest
from absl import logging
from PIL import Image

from fedfr_jax.data import open_source
from fedfr_jax.data.folder import open_folder
from fedfr_jax.errors import InputError
from fedfr_jax.settings import DataConfig


def flat(colour, size=(20, 20)):
    return Image.new("RGB", size, colour)


@pytest.fixture(name="warnings")
def fixture_warnings(monkeypatch):
    caught = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: caught.append(text % args))
    return caught


@pytest.fixture(name="tree")
def fixture_tree(tmp_path):
    root = tmp_path / "faces"
    for person in ("zoe", "adam", "mia"):
        (root / person).mkdir(parents=True)
    flat((200, 0, 0)).save(root / "zoe" / "2.PNG")
    flat((100, 0, 0), (40, 30)).save(root / "zoe" / "1.jpg", quality=100)
    flat((0, 200, 0)).save(root / "adam" / "a.bmp")
    flat((0, 100, 0)).save(root / "adam" / "b.webp", lossless=True)
    flat((0, 0, 200)).convert("L").save(root / "mia" / "only.jpeg")
    (root / "mia" / "notes.txt").write_text("not an image")
    return root


def test_labels_names_and_pixels(tree, warnings):
    source = open_source(DataConfig(source="folder", root=str(tree), image_size=16))
    assert source.identity_names == ("adam", "mia", "zoe")
    assert source.labels.tolist() == [0, 0, 1, 2, 2]
    assert source.labels.dtype == np.int64
    assert source.image_size == 16
    images = source.read(np.arange(5))
    assert images.shape == (5, 16, 16, 3)
    assert images.dtype == np.uint8
    expected = [(0, 200, 0), (0, 100, 0), (23, 23, 23), (100, 0, 0), (200, 0, 0)]
    for image, colour in zip(images, expected, strict=True):
        assert np.abs(image.astype(int) - colour).max() <= 2
    np.testing.assert_array_equal(source.read(np.array([4, 0])), images[[4, 0]])
    assert warnings == []


def test_empty_folders_and_stray_images_are_counted(tree, warnings):
    (tree / "bob").mkdir()
    (tree / "carl" / "inner").mkdir(parents=True)
    flat((1, 2, 3)).save(tree / "stray.png")
    source = open_folder(tree, 16)
    assert source.identity_names == ("adam", "mia", "zoe")
    assert len(warnings) == 2
    assert "2 of 5 identity folders" in warnings[0]
    assert "1 images outside" in warnings[1]


@pytest.mark.parametrize("litter", [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".git"])
def test_hidden_folders_and_files_are_no_people(tree, warnings, litter):
    for folder in (tree / litter, tree / "mia" / litter):
        folder.mkdir()
        flat((1, 2, 3)).save(folder / "x.png")
    (tree / "mia" / "._only.jpeg").write_bytes(b"\0\5\26\7 of a Macintosh")
    source = open_folder(tree, 16)
    assert source.identity_names == ("adam", "mia", "zoe")
    assert source.labels.tolist() == [0, 0, 1, 2, 2]
    assert warnings == []


def test_other_formats_and_deeper_folders_are_reported(tree, warnings):
    (tree / "zoe" / "2020" / "may").mkdir(parents=True)
    flat((1, 2, 3)).save(tree / "zoe" / "2020" / "may" / "x.png")
    flat((1, 2, 3)).save(tree / "zoe" / "scan.TIF")
    flat((7, 7, 7)).save(tree / "zoe" / "3.jfif", "JPEG")
    source = open_folder(tree, 16)
    assert source.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert len(warnings) == 2
    assert "1 images in folders within" in warnings[0] and "may/x.png" in warnings[0]
    assert "1 images are neither" in warnings[1] and "scan.TIF" in warnings[1]


def test_people_a_level_too_deep_are_reported(tmp_path):
    (tmp_path / "train" / "adam").mkdir(parents=True)
    flat((1, 2, 3)).save(tmp_path / "train" / "adam" / "x.png")
    with pytest.raises(InputError, match=r"no images.*1 images in folders within"):
        open_folder(tmp_path, 16)


def test_transparency_palettes_and_orientation(tmp_path):
    person = tmp_path / "p"
    person.mkdir()
    flat((9, 9, 9)).convert("RGBA").save(person / "a.png")
    flat((9, 9, 9)).quantize(4).save(person / "b.png")
    turned = Image.new("RGB", (20, 20), (0, 0, 0))
    turned.paste((255, 255, 255), (0, 0, 10, 20))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left becomes top
    turned.save(person / "c.png", exif=exif)
    images = open_folder(tmp_path, 20).read(np.arange(3))
    assert (images[:2] == 9).all()
    assert images[2, 2].mean() == 255
    assert images[2, -3].mean() == 0


def test_damaged_image_is_named(tree):
    (tree / "mia" / "zz.png").write_bytes(b"\x89PNG but no more")
    source = open_folder(tree, 16)
    assert source.read(np.array([0])).shape[0] == 1
    with pytest.raises(InputError, match=r"mia/zz\.png"):
        source.read(np.arange(6))
    Image.new("RGB", (8, 8)).save(tree / "mia" / "zz.png", "GIF")
    with pytest.raises(InputError, match=r"zz\.png.*none of JPEG, PNG, BMP, WEBP"):
        source.read(np.array([3]))
    (tree / "mia" / "zz.png").unlink()
    with pytest.raises(InputError, match=r"zz\.png"):
        source.read(np.array([3]))


def test_nothing_to_read(tmp_path, tree):
    with pytest.raises(InputError, match=r"data\.root: empty"):
        open_source(DataConfig(source="folder"))
    with pytest.raises(InputError, match="not a folder"):
        open_folder(tmp_path / "absent", 16)
    with pytest.raises(InputError, match="no images"):
        open_folder(tmp_path, 16)
    flat((1, 1, 1)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="1 images outside"):
        open_folder(tmp_path, 16)
