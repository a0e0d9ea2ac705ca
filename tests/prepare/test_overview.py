"""``--describe``: tables, plots, contact sheets."""

import re

import numpy as np
import pytest
from PIL import Image

from fedfr_jax.config import resolve
from fedfr_jax.data.folder import open_folder
from fedfr_jax.errors import InputError
from fedfr_jax.prepare.overview import overview


@pytest.fixture(name="faces")
def fixture_faces(tmp_path):
    rng = np.random.default_rng(0)
    for person in range(12):
        folder = tmp_path / "faces" / f"p{person:02d}"
        folder.mkdir(parents=True)
        for k in range(3 + person % 4):
            image = rng.integers(0, 256, (20 + k, 24, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / f"{k}.{('png', 'jpg')[k % 2]}")
    return tmp_path / "faces"


def settings(root):
    split = {
        "client_fraction": 0.5,
        "identities_per_client": (2, 2),
        "verification_images": 1,
        "held_out_identities": 3,
        "held_out_pairs": 10,
    }
    data = {"source": "folder", "root": str(root), "image_size": 16, "split": split}
    return resolve({"data": data, "fed": {"num_clients": 2, "batch_size": 2}})


def test_a_divided_data_set(faces, tmp_path, capsys):
    config = settings(faces)
    found = overview(config, open_folder(faces, 16), tmp_path / "out")
    text = " ".join(capsys.readouterr().out.split())
    assert "54 images of 12 people" in text and "PNG 56 %, JPEG 44 %" in text
    assert re.search(r"height of 54 images │ 20 │ [ │\d]*│ 25 │", text)
    for shown in ("How the clients differ", "people: clients and public", "alignment of 54"):
        assert shown in text
    assert found.verdict == "not aligned"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "clients.png",
        "image-sizes.png",
        "images-per-person.png",
        "mean.png",
        "client-0.png",
        "client-1.png",
    }


def test_a_contact_sheet_shows_the_images_of_each_person(faces, tmp_path):
    source = open_folder(faces, 16)
    overview(settings(faces), source, tmp_path / "out", divided=False, sheets=1)
    sheet = np.asarray(Image.open(tmp_path / "out" / "people-0.png"))
    counts = np.bincount(source.labels)[:8]
    assert sheet.shape == (8 * 17 - 1, counts.max() * 17 - 1, 3)  # a seam of 1 pixel
    for person, count in enumerate(counts):
        for k in range(counts.max()):
            shown = sheet[17 * person :, 17 * k :][:16, :16]
            if k < count:
                number = int(counts[:person].sum()) + k
                np.testing.assert_array_equal(shown, source.read(np.array([number]))[0])
            else:
                assert (shown == 255).all()


def test_a_damaged_image_is_named(faces):
    (faces / "p03" / "0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"p03/0\.png"):
        overview(settings(faces), open_folder(faces, 16), divided=False)
