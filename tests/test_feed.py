"""A cohort's images: which, where on the devices, and made one round ahead."""
import threading
import time

import numpy as np
import pytest

from fedfr_jax.config import SplitConfig
from fedfr_jax.data.feed import Prefetcher, cohort_rows, needed_capacity
from fedfr_jax.data.split import make_split

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


class Slow:
    """Makes ``10 * round``, notes the calls, and fails or waits for ``go`` where it is told to."""

    def __init__(self, fail=(), hold=()):
        self.calls, self.fail, self.hold = [], set(fail), set(hold)
        self.go = threading.Event()

    def __call__(self, number):
        assert threading.current_thread() is not threading.main_thread()
        self.calls.append(number)
        if number in self.hold:
            assert self.go.wait(10)
        if number in self.fail:
            raise OSError(f"round {number}")
        return 10 * number

    def wait_for(self, calls):
        for _ in range(1000):
            if self.calls == calls:
                return
            time.sleep(0.005)
        raise AssertionError(f"{self.calls} instead of {calls}")


def test_the_next_round_is_made_ahead():
    make = Slow()
    with Prefetcher(make, end=3) as ahead:
        assert make.calls == []
        ahead.start(0)
        make.wait_for([0])
        assert ahead.get(0) == 0
        make.wait_for([0, 1])  # before it is asked for
        assert [ahead.get(1), ahead.get(2)] == [10, 20]
    assert make.calls == [0, 1, 2]  # none from the end on


def test_any_round_may_be_asked_for():
    make = Slow()
    with Prefetcher(make) as ahead:
        assert [ahead.get(r) for r in (5, 2, 3, 3, 900)] == [50, 20, 30, 30, 9000]
        ahead.start(901)
    assert set(make.calls) <= {5, 6, 2, 3, 4, 900, 901}
    assert make.calls.count(3) == 2


def test_an_error_comes_out_where_its_round_is_asked_for():
    make = Slow(fail={1, 4})
    with Prefetcher(make) as ahead:
        assert ahead.get(0) == 0
        make.wait_for([0, 1])
        for _ in range(2):
            with pytest.raises(OSError, match="round 1"):
                ahead.get(1)
        make.fail = {4}
        assert ahead.get(1) == 10
        assert ahead.get(3) == 30  # round 4 fails, but nobody asks for it
    assert make.calls[:4] == [0, 1, 1, 1]


def test_closing_early_waits_for_the_call_under_way_and_starts_no_other():
    make = Slow(hold={1})
    with pytest.raises(KeyboardInterrupt), Prefetcher(make) as ahead:
        ahead.get(0)
        make.wait_for([0, 1])
        ahead.start(7)  # behind round 1
        threading.Timer(0.05, make.go.set).start()
        raise KeyboardInterrupt
    assert make.go.is_set()
    assert make.calls == [0, 1]
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]
    ahead.close()
    with pytest.raises(RuntimeError):
        ahead.get(1)


def test_a_round_nobody_asked_for_gives_way():
    make = Slow(hold={1})
    with Prefetcher(make) as ahead:
        ahead.get(0)
        make.wait_for([0, 1])
        ahead.start(7)
        ahead.start(8)  # 7 has not begun
        make.go.set()
        assert ahead.get(8) == 80
    assert 7 not in make.calls
