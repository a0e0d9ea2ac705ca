"""``--describe``: what is shown is what a run would have."""

import numpy as np
import pytest
from small import SETTINGS, settings

from fedfr_jax.data import open_source
from fedfr_jax.data.degrade import camera_of
from fedfr_jax.data.split import make_split
from fedfr_jax.errors import InputError
from fedfr_jax.reporting.description import describe


def cells(table):
    return {name: [cell.text for cell in row] for name, row in table.rows}


def test_counts_and_spread_are_those_of_the_split():
    split = SETTINGS["data"]["split"] | {"quantity_skew": 1.0}
    config = settings(data={"split": split})
    counts, spread = (cells(table) for table in describe(config))
    labels = open_source(config.data).labels
    split = make_split(labels, 3, config.data.split, config.data.seed, min_client_images=4)
    assert counts["clients"] == ["3"]
    assert counts["client training images"] == [str(split.clients.sizes.sum())]
    assert spread["training images"][0] == str(split.clients.sizes.min())
    assert spread["training images"][-1] == str(split.clients.sizes.max())
    assert spread["people"][2] == f"{np.median(split.clients.identity_counts):.0f}"


def test_cameras_are_those_of_the_clients():
    degrade = {"blur": 0.5, "per_client": True, "public": False}
    config = settings(data={"degrade": degrade})
    table = describe(config)[-1]
    strengths = [camera_of(config.data.degrade, 0, client).blur for client in range(3)]
    assert list(cells(table)) == ["blur"]
    assert float(cells(table)["blur"][0]) == pytest.approx(min(strengths), rel=5e-3)
    assert "undegraded" in table.notes[0]


def test_what_cannot_be_had_is_refused():
    with pytest.raises(InputError, match="too few client identities"):
        describe(settings(fed={"num_clients": 1000}))
