"""The command on tiny runs: what it finds, what it writes, what it says of wrong input."""

import json

import numpy as np
import pytest
from quick_runs import SETTINGS

from fedfr_jax.audit.__main__ import command
from fedfr_jax.audit.command import audit
from fedfr_jax.audit.plan import Plan
from fedfr_jax.experiment import Experiment, settings_of

PLAN = Plan(shadows=4, targets=2, steps=5, restarts=1, canaries=16, clients=2)


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    """The folder of a run that has learned few images by heart."""
    folder = tmp_path_factory.mktemp("overfitted")
    with Experiment(settings_of(SETTINGS), folder) as run:
        run.run()
    return folder


def rows_of(facts):
    return {(r["model"], r["level"], r["attack"]): r for r in facts["membership"]["rows"]}


def test_an_overfitted_model_tells_its_members(overfitted):
    facts = audit(overfitted, Plan(what=("membership",), shadows=8, clients=4))
    rows = rows_of(facts)
    for (m, l, a), r in rows.items():
        print(m, l, a, r["auc"], r["low"], r["high"])
