"""The models that a client could call its own, against their definitions."""

import numpy as np
import pytest

from fedfr_jax.data.held_out import HeldOut
from fedfr_jax.evaluation import variants
from fedfr_jax.evaluation.assess import Assessor
from fedfr_jax.evaluation.variants import (
    Validation,
    assess_personalized,
    assess_variants,
    best_model,
)
from fedfr_jax.settings import EvalConfig

CLIENTS, PEOPLE, EACH = 3, 2, 4
RNG = np.random.default_rng(0)


def made_up(transform):
    """An assessor whose backbone is a matrix, with the images of 6 people as vectors."""
    labels = np.repeat(np.arange(CLIENTS * PEOPLE), EACH)
    people = RNG.standard_normal((CLIENTS * PEOPLE, 5))
    held_out = HeldOut(
        np.arange(CLIENTS),
        people[labels] + RNG.standard_normal((len(labels), 5)),
        labels,
        labels // PEOPLE,
        np.arange(0, CLIENTS * PEOPLE + 1, PEOPLE),
        np.arange(CLIENTS * PEOPLE),
    )

    def gallery(client):
        own = np.repeat(np.arange(PEOPLE), 3)
        return people[client * PEOPLE + own] + RNG.standard_normal((len(own), 5)) / 9, own

    return Assessor(
        EvalConfig(fars=(0.1, 0.3)),
        held_out,
        (),
        None,
        gallery,
        lambda images: images,
        lambda variables, inputs: inputs @ variables["w"],
        (lambda t, features: features @ t) if transform else None,
        32,
    )


def models(client):
    rng = np.random.default_rng(client)
    return {"w": rng.standard_normal((5, 4))}, rng.standard_normal((4, 4))


def tars(assessment):
    return np.stack([one.tar for one in assessment.verification])


@pytest.mark.parametrize("transform", [True, False])
def test_variants_are_what_they_are_called(transform):
    assessor, backbone = made_up(transform), {"w": RNG.standard_normal((5, 4))}
    found, chosen = assess_variants(assessor, models, backbone)
    assert not chosen
    names = {variants.PERSONALIZED, variants.MEAN}
    if transform:
        names |= {variants.OWN_BACKBONE, variants.GLOBAL_TRANSFORM}
    assert set(found) == names
    definitions = {
        variants.PERSONALIZED: models,
        variants.OWN_BACKBONE: lambda c: (models(c)[0], np.eye(4)),
        variants.GLOBAL_TRANSFORM: lambda c: (backbone, models(c)[1]),
        variants.MEAN: lambda c: ({"w": (models(c)[0]["w"] + backbone["w"]) / 2}, np.eye(4)),
    }
    for name in names:
        alone = assess_personalized(assessor, definitions[name])
        np.testing.assert_array_equal(tars(found[name]), tars(alone))
        assert len(alone.identification) == CLIENTS
    assert (tars(found[variants.MEAN]) != tars(found[variants.PERSONALIZED])).any()


def test_each_client_chooses_the_best_model_on_its_own_images():
    assessor, backbone = made_up(True), {"w": np.eye(5, 4)}
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(PEOPLE), 2)
    apart = {client: 3 * rng.standard_normal((PEOPLE, 4)) for client in range(CLIENTS)}

    def own_models(client):  # client 1's backbone sees noise only
        noise = client == 1
        return {"w": np.zeros((5, 4)) if noise else np.eye(5, 4)}, np.eye(4)

    def images(client):
        faces = np.pad(apart[client][labels], ((0, 0), (0, 1)))
        return faces + 0.1 * rng.standard_normal(faces.shape), labels

    validation = Validation(images, rng.standard_normal((40, 5)))
    found, chosen = assess_variants(assessor, own_models, backbone, validation=validation)
    assert chosen[0] == chosen[2] == variants.PERSONALIZED  # equal ones: the first
    assert chosen[1] in (variants.GLOBAL_TRANSFORM, variants.MEAN, variants.GLOBAL)
    for client, name in enumerate(chosen):
        if name != variants.GLOBAL:
            assert found[variants.SELECTED].verification[client] is found[name].verification[client]
    assert variants.GLOBAL not in found


def test_a_choice_goes_by_the_mean_tar():
    labels = np.array([0, 0, 1, 1])
    good = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [1, 1.0]])
    poor = np.array([[1, 0], [0, 1], [1, 0], [0, 1], [1, 1.0]])
    assert best_model({"poor": poor, "good": good}, labels, (0.1, 0.2)) == "good"
    assert best_model({"a": good, "b": good}, labels, (0.1,)) == "a"
