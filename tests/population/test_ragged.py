"""Clients of unequal size as arrays of one shape."""

import numpy as np
import pytest

from fedfr_jax.population import assign, pack_ragged, pack_slots, sample_cohorts
from fedfr_jax.settings import PopulationConfig

SHARES = [np.arange(0, 5), np.arange(5, 6), np.arange(6, 6), np.arange(6, 15)]


def read(numbers):
    assert numbers.dtype == np.int64
    return {"x": np.stack([numbers, -numbers], 1), "y": numbers.astype(np.float32) / 2}


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_every_client_has_its_own_examples_and_zeros_behind(devices):
    packed = pack_ragged(read, SHARES, np.array([0, 2, 3, -1]), devices=devices)
    slots = -(-4 // devices) * devices
    assert packed.id.shape == packed.size.shape == packed.taken.shape == (slots,)
    assert packed.examples["x"].shape == (slots, 9, 2)
    assert packed.examples["y"].dtype == np.float32
    assert sorted(packed.id[packed.taken].tolist()) == [0, 2, 3]
    for slot, client in enumerate(packed.id.tolist()):
        own = SHARES[client] if client >= 0 else np.arange(0)
        assert packed.size[slot] == len(own)
        np.testing.assert_array_equal(packed.examples["x"][slot, : len(own), 0], own)
        np.testing.assert_array_equal(packed.examples["y"][slot, : len(own)], own / 2)
        assert not packed.examples["x"][slot, len(own) :].any()
    by_device = packed.size.reshape(devices, -1).sum(axis=1)
    assert by_device.max() == (14 if devices == 1 else 9)  # the largest client is alone


def test_assigned_slots_stay_as_they_are():
    packed = pack_slots(read, SHARES, np.array([3, -1, 1]), most=10)
    assert packed.id.tolist() == [3, -1, 1]
    assert packed.size.tolist() == [9, 0, 1]
    assert packed.examples["x"].shape == (3, 10, 2)
    assert pack_slots(read, SHARES, np.array([-1])).examples["y"].tolist() == [[0.0] * 9]
    with pytest.raises(ValueError, match="a client of this round has 9 examples"):
        pack_slots(read, SHARES, np.array([3]), most=8)
    with pytest.raises(ValueError, match="must be in"):
        pack_ragged(read, SHARES, np.array([0, 4]))


def test_rounds_of_one_size_have_one_shape():
    for clients in ([0, 1, 2], [3, -1, -1], [-1, -1, -1]):
        assert len(assign(np.array(clients), np.ones(3), devices=2)) == 4
    with pytest.raises(ValueError, match="needed_slots"):
        assign(np.arange(4), np.ones(4), devices=2, processes=2)


def test_a_number_of_clients_is_enough_to_sample():
    found = sample_cohorts(20, 3, 5, seed=1)
    np.testing.assert_array_equal(found, sample_cohorts(20, 3, PopulationConfig(cohort=5), seed=1))
