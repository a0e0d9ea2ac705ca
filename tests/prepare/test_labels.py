"""The people of a verification set, found again in a data set."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image
from small import DATA

from fedfr_jax.data.recordio import open_recordio
from fedfr_jax.data.types import ImageSource
from fedfr_jax.data.verification import read_bin
from fedfr_jax.errors import InputError
from fedfr_jax.prepare.labels import find_labels, save_labels
from fedfr_jax.prepare.matching import (
    SIDE,
    Nearest,
    find_offset,
    registered_correlation,
    thumbnails,
)

REAL = DATA / "lfw"
PEOPLE, EACH = 12, 4


def smooth(rng, count, side, waves=24):
    """Pictures of soft random shapes, (count, side, side, 3) uint8, all different."""
    coarse = rng.integers(0, 256, (count, waves, waves, 3), dtype=np.uint8)
    large = [Image.fromarray(c).resize((side, side), Image.Resampling.BICUBIC) for c in coarse]
    return np.stack([np.asarray(image) for image in large])


@pytest.fixture(name="photographs", scope="module")
def fixture_photographs():
    """Larger than the crops: (48, 140, 140, 3)."""
    return smooth(np.random.default_rng(0), PEOPLE * EACH, 140)


def source_of(images, names=None):
    labels = np.repeat(np.arange(len(images) // EACH), EACH)
    names = tuple(str(10 * k) for k in range(labels[-1] + 1)) if names is None else names
    return ImageSource("made", labels, SIDE, lambda numbers: images[numbers], names)


def crop(photographs, right, down):
    return photographs[:, 14 + down :, 14 + right :][:, :SIDE, :SIDE]


def as_bin(path, images, is_same, quality):
    blobs = []
    for image in images:
        out = io.BytesIO()
        Image.fromarray(image).save(out, "JPEG", quality=quality)
        blobs.append(out.getvalue())
    path.write_bytes(pickle.dumps((blobs, list(is_same))))
    return read_bin(path, SIDE)


def some_pairs(rng, count):
    """((P, 2) numbers of photographs, (P,) bool): two of one person, two of different people."""
    first, k = rng.integers(0, PEOPLE, count), rng.integers(0, EACH, (count, 2))
    other = (first + rng.integers(1, PEOPLE, count)) % PEOPLE
    same = np.arange(count) % 2 == 0
    k[:, 1] = np.where(same & (k[:, 0] == k[:, 1]), (k[:, 0] + 1) % EACH, k[:, 1])
    return np.stack(
        [EACH * first + k[:, 0], EACH * np.where(same, first, other) + k[:, 1]], 1
    ), same


@pytest.mark.parametrize("shift", [(0, 0), (-5, 7)])
def test_pairs_are_found_in_another_crop_and_quality(photographs, shift, tmp_path):
    numbers, same = some_pairs(np.random.default_rng(1), 20)
    there = crop(photographs, *shift)[numbers.ravel()]
    found = find_labels(
        as_bin(tmp_path / "x.bin", there, same, 60), source_of(crop(photographs, 0, 0))
    )
    assert found.offset == (-shift[0], -shift[1])
    np.testing.assert_array_equal(found.images, numbers)
    np.testing.assert_array_equal(found.labels, 10 * (numbers // EACH))
    assert (found.matched, found.from_partner, found.contradictions) == (40, 0, 0)
    assert "40 of 40 images were found again (100.0 %)" in found.report()


def test_people_who_are_not_there_are_not_known(photographs, tmp_path):
    numbers, same = some_pairs(np.random.default_rng(2), 30)
    numbers[0], same[0] = (5, 4), True
    known = numbers < EACH * 8  # the source has the first 8 people, and not photograph 5
    known &= numbers != 5
    kept = np.flatnonzero(np.arange(EACH * 8) != 5)
    pictures = crop(photographs, 0, 0)
    source = ImageSource(
        "made", kept // EACH, SIDE, lambda n: pictures[kept[n]], tuple(map(str, range(8)))
    )
    pairs = as_bin(tmp_path / "x.bin", pictures[numbers.ravel()], same, 80)
    found = find_labels(pairs, source)
    assert found.matched == known.sum() < known.size
    truth = np.where(numbers < EACH * 8, numbers // EACH, -1)
    by_partner = same[:, None] & ~known & known[:, ::-1]
    np.testing.assert_array_equal(found.labels, np.where(known | by_partner, truth, -1))
    assert found.from_partner == by_partner.sum() > 0
    save_labels(tmp_path / "labels.npy", found.labels)
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), found.labels)


def test_one_photograph_under_two_names(photographs, tmp_path):
    """The answer of the pair says which name is meant."""
    pictures = crop(photographs, 0, 0).copy()
    pictures[EACH * 3] = pictures[0]  # person 3 has a photograph of person 0
    pairs = np.array([[1, 0], [EACH * 3 + 1, 0], [0, EACH * 3 + 2]])
    same = np.array([True, True, False])
    found = find_labels(
        as_bin(tmp_path / "x.bin", pictures[pairs.ravel()], same, 80), source_of(pictures)
    )
    assert found.labels.tolist() == [[0, 0], [30, 30], [0, 30]]
    wrong = as_bin(tmp_path / "y.bin", pictures[[1, 2]], [False], 80)
    assert find_labels(wrong, source_of(pictures)).contradictions == 1


def test_what_cannot_be_labelled(photographs, tmp_path):
    pictures = crop(photographs, 0, 0)
    pairs = as_bin(tmp_path / "x.bin", pictures[:2], [True], 80)
    names = tuple(f"person{k}" for k in range(PEOPLE))
    with pytest.raises(InputError, match="identities have no numbers"):
        find_labels(pairs, source_of(pictures, names))
    with pytest.raises(InputError, match="112 x 112"):
        find_labels(read_bin(tmp_path / "x.bin", 64), source_of(pictures))


def test_nearest_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    queries, candidates = (rng.standard_normal((n, 5)).astype(np.float32) for n in (30, 77))
    nearest = Nearest(queries, 3)
    for rows in (np.arange(0, 2), np.arange(2, 50), np.arange(50, 77)):
        nearest.add(rows, candidates[rows])
    every = queries @ candidates.T
    best = np.argsort(-every, axis=1)[:, :3]
    np.testing.assert_array_equal(nearest.found, best)
    np.testing.assert_allclose(nearest.scores, np.take_along_axis(every, best, axis=1), rtol=1e-5)


def test_offsets_need_evidence():
    rng = np.random.default_rng(3)
    known = thumbnails(smooth(rng, 30, SIDE))
    assert find_offset(smooth(rng, 10, SIDE), known)[0] == (0, 0)


def test_registration_undoes_turns_and_scales(photographs):
    turned = [
        Image.fromarray(p).rotate(2.5, Image.Resampling.BICUBIC).resize((147, 147))
        for p in photographs[:6]
    ]
    turned = np.stack([np.asarray(image)[18 : 18 + SIDE, 18 : 18 + SIDE] for image in turned])
    plain = crop(photographs[:6], 0, 0)
    assert (registered_correlation(plain, turned) > 0.99).all()
    assert (registered_correlation(plain, turned[::-1]) < 0.9).all()
    black = np.zeros_like(plain)
    assert (registered_correlation(plain, black) == 0).all()


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "lfw.bin").exists(), reason="needs the real faces")
def test_the_labels_of_lfw():
    pairs = read_bin(REAL / "lfw.bin", SIDE)
    some = np.r_[0:150, 300:450]
    images = pairs.images.reshape(-1, 2, *pairs.images.shape[1:])[some].reshape(-1, SIDE, SIDE, 3)
    few = type(pairs)("lfw", images, pairs.is_same[some])
    found = find_labels(few, open_recordio(REAL, SIDE))
    truth = np.load(REAL / "lfw_bin_labels.npy")[some]
    agree = (found.labels == truth).mean()
    print(f"{100 * agree:.2f} % agree")
    assert found.offset == (8, 0) and agree > 0.99
    assert ((found.labels == truth) | (found.labels < 0)).mean() > 0.999
