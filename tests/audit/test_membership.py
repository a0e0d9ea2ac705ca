"""Membership inference on a model that has learned few images by heart, and on one that has not."""

import numpy as np
import pytest
from overfitting import SETTINGS

from fedfr_jax.audit.candidates import (
    KEPT,
    STRANGER,
    TRAINED,
    Candidates,
    choose,
    compactness,
    similarity,
)
from fedfr_jax.audit.command import audit
from fedfr_jax.audit.plan import Plan
from fedfr_jax.audit.shadows import draw_halves
from fedfr_jax.config import resolve
from fedfr_jax.data import open_source
from fedfr_jax.errors import InputError
from fedfr_jax.experiment import Experiment, settings_of
from fedfr_jax.runtime.simulation import split_of


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """(model, question, attack) -> what was found on an overfitted run."""
    folder = tmp_path_factory.mktemp("overfitted")
    with Experiment(settings_of(SETTINGS), folder) as run:
        run.run()
    facts = audit(folder, Plan(what=("membership",), shadows=8))["membership"]
    assert (facts["people"], facts["strangers"], facts["images"]) == (12, 12, 24 * 8)
    assert facts["personalized_models"] == 3 and facts["shadow_epochs"] == 80
    return {(row["model"], row["level"], row["attack"]): row for row in facts["rows"]}


def test_an_overfitted_model_tells_its_members(rows):
    for attack in ("similarity", "LiRA offline", "LiRA online", "loss"):
        assert rows["personalized", "image (same people)", attack]["low"] > 0.6
    for question in ("image (strangers)", "person (training images)"):
        assert rows["personalized", question, "LiRA offline"]["low"] > 0.6
        assert rows["global", question, "LiRA offline"]["auc"] > 0.6
    assert rows["global", "image (same people)", "similarity"]["low"] > 0.5


def test_a_model_that_has_seen_nobody_tells_nothing(rows):
    control = [row for (model, _, _), row in rows.items() if model == "pretrained"]
    assert len(control) == 4
    assert all(row["low"] < 0.5 < row["high"] for row in control)
    assert abs(np.mean([row["auc"] for row in control]) - 0.5) < 0.12


def test_few_non_members_are_marked(rows):
    assert rows["global", "image (strangers)", "similarity"]["unresolvable"] == ["0.001", "0.01"]


def test_candidates_are_disjoint_and_as_many():
    config = resolve(SETTINGS)
    source = open_source(config.data)
    split = split_of(config, source)
    found = choose(source, split, np.array([2, 0, 1]), Plan(people=6, images=3))
    assert found.is_member.sum() == 6 and found.client[:6].tolist() == [2, 2, 2, 2, 0, 0]
    strangers = source.labels[found.numbers[found.role == STRANGER]]
    known = [*split.clients.identities, *split.public_identities]
    assert not np.isin(strangers, known).any()
    for role, of in ((TRAINED, "train_images"), (KEPT, "verification_images")):
        images = np.concatenate([getattr(split.clients[c], of) for c in (0, 2)])
        assert np.isin(found.numbers[found.role == role], images).all()
    assert len(np.unique(found.numbers)) == len(found.numbers) == 12 * 6
    halves = draw_halves(found, 6, 0)
    assert (halves.people.sum(0) == 3).all()
    of_person = halves.people[:, found.person]
    assert not (halves.images & ~of_person).any()
    assert (halves.images.sum(1) == 3 * halves.people.sum(1)).all()  # half of six images


def test_scores_leave_the_image_itself_out():
    rng = np.random.default_rng(0)
    person = np.array([0, 0, 0, 1, 1, 2])
    features = rng.normal(size=(6, 4))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    center = features[1] + features[2]
    found = similarity(features, person)
    assert found[0] == pytest.approx(features[0] @ center / np.linalg.norm(center))
    assert np.isnan(found[5])
    pairs = [features[i] @ features[j] for i, j in ((0, 1), (0, 2), (1, 2))]
    alike = compactness(features, person, 4)
    assert alike[0] == pytest.approx(np.mean(pairs)) and np.isnan(alike[2:]).all()


def test_candidates_can_be_narrowed():
    whole = Candidates(
        *(np.arange(4), np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2])),
        np.array([0, -1]),
        np.array([0, -1]),
    )
    some = whole.only(whole.role != TRAINED)
    assert some.numbers.tolist() == [1, 2, 3] and some.people == 2


@pytest.mark.parametrize(
    "wrong, named",
    [
        ({"what": ("magic",)}, "--what: magic"),
        ({"shadows": 2}, "--shadows"),
        ({"people": 1}, "--people"),
        ({"canaries": 3}, "--canaries"),
        ({"confidence": 1.0}, "--confidence"),
        ({"shadow_epochs": -1}, "--shadow-epochs"),
    ],
)
def test_wrong_plans_are_named(wrong, named):
    with pytest.raises(InputError, match=named):
        Plan(**wrong).check()
