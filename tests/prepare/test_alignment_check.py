"""Aligned faces are told from others by their mean picture."""

import numpy as np
import pytest
from PIL import Image
from small import DATA

from fedfr_jax.data import open_source
from fedfr_jax.data.recordio import open_recordio
from fedfr_jax.data.verification import read_bin
from fedfr_jax.prepare.alignment import (
    _DISTANCE,
    _DRAWN,
    TEMPLATE_EYES,
    check_alignment,
    find_eyes,
)
from fedfr_jax.settings import DataConfig, GeneratedConfig

REAL = DATA / "lfw"
SIDE = 112


def drawn_faces(rng, count, poses):
    """Drawings of faces on noise of their own: (count, 112, 112, 3) uint8."""
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    center = TEMPLATE_EYES.mean(axis=0)
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for image, (right, down, scale, angle) in zip(images, poses, strict=True):
        dx, dy = x - center[0] - right, y - center[1] - down
        turn = np.radians(angle)
        u = (dx * np.cos(turn) + dy * np.sin(turn)) / (scale * _DISTANCE)
        v = (dy * np.cos(turn) - dx * np.sin(turn)) / (scale * _DISTANCE)
        face = sum(
            b * np.exp(-(((u - cx) / wide) ** 2 + ((v - cy) / high) ** 2) / 2)
            for cx, cy, wide, high, b in _DRAWN
        )
        coarse = Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8))
        noise = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float)
        image[:] = np.clip(60 + 0.4 * noise + 40 * face, 0, 255)[..., None]
    return images


def moved(count, right=0.0, down=0.0, scale=1.0, angle=0.0):
    return np.tile([right, down, scale, angle], (count, 1))


@pytest.mark.parametrize(
    ("pose", "said"),
    [
        ({}, "aligned"),
        ({"right": 0.02}, "aligned"),
        ({"right": -0.07}, "7 % of the side too far left"),
        ({"down": 0.1}, "10 % of the side too far down"),
        ({"scale": 0.75}, "times as far apart"),
        ({"angle": 14}, "turned by 1"),
        ({"angle": 180}, "turned by"),
    ],
)
def test_faces_that_lie_alike(pose, said):
    rng = np.random.default_rng(0)
    found = check_alignment(drawn_faces(rng, 60, moved(60, **pose)))
    assert found.verdict == ("aligned" if said == "aligned" else "displaced")
    assert said in found.text
    assert found.is_warning == (said != "aligned")


@pytest.mark.parametrize("pose", [(0.05, -0.03, 1.1, 8.0), (-0.08, 0.06, 0.85, -22.0)])
def test_eyes_are_found_within_a_pixel(pose):
    right, down, scale, angle = pose
    faces = drawn_faces(np.random.default_rng(1), 40, [pose] * 40)
    mean = faces[..., 0].reshape(40, 56, 2, 56, 2).mean(axis=(0, 2, 4))
    eyes, likeness = find_eyes(mean)
    turn = np.radians(angle)
    half = scale * _DISTANCE / 2 * np.array([np.cos(turn), np.sin(turn)])
    center = TEMPLATE_EYES.mean(axis=0) + np.array([right, down])
    assert np.abs(eyes - [center - half, center + half]).max() < 1.2 / 56
    assert likeness > 0.9


def test_faces_all_over_the_place():
    rng = np.random.default_rng(2)
    poses = np.stack(
        [
            rng.uniform(-0.2, 0.2, 200),
            rng.uniform(-0.2, 0.2, 200),
            np.exp(rng.uniform(-0.4, 0.4, 200)),
            rng.uniform(-40, 40, 200),
        ],
        axis=1,
    )
    found = check_alignment(drawn_faces(rng, 200, poses))
    assert found.verdict == "not aligned" and found.is_warning and found.shared < 0.02


def test_no_faces_and_few_faces():
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (100, 40, 40, 3), dtype=np.uint8)
    assert check_alignment(noise).verdict == "not aligned"
    same = np.broadcast_to(noise[:1], noise.shape)  # alike, but nothing like a face
    assert check_alignment(same).verdict == "not decided"
    black = np.zeros_like(noise)
    assert check_alignment(black).verdict == "not aligned"
    few = check_alignment(drawn_faces(rng, 10, moved(10)))
    assert few.verdict == "not decided" and "10 images are too few" in few.text


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_generated_faces_raise_no_alarm(difficulty):
    made = GeneratedConfig(50, (4, 4), difficulty)
    source = open_source(DataConfig(image_size=32, seed=1, generated=made))
    found = check_alignment(source.read(np.arange(200)))
    assert not found.is_warning, found.text


def randomly_moved(images, rng, shift, degrees):
    """Real images, each shifted and turned by another amount, the borders mirrored."""
    pad = ((SIDE // 2, SIDE // 2), (SIDE // 2, SIDE // 2), (0, 0))
    out = []
    for image in images:
        move = rng.uniform(-shift * SIDE, shift * SIDE, 2)
        wide = Image.fromarray(np.pad(image, pad, mode="reflect"))
        turned = wide.rotate(rng.uniform(-degrees, degrees), Image.Resampling.BILINEAR)
        left, top = SIDE / 2 + move
        out.append(np.asarray(turned.crop((left, top, left + SIDE, top + SIDE))))
    return np.stack(out)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "lfw.bin").exists(), reason="needs the real faces")
def test_real_faces():
    rng = np.random.default_rng(0)
    pairs = read_bin(REAL / "lfw.bin", SIDE).images[rng.choice(12000, 400, replace=False)]
    found = check_alignment(pairs)
    assert found.verdict == "aligned"
    assert np.abs(found.eyes - TEMPLATE_EYES).max() < 0.015
    for right, verdict in ((2, "aligned"), (8, "displaced"), (-12, "displaced")):
        assert check_alignment(np.roll(pairs, right, axis=2)).verdict == verdict
    assert check_alignment(pairs[:, ::-1]).verdict == "displaced"  # upside down
    assert check_alignment(randomly_moved(pairs, rng, 0.02, 3)).verdict == "aligned"
    assert check_alignment(randomly_moved(pairs, rng, 0.2, 30)).verdict == "not aligned"
    source = open_recordio(REAL, SIDE)  # aligned to the template for 96 x 112 pixels
    found = check_alignment(source.read(np.arange(0, 13233, 30)))
    assert found.verdict == "displaced" and "96 x 112" in found.text
