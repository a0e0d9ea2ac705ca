"""``--describe``: what is shown is what a run would have."""

import numpy as np
import pytest
from small import SETTINGS, settings

from fedfr_jax.data import open_source
from fedfr_jax.data.degrade import camera_of
from fedfr_jax.data.split import make_split
from fedfr_jax.errors import InputError
from fedfr_jax.reporting.description import describe
from fedfr_jax.runtime.simulation import split_of


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


def test_shared_people_are_counted():
    split = SETTINGS["data"]["split"] | {"shared_identities": 0.5}
    config = settings(data={"split": split}, fed={"num_clients": 3})
    _, _, table = describe(config)
    clients = split_of(config, open_source(config.data)).clients
    people = [set(client.identities.tolist()) for client in clients]
    everywhere = set.union(*people)
    twice = {p for p in everywhere if sum(p in who for who in people) == 2}
    shared = [len(who & twice) for who in people]
    with_some = [sum(bool(a & b) for b in people) - 1 for a in people]
    rows = cells(table)
    for name, values in (("shared people", shared), ("clients that share some", with_some)):
        assert (rows[name][0], rows[name][-1]) == (str(min(values)), str(max(values)))
    assert rows["clients per shared person"] == ["2"] * 5
    assert table.notes[0].startswith(f"{len(twice)} people are at several clients")


def test_groups_are_shown_by_client(tmp_path):
    split = SETTINGS["data"]["split"] | {"skew_by": "brightness", "skew_groups": 3}
    config = settings(data={"split": split})
    _, spread, table = describe(config)
    split = split_of(config, open_source(config.data))
    assert list(cells(table)) == ["client 0", "client 1", "client 2"]
    for number, (people, effective, shown) in enumerate(cells(table).values()):
        own = split.groups[split.clients.entry_clients == number]
        counts = dict(zip(*np.unique(own, return_counts=True), strict=True))
        assert int(people) == len(own)
        assert {tuple(map(int, one.split(": "))) for one in shown.split(", ")} == set(
            counts.items()
        )
        share = np.array(list(counts.values())) / len(own)
        assert float(effective) == pytest.approx(np.exp(-(share * np.log(share)).sum()), abs=0.06)
    means = [split.attribute[split.clients.entry_clients == k].mean() for k in range(3)]
    assert float(cells(spread)["people's brightness, mean"][0]) == pytest.approx(
        min(means), rel=1e-2
    )
