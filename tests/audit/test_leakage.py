"""Class embeddings are matched with photographs as they should be."""

import numpy as np
import pytest

from fedfr_jax.audit.candidates import KEPT, STRANGER, Candidates
from fedfr_jax.audit.leakage import match
from fedfr_jax.evaluation.streaming import unit_rows

MEMBERS, STRANGERS, IMAGES, D = 30, 30, 4, 16


@pytest.fixture
def photographs():
    """((P, d) where people are, (n, d) features of their photographs, whose they are)."""
    rng = np.random.default_rng(0)
    people = unit_rows(rng.normal(size=(MEMBERS + STRANGERS, D)))
    person = np.repeat(np.arange(len(people)), IMAGES)
    features = unit_rows(people[person] + 0.1 * rng.normal(size=(len(person), D)))
    is_member = np.arange(len(people)) < MEMBERS
    client = np.where(is_member, 0, -1)
    role = np.where(is_member[person], KEPT, STRANGER)
    asked = Candidates(np.arange(len(person)), person, role, client, client)
    return people, features, asked


def test_rows_at_their_people_are_recognized(photographs):
    people, features, asked = photographs
    found = match(people[:MEMBERS], features, asked)
    assert found["rank1"] == found["accepted"] == 1 and found["cosine"] > 0.95
    assert found["resolved"]  # 30 rows with 59 wrong people each


def test_rows_that_say_nothing_are_not(photographs):
    _, features, asked = photographs
    rows = unit_rows(np.random.default_rng(1).normal(size=(MEMBERS, D)))
    found = match(rows, features, asked)
    assert found["rank1"] < 0.2 and found["accepted"] < 0.1 and abs(found["cosine"]) < 0.2


def test_half_of_the_rows_exchanged_are_half_wrong(photographs):
    people, features, asked = photographs
    rows = people[:MEMBERS].copy()
    rows[::2] = np.roll(rows[::2], 1, axis=0)
    assert match(rows, features, asked)["rank1"] == 0.5
