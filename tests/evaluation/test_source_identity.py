"""Evaluation where people are at several clients: the same as pair by pair, by source identity."""

import dataclasses

import numpy as np
import protocols
import pytest

from fedfr_jax.data.held_out import read_held_out
from fedfr_jax.data.split import make_split
from fedfr_jax.data.types import ImageSource
from fedfr_jax.evaluation.assess import Assessor, client_results, gallery
from fedfr_jax.evaluation.examples import mistake_examples
from fedfr_jax.evaluation.variants import assess_personalized
from fedfr_jax.settings import EvalConfig, SplitConfig

FARS = (0.05, 0.2)
RNG = np.random.default_rng(4)
LABELS = RNG.permutation(np.repeat(np.arange(40), RNG.integers(14, 20, 40)))
# An image is 2 x 2 pixels: 12 numbers, those of its person with noise.
FACES = RNG.integers(60, 190, (40, 2, 2, 3))
IMAGES = np.clip(FACES[LABELS] + RNG.normal(0, 45, (len(LABELS), 2, 2, 3)), 0, 255)
SOURCE = ImageSource(
    "x", LABELS, 2, lambda n: IMAGES[n].astype(np.uint8), [str(i) for i in range(40)]
)
CONFIG = SplitConfig(
    client_fraction=0.9,
    identities_per_client=(3, 5),
    verification_images=3,
    shared_identities=0.5,
)


def features(inputs):
    return inputs.reshape(len(inputs), -1).astype(np.float32) - 128


def assessor_of(split, numbers):
    held_out = read_held_out(SOURCE, split, numbers)

    def client_gallery(number):
        client = split.clients[number]
        return SOURCE.read(client.train_images), client.train_labels

    return Assessor(
        EvalConfig(fars=FARS),
        held_out,
        (),
        lambda number: client_gallery(number)[0],
        client_gallery,
        lambda images: images,
        lambda variables, inputs: features(inputs),
        None,
        32,
    )


def by_source_identity(split, numbers, client):
    """(TAR, genuine pairs, impostor pairs, 1:N), from images and identities of the source alone."""
    probes = np.concatenate([split.clients[int(i)].verification_images for i in numbers])
    people, own_people = LABELS[probes], np.unique(split.clients[client].identities)
    unit = protocols.unit(features(SOURCE.read(probes)))
    genuine, impostor = [], []
    for i in range(len(probes)):
        for j in range(i):
            if people[i] in own_people or people[j] in own_people:
                (genuine if people[i] == people[j] else impostor).append(float(unit[i] @ unit[j]))
    tar = [np.mean(np.array(genuine) > protocols.threshold(impostor, far)) for far in FARS]
    trained = split.clients[client].train_images
    many = protocols.brute_identification(
        unit,
        people,
        features(SOURCE.read(trained)),
        LABELS[trained],
        split.clients[client].identities,
        fpirs=FARS,
    )
    return tar, len(genuine), len(impostor), many


@pytest.mark.parametrize("sites", [2, 3])
@pytest.mark.parametrize("evaluated", [None, [1, 4, 5]])
def test_every_client_is_evaluated_by_source_identity(sites, evaluated):
    config = dataclasses.replace(CONFIG, sites_per_shared_identity=sites)
    split = make_split(LABELS, 7, config, 1)
    numbers = np.arange(7) if evaluated is None else np.array(evaluated)
    assessor = assessor_of(split, numbers)
    elsewhere = 0
    for position, client in enumerate(numbers.tolist()):
        inputs, labels = gallery(assessor, position)
        probes = assessor.probes
        one, many = client_results(assessor, position, features(probes), features(inputs), labels)
        tar, genuine, impostor, expected = by_source_identity(split, numbers, client)
        assert (one.num_positives, one.num_negatives) == (genuine, impostor)
        protocols.close(one.tar, tar, genuine)
        mated = np.isin(
            LABELS[np.concatenate([split.clients[int(i)].verification_images for i in numbers])],
            split.clients[client].identities,
        ).sum()
        assert many.num_mated == mated
        elsewhere += mated - len(split.clients[client].verification_images)
        for got, wanted in zip(
            (many.pair_tpir, many.open_set_tpir, many.rank1), expected, strict=True
        ):
            protocols.close(got, wanted, mated)
    assert elsewhere > 0  # probes of a client's people that were taken at another one


def test_without_shared_people_labels_are_as_ever():
    split = make_split(LABELS, 6, dataclasses.replace(CONFIG, shared_identities=0.0), 1)
    held_out = read_held_out(SOURCE, split, np.arange(6))
    np.testing.assert_array_equal(held_out.people, np.arange(held_out.first_identity[-1]))
    for position in range(6):
        np.testing.assert_array_equal(held_out.shows(position), held_out.clients == position)


def test_no_mistake_is_found_between_two_images_of_one_person():
    split = make_split(LABELS, 7, CONFIG, 1)
    assessor = assessor_of(split, np.arange(7))
    models = lambda client: ({}, None)  # noqa: E731
    personalized = assess_personalized(assessor, models)
    found = mistake_examples(assessor, models, personalized, 7)
    images = SOURCE.read(np.arange(len(LABELS)))
    person = {image.tobytes(): k for image, k in zip(images, LABELS, strict=True)}
    assert len({example["client"] for example in found}) > 3
    for example in found:
        a, b = (person[example[name].tobytes()] for name in ("image_a", "image_b"))
        assert (a == b) == (example["kind"] == "false reject")
