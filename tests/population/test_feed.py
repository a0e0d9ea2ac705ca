"""A cohort's images: which, where on the devices, and made one round ahead."""

import numpy as np
import pytest

from fedfr_jax.data.split import make_split
from fedfr_jax.population.feed import cohort_rows, needed_capacity
from fedfr_jax.settings import SplitConfig

RNG = np.random.default_rng(3)
LABELS = RNG.permutation(np.repeat(np.arange(90), RNG.integers(4, 9, 90)))
CONFIG = SplitConfig(
    client_fraction=1.0, identities_per_client=(1, 3), client_images=(4, 9), verification_images=2
)
CLIENTS = make_split(LABELS, 25, CONFIG, 0).clients
MOST = int(CLIENTS.sizes.max())
COHORTS = [
    np.array([7, -1, 3, 24, 0, 11, -1, -1]),
    np.array([-1, -1, -1, -1, 2, -1, 5, 2]),
    np.full(8, -1),
]


def rows_of(assigned, devices=2, capacity=60, most_images=MOST):
    return cohort_rows(
        CLIENTS, assigned, devices=devices, capacity=capacity, most_images=most_images
    )


@pytest.mark.parametrize("assigned", COHORTS)
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_client_finds_its_images_in_the_part_of_its_device(assigned, devices):
    got = rows_of(assigned, devices)
    parts = got.numbers.reshape(devices, 60)
    slots = len(assigned) // devices
    for place, number in enumerate(assigned):
        size = got.sizes[place]
        assert got.clients[place] == number
        assert not got.rows[place, size:].any()
        assert not got.labels[place, size:].any()
        if number < 0:
            assert size == got.identities[place] == 0
            continue
        client = CLIENTS[number]
        own = parts[place // slots][got.rows[place, :size]]
        np.testing.assert_array_equal(own, client.train_images)
        np.testing.assert_array_equal(got.labels[place, :size], client.train_labels)
        assert got.identities[place] == len(client.identities)
    for part, used, sizes in zip(parts, got.used, got.sizes.reshape(devices, -1), strict=True):
        assert used == sizes.sum()
        assert not part[used:].any()


def test_types_and_shapes_do_not_depend_on_the_cohort():
    shapes = {
        tuple((name, array.shape, array.dtype) for name, array in vars(rows_of(a)).items())
        for a in COHORTS
    }
    assert len(shapes) == 1
    got = rows_of(COHORTS[0])
    assert got.numbers.dtype == np.int64
    assert got.rows.shape == got.labels.shape == (8, MOST)
    assert {a.dtype for name, a in vars(got).items() if name != "numbers"} == {np.dtype(np.int32)}


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_capacity_is_enough_and_no_more(devices):
    capacity = needed_capacity(CLIENTS.sizes, COHORTS, devices)
    used = [rows_of(a, devices, capacity).used.max() for a in COHORTS]
    assert max(used) == capacity
    with pytest.raises(ValueError, match=rf"room is for {capacity - 1}"):
        rows_of(COHORTS[int(np.argmax(used))], devices, capacity - 1)
    assert needed_capacity(CLIENTS.sizes, iter([]), devices) == 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=rf"a client has \d+ images, room is for {MOST - 1}"):
        rows_of(np.array([-1, int(CLIENTS.sizes.argmax())]), most_images=MOST - 1)
    with pytest.raises(ValueError, match=r"8 places .* 3 devices"):
        rows_of(COHORTS[0], devices=3)
    with pytest.raises(ValueError, match=r"8 places .* 3 devices"):
        needed_capacity(CLIENTS.sizes, COHORTS, 3)
