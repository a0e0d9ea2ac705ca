"""Images made harder, for everybody or client by client."""

import dataclasses

import numpy as np
import pytest

from fedfr_jax.config import resolve
from fedfr_jax.data import degrade as degrade_module
from fedfr_jax.data.degrade import Camera, camera_of, degrade, degraded, degraded_pairs
from fedfr_jax.data.split import make_split
from fedfr_jax.data.types import ImageSource
from fedfr_jax.errors import ConfigError
from fedfr_jax.settings import DEGRADATIONS, DegradeConfig, SplitConfig


def face(seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 216, (4, 4, 3))
    return np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_a_stronger_degradation_leaves_less_of_an_image(name):
    image, cast = face(), (0.4, -0.2, 0.1, 0.3)
    before = image.copy()
    far = [
        np.abs(
            degrade(image, Camera(**{name: strength}, cast=cast), np.random.default_rng(1)).astype(
                float
            )
            - image
        ).mean()
        for strength in (0.0, 0.3, 0.9)
    ]
    assert far[0] == 0 < far[1] < far[2]
    np.testing.assert_array_equal(image, before)


def test_low_light_keeps_the_brightness():
    image = np.full((64, 64, 3), 120, np.uint8)
    dark = degrade(image, Camera(low_light=0.85), np.random.default_rng(0)).astype(float)
    assert abs(dark.mean() - 120) < 1.5 and 10 < dark.std() < 40


def test_cameras_differ_between_clients_where_they_are_drawn():
    drawn = DegradeConfig(blur=0.4, jpeg=0.9, per_client=True)
    cameras = [camera_of(drawn, 3, client) for client in range(400)]
    assert cameras[:5] == [camera_of(drawn, 3, client) for client in range(5)]
    strengths = np.array([(c.blur, c.jpeg) for c in cameras])
    assert strengths.max() <= 1 and abs(strengths[:, 0].mean() - 0.4) < 0.05
    assert all(c.low_light == 0 for c in cameras)
    assert camera_of(drawn, 3, -1).blur == 0.4
    fixed = dataclasses.replace(drawn, per_client=False)
    assert camera_of(fixed, 3, 0) == camera_of(fixed, 3, 7) == camera_of(fixed, 3, -1)


def source_and_split():
    labels = np.repeat(np.arange(12), 8).astype(np.int32)
    source = ImageSource(
        "made up",
        labels,
        32,
        lambda n: np.stack([face(i) for i in n]),
        [f"p{i}" for i in range(12)],
    )
    split = make_split(
        labels,
        2,
        SplitConfig(
            identities_per_client=(2, 2),
            verification_images=2,
            held_out_identities=2,
            held_out_pairs=10,
        ),
        0,
    )
    return source, split


def test_an_image_looks_the_same_whenever_it_is_read():
    source, split = source_and_split()
    hard = degraded(source, DegradeConfig(low_light=0.8, occlusion=0.2), 5, split.clients)
    numbers = np.array([40, 3, 17])
    together = hard.read(numbers)
    for number, image in zip(numbers, together, strict=True):
        np.testing.assert_array_equal(hard.read(np.array([number]))[0], image)
    assert (together != source.read(numbers)).any(axis=(1, 2, 3)).all()
    other = degraded(source, DegradeConfig(low_light=0.8, occlusion=0.2), 6, split.clients)
    assert (other.read(numbers) != together).any()
    assert degraded(source, DegradeConfig(), 5, split.clients) is source


def test_images_are_read_in_parts(monkeypatch):
    source, split = source_and_split()
    read = degraded(source, DegradeConfig(blur=0.5), 5, split.clients).read
    numbers = np.array([40, 3, 17, 3, 90, 2, 1])
    whole = read(numbers)
    for images in (1, 3, 7):
        monkeypatch.setattr(degrade_module, "_PART", images)
        np.testing.assert_array_equal(read(numbers), whole)
    assert read(numbers[:0]).shape == (0, 32, 32, 3)


def test_public_people_may_keep_their_images():
    source, split = source_and_split()
    hard = degraded(source, DegradeConfig(blur=1.0, public=False), 5, split.clients)
    np.testing.assert_array_equal(hard.read(split.public_images), source.read(split.public_images))
    for client in split.clients:
        for numbers in (client.train_images, client.verification_images):
            changed = hard.read(numbers) != source.read(numbers)
            assert changed.any(axis=(1, 2, 3)).all()


def test_settings_of_it_are_checked():
    with pytest.raises(ConfigError, match=r"data\.degrade\.blur is 1\.5"):
        resolve({"data": {"degrade": {"blur": 1.5}}})
    with pytest.raises(ConfigError, match=r"data\.images is 'render'"):
        resolve({"data": {"images": "render", "degrade": {"jpeg": 0.5}}})


def test_pairs_from_a_file_are_degraded_like_public_people():
    images = np.stack([face(0), face(0), face(1)])
    dark = DegradeConfig(low_light=0.9)
    seen = degraded_pairs(images, dark, 3)
    assert seen.shape == images.shape and (seen != images).any(axis=(1, 2, 3)).all()
    assert (seen[0] != seen[1]).any()  # noise of its own
    np.testing.assert_array_equal(seen, degraded_pairs(images, dark, 3))
    spared = dataclasses.replace(dark, public=False)
    np.testing.assert_array_equal(degraded_pairs(images, spared, 3), images)
