"""Copies of images, and people under two names."""

import io

import numpy as np
import pytest
from PIL import Image
from small import DATA

from fedfr_jax.config import resolve
from fedfr_jax.data.recordio import open_recordio
from fedfr_jax.data.types import ImageSource, VerificationSet
from fedfr_jax.prepare import duplicates
from fedfr_jax.prepare.duplicates import (
    find_copies,
    find_same_people,
    part_of_pairs,
    parts_of,
    summary,
)
from fedfr_jax.prepare.matching import SIDE
from fedfr_jax.runtime.simulation import split_of

REAL = DATA / "lfw"


def smooth(rng, count):
    coarse = rng.integers(0, 256, (count, 10, 10, 3), dtype=np.uint8)
    side, way = (SIDE, SIDE), Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(c).resize(side, way)) for c in coarse])


def recompressed(image, quality=50):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(out))


@pytest.fixture(name="images", scope="module")
def fixture_images():
    """40 images of 10 people; 7 is a copy of 3, 21 nearly one of 2, 30 and 31 are nearly 9."""
    images = smooth(np.random.default_rng(0), 40)
    images[7] = images[3]
    images[21] = recompressed(images[2])
    images[30] = np.clip(images[9] * 0.8 + 20, 0, 255).astype(np.uint8)
    images[31] = np.roll(images[9], 2, axis=1)
    return images


def source_of(images, each=4):
    labels = np.arange(len(images)) // each
    names = tuple(f"p{k}" for k in range(labels[-1] + 1))
    return ImageSource("made", labels, SIDE, lambda n: images[n], names)


def numbers(copies):
    ends = [tuple(int(text.split()[1]) for text in (c.image, c.other)) for c in copies]
    return {pair: c.kind for pair, c in zip(ends, copies, strict=True)}


@pytest.mark.parametrize("block", [7, 1 << 16])
def test_copies_within_a_data_set(images, monkeypatch, block):
    monkeypatch.setattr(duplicates, "_QUERIES", block)
    [part] = parts_of(source_of(images), None)
    copies = list(find_copies(part, part))
    assert numbers(copies) == {
        (3, 7): "exact",
        (2, 21): "near",
        (9, 30): "near",
        (9, 31): "near",
        (30, 31): "near",
    }
    assert {c.image for c in copies if c.two_names} == {f"image {i} of made" for i in (2, 3, 9)}
    text = summary(copies)
    assert text == "within all: 1 exact and 4 near copies, 4 of them under two names"
    assert summary([]) == "no copies"


def test_copies_in_training_and_held_out_images(images):
    source = source_of(images)
    split = {
        "client_fraction": 1.0,
        "identities_per_client": (2, 2),
        "verification_images": 2,
        "held_out_identities": 2,
        "held_out_pairs": 10,
    }
    config = resolve({"data": {"split": split}, "fed": {"num_clients": 3, "batch_size": 2}})
    made = split_of(config, source)
    training, held_out = parts_of(source, made)
    assert not set(training.numbers) & set(held_out.numbers)
    is_held_out = np.isin(np.arange(40), held_out.numbers)
    is_trained = np.isin(np.arange(40), training.numbers)
    pairs = [(3, 7), (2, 21), (9, 30), (9, 31), (30, 31)]
    expected = {
        (a, b) if is_held_out[a] else (b, a)
        for a, b in pairs
        if (is_held_out[a] and is_trained[b]) or (is_held_out[b] and is_trained[a])
    }
    assert expected
    assert set(numbers(list(find_copies(held_out, training)))) == expected


def test_copies_in_a_verification_set(images):
    pairs = np.stack([images[5], images[6], recompressed(images[8]), images[5]])
    part = part_of_pairs(VerificationSet("lfw", pairs, np.array([True, False])))
    [everything] = parts_of(source_of(images), None)
    found = list(find_copies(part, everything))
    assert [(c.image, c.other, c.kind) for c in found] == [
        ("lfw: image 0 of pair 0", "image 5 of made", "exact"),
        ("lfw: image 1 of pair 0", "image 6 of made", "exact"),
        ("lfw: image 2 of pair 1", "image 8 of made", "near"),
    ]
    assert not any(copy.two_names for copy in found)


def test_with_a_model_its_features_are_compared(images):
    def embed(batch):  # knows a person by the mean colour
        return batch.mean(axis=(1, 2)) - 127.5

    [part] = parts_of(source_of(images), None)
    features = embed(images) / np.linalg.norm(embed(images), axis=1, keepdims=True)
    cosines = features @ features.T
    copies = list(find_copies(part, part, near=0.9999, embed=embed))
    expected = {(a, b) for a, b in np.argwhere(np.triu(cosines, 1) >= 0.9999).tolist()}
    assert set(numbers(copies)) == expected | {(3, 7)}


def test_people_under_two_names(monkeypatch):
    monkeypatch.setattr(duplicates, "_PEOPLE", 3)
    rng = np.random.default_rng(1)
    truth = rng.standard_normal((8, 16))
    truth[6] = truth[1]  # one person, two names
    labels = np.repeat(np.arange(8), 5)
    features = truth[labels] + 0.2 * rng.standard_normal((40, 16))
    images = np.zeros((40, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(40)
    names = tuple(f"p{k}" for k in range(8))
    source = ImageSource("made", labels, 4, lambda n: images[n], names)
    found = find_same_people(source, lambda batch: features[batch[:, 0, 0, 0]], 0.9)
    [(first, second, cosine)] = found
    assert (first, second) == ("p1", "p6") and cosine > 0.95


def test_the_table(images, tmp_path):
    [part] = parts_of(source_of(images), None)
    copies = list(find_copies(part, part))
    duplicates.write_csv(tmp_path / "x.csv", duplicates.HEADER, duplicates.table_of(copies))
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert len(lines) == 6 and lines[0].startswith("kind,likeness,part")
    assert lines[2] == "exact,1.0,all,all,image 3 of made,p0,image 7 of made,p1"


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "train.rec").exists(), reason="needs the real faces")
def test_lfw_has_copies_under_two_names():
    """Two of the errors that the makers of LFW list, and a photograph that was cropped twice."""
    source = open_recordio(REAL, SIDE)
    some = np.flatnonzero(np.isin(source.labels, [461, 4646, 777, 4527, 1594, 1649, 1871]))
    few = duplicates._part(source, "lfw", some)
    copies = list(find_copies(few, few))
    names = {(c.person, c.other_person) for c in copies if c.two_names and c.kind == "exact"}
    assert names == {("461", "4646"), ("777", "4527")}
    assert any(c.kind == "near" and c.person == c.other_person == "1871" for c in copies)
