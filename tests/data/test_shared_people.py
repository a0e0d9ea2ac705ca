"""People at several clients: who is where, and that no image is."""

import dataclasses
import itertools
import time

import numpy as np
import pytest

from fedfr_jax.data.degrade import camera_of, degrade, degraded
from fedfr_jax.data.sharing import part_of, plan_sharing, shared_places
from fedfr_jax.data.split import make_split
from fedfr_jax.data.split_file import describe_split, load_split, save_split, split_arrays
from fedfr_jax.data.types import Clients, ImageSource
from fedfr_jax.errors import ConfigError, InputError
from fedfr_jax.population.feed import cohort_rows
from fedfr_jax.settings import DegradeConfig, SplitConfig

RNG = np.random.default_rng(3)
LABELS = RNG.permutation(np.repeat(np.arange(200), RNG.integers(8, 30, 200)))
CONFIG = SplitConfig(
    client_fraction=0.8,
    identities_per_client=(4, 9),
    verification_images=2,
    shared_identities=0.4,
    unused_public=True,
)


def split_of(clients=12, seed=0, labels=LABELS, **changes):
    return make_split(labels, clients, dataclasses.replace(CONFIG, **changes), seed)


def plan(sizes, share, sites, seed=0):
    places = shared_places(np.asarray(sizes), share, sites)
    return plan_sharing(places, sites, np.random.default_rng(seed))


@pytest.mark.parametrize("sites", [2, 3, 5])
def test_each_client_shares_its_part_and_each_shared_person_is_at_so_many_clients(sites):
    split = split_of(sites_per_shared_identity=sites)
    clients = split.clients
    homes = {}
    for number, client in enumerate(clients):
        assert len(set(client.identities.tolist())) == len(client.identities)
        for identity in client.identities.tolist():
            homes.setdefault(identity, []).append(number)
    assert {len(at) for at in homes.values()} == {1, sites}
    shared = [sum(len(homes[i]) > 1 for i in client.identities.tolist()) for client in clients]
    sizes = np.array([len(client.identities) for client in clients])
    assert np.abs(np.array(shared) - 0.4 * sizes).max() < 2
    assert 0.4 * sizes.sum() - sites < sum(shared) <= 0.4 * sizes.sum() + 0.5
    for others in (split.public_identities, split.held_out_identities):
        assert not np.isin(list(homes), others).any()


@pytest.mark.parametrize("labels", [LABELS, np.sort(LABELS)])
@pytest.mark.parametrize("most", [0, 3])
def test_the_images_of_a_shared_person_are_divided(labels, most):
    clients = split_of(labels=labels, validation_images=2, max_training_images=most).clients
    validation = [clients.validation(np.array([i]))[0] for i in range(len(clients))]
    everything = [np.concatenate([c.train_images, c.verification_images]) for c in clients]
    everything = np.concatenate(everything + validation)
    assert len(np.unique(everything)) == len(everything)
    for identity in np.unique(clients.identities[clients.sites > 1]):
        images = np.flatnonzero(labels == identity)
        entries = np.flatnonzero(clients.identities == identity)
        parts = [clients.entry_images(entries[k : k + 1])[0] for k in range(len(entries))]
        if not most:  # consecutive parts that leave nothing out
            parts.sort(key=lambda part: part[0])
            np.testing.assert_array_equal(np.concatenate(parts), images)
            assert {len(part) - len(images) // 2 for part in parts} <= {0, 1}
        assert all(len(part) >= 2 + 2 + 1 for part in parts)
    for client in clients:
        np.testing.assert_array_equal(
            labels[client.train_images], client.identities[client.train_labels]
        )
        counts = np.bincount(client.verification_labels)
        assert (counts == 2).all() and len(counts) == len(client.identities)


def test_the_parts_of_images_are_the_whole():
    counts = RNG.integers(0, 50, 100)
    for parts in (1, 2, 7):
        spans = [part_of(counts, np.full(100, k), parts) for k in range(parts)]
        ends = np.zeros(100, int)
        for first, length in spans:
            np.testing.assert_array_equal(first, ends)
            ends = first + length
        np.testing.assert_array_equal(ends, counts)
        lengths = np.array([length for _, length in spans])
        assert (np.ptp(lengths, axis=0) <= 1).all()


def test_who_shares_with_whom_is_spread_over_the_clients():
    found = plan(np.full(40, 10), 0.5, 2)
    owner = np.repeat(np.arange(40), found.places)
    pairs = np.sort(owner[np.argsort(found.people, kind="stable")].reshape(-1, 2), axis=1)
    together = np.unique(pairs, axis=0, return_counts=True)[1]
    assert found.count == 100 and (pairs[:, 0] != pairs[:, 1]).all()
    assert together.max() <= 3 and len(together) > 80  # dealt out in turn, it would be 5 and 20
    order = [np.sort(found.parts[found.people == k]).tolist() for k in range(100)]
    assert order == [[0, 1]] * 100
    assert not np.array_equal(found.people, plan(np.full(40, 10), 0.5, 2, seed=1).people)


def feasible(places, sites):
    """Whether there are people at exactly ``sites`` clients each, by trying (Gale and Ryser)."""
    left = list(places)
    if not sum(left) or sum(left) % sites:
        return False
    for _ in range(sum(left) // sites):
        order = sorted(range(len(left)), key=lambda i: -left[i])[:sites]
        if left[order[-1]] == 0:
            return False
        for i in order:
            left[i] -= 1
    return not any(left)


def test_what_can_be_shared_is_and_what_cannot_is_refused():
    refused = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        sizes, share = rng.integers(1, 8, rng.integers(2, 7)), rng.choice([0.2, 0.5, 1.0])
        sites = int(rng.integers(2, len(sizes) + 1))
        try:
            found = plan(sizes, share, sites, seed)
        except ConfigError:
            refused += 1
            ends = np.floor(share * np.cumsum(sizes) + 0.5).astype(int)
            wanted = np.diff(ends, prepend=0)
            less = itertools.product((0, 1), repeat=len(sizes))  # rounded down, if need be
            assert not any(feasible(wanted - d, sites) for d in less if (wanted >= d).all())
            continue
        assert feasible(found.places, sites)
        keys = np.repeat(np.arange(len(sizes)), found.places) * 100 + found.people
        assert len(np.unique(keys)) == len(keys)
        assert (np.bincount(found.people) == sites).all()
    assert 20 < refused < 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": 1}, r"^data\.split\.sites_per_shared_identity is 2; .*num_clients=1"),
        ({"sites_per_shared_identity": 1}, r"^data\.split\.sites_per_shared_identity is 1"),
        ({"shared_identities": 1.5}, r"^data\.split\.shared_identities is 1\.5"),
        ({"shared_identities": 1e-3}, r"leaves no one to be at 2 clients"),
        ({"verification_images": 20}, r"\d+ shared people are needed, but only 0 of"),
        (
            {"clients": 3, "identities_per_client": (1, 40), "sites_per_shared_identity": 3},
            r"client \d would share \d+ of its \d+ people",
        ),
        ({"clients": 100}, r"^too few client identities: 100 clients need \d+, but"),
        (
            {"clients": 2**31 - 1, "identities_per_client": (2**31 - 1, 2**31 - 1)},
            r"need at least \d+",
        ),
        ({"identities_per_client": (1, 2**31 - 1)}, r"^too few client identities"),
    ],
)
def test_impossible_wishes_are_refused_at_once(changes, message):
    started = time.process_time()
    with pytest.raises(InputError, match=message):
        split_of(**changes)
    assert time.process_time() - started < 1


def test_saved_loaded_and_described(tmp_path):
    split = split_of()
    save_split(tmp_path / "split.npz", split)
    loaded = load_split(tmp_path / "split.npz")
    for name, array in split_arrays(split).items():
        np.testing.assert_array_equal(split_arrays(loaded)[name], array)
    counts = describe_split(split, "x")
    people, at = np.unique(split.clients.identities, return_counts=True)
    assert counts["client_identities"] == len(people)
    assert counts["shared_identities"] == (at == 2).sum() > 0
    assert "shared_identities" not in describe_split(split_of(shared_identities=0.0), "x")


def test_joined_clients_have_a_shared_person_once():
    split = split_of()
    clients, union = split.clients, split.clients.union()
    [whole] = union
    assert union.identity_counts.tolist() == [len(np.unique(clients.identities))]
    assert len(whole.identities) == len(np.unique(whole.identities))
    assert union.sizes.sum() == clients.sizes.sum() == len(whole.train_images)
    assert union.verification_counts.sum() == len(whole.verification_images)
    for images, labels in (
        (whole.train_images, whole.train_labels),
        (whole.verification_images, whole.verification_labels),
    ):
        np.testing.assert_array_equal(LABELS[images], whole.identities[labels])
    np.testing.assert_array_equal(
        np.sort(whole.train_images), np.sort(np.concatenate([c.train_images for c in clients]))
    )
    rows = cohort_rows(
        union, np.array([0]), devices=1, capacity=len(whole.train_images), most_images=10_000
    )
    assert rows.identities.tolist() == [len(whole.identities)]
    np.testing.assert_array_equal(rows.labels[0, : rows.sizes[0]], whole.train_labels)
    alone = split_of(shared_identities=0.0).clients.union()
    assert alone.labels is None


def test_an_image_has_the_camera_of_the_client_that_has_it():
    images = RNG.integers(0, 256, (len(LABELS), 16, 16, 3)).astype(np.uint8)
    source = ImageSource("x", LABELS, 16, lambda n: images[n].copy(), [str(i) for i in range(200)])
    settings, clients = DegradeConfig(blur=0.5, per_client=True), split_of().clients
    read = degraded(source, settings, 5, clients).read
    for number, client in enumerate(clients):
        for numbers in (client.train_images, client.verification_images):
            camera = camera_of(settings, 5, number)
            wanted = [degrade(image, camera, None) for image in images[numbers]]
            np.testing.assert_array_equal(read(numbers), wanted)


def test_many_clients_share_in_seconds():
    labels = np.repeat(np.arange(300_000, dtype=np.int32), 6)
    config = dataclasses.replace(CONFIG, identities_per_client=(2, 4), verification_images=2)
    clients: Clients = make_split(labels, 80_000, config, 0).clients
    assert abs((clients.sites == 2).mean() - 0.4) < 1e-4
    keys = clients.entry_clients * len(labels) + clients.identities
    assert len(np.unique(keys)) == len(keys)
    assert clients.union().identity_counts[0] == len(np.unique(clients.identities))
