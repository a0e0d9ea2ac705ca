"""Splits: who holds which images, pairs of held-out identities, saving."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest

from fedfr_jax.data.split import make_split
from fedfr_jax.data.split_file import describe_split, load_split, save_split
from fedfr_jax.errors import InputError
from fedfr_jax.runtime.fingerprints import split_digest
from fedfr_jax.settings import SplitConfig

RNG = np.random.default_rng(5)
# 120 identities with 1 to 25 images, in no order.
LABELS = RNG.permutation(np.repeat(np.arange(120), RNG.integers(1, 26, 120)))
COUNTS = np.bincount(LABELS)
CONFIG = SplitConfig(
    client_fraction=0.6,
    identities_per_client=(2, 5),
    client_images=(6, 25),
    verification_images=3,
    public_images=(4, 20),
    held_out_identities=20,
    held_out_pairs=40,
)


def split_of(seed=0, clients=8, labels=LABELS, min_client_images=1, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return make_split(labels, clients, config, seed, min_client_images=min_client_images)


def arrays_of(split):
    for part in (*split.clients, split):
        for field in dataclasses.fields(part):
            array = getattr(part, field.name)
            if field.name != "clients" and array is not None:
                yield array


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(arrays_of(left), arrays_of(right), strict=True))


def test_nobody_shares_an_identity():
    split = split_of()
    groups = [client.identities for client in split.clients]
    groups += [split.public_identities, split.held_out_identities]
    everyone = np.concatenate(groups)
    assert len(np.unique(everyone)) == len(everyone)
    assert len(split.clients) == 8
    assert len(split.held_out_identities) == 20
    sizes = {len(client.identities) for client in split.clients}
    assert sizes <= {2, 3, 4, 5}
    assert len(sizes) > 1
    for array in arrays_of(split):
        assert array.dtype == (bool if array is split.pairs_same else np.int64)


def test_client_images_are_the_first_for_verification_and_the_rest_for_training():
    for client in split_of().clients:
        held = zip(client.verification_images, client.verification_labels, strict=True)
        held = [(int(i), int(k)) for i, k in held]
        used = zip(client.train_images, client.train_labels, strict=True)
        used = [(int(i), int(k)) for i, k in used]
        for k, identity in enumerate(client.identities):
            images = np.flatnonzero(identity == LABELS).tolist()
            assert 6 <= len(images) <= 25
            assert [i for i, label in held if label == k] == images[:3]
            assert [i for i, label in used if label == k] == images[3:]


def test_caps():
    split = split_of(max_training_images=4, public_identities=7)
    full = split_of()
    for client, whole in zip(split.clients, full.clients, strict=True):
        assert np.bincount(client.train_labels).max() <= 4
        for k in range(len(client.identities)):
            expected = whole.train_images[whole.train_labels == k][:4]
            np.testing.assert_array_equal(client.train_images[client.train_labels == k], expected)
        np.testing.assert_array_equal(client.verification_images, whole.verification_images)
    np.testing.assert_array_equal(split.public_identities, full.public_identities[:7])
    assert len(full.public_identities) > 7


def test_public_images():
    split = split_of()
    assert ((COUNTS[split.public_identities] >= 4) & (COUNTS[split.public_identities] <= 20)).all()
    assert len(split.public_images) == COUNTS[split.public_identities].sum()
    owner = split.public_identities[split.public_labels]
    np.testing.assert_array_equal(LABELS[split.public_images], owner)
    assert len(np.unique(split.public_images)) == len(split.public_images)


def test_no_verification_images_and_no_public_data():
    split = split_of(verification_images=0, client_fraction=1.0)
    assert all(len(client.verification_images) == 0 for client in split.clients)
    assert len(split.public_images) == len(split.public_identities) == 0


@pytest.mark.parametrize("pairs", [10, 11, 40, 300])
def test_pairs(pairs):
    split = split_of(held_out_pairs=pairs)
    assert split.pairs.shape == (2 * pairs, 2)
    owners = LABELS[split.pairs]
    assert np.isin(owners, split.held_out_identities).all()
    np.testing.assert_array_equal(owners[:, 0] == owners[:, 1], split.pairs_same)
    assert split.pairs_same.sum() == pairs
    assert (split.pairs[:, 0] != split.pairs[:, 1]).all()
    assert len(np.unique(np.sort(split.pairs, axis=1), axis=0)) == 2 * pairs
    for fold in np.array_split(split.pairs_same, 10):
        assert fold.any()
        assert not fold.all()


def test_genuine_pairs_are_spread_over_identities():
    # The client takes whom the shuffle leaves; only six identities of all sizes are held out.
    sizes = np.array([60, 12, 12, 12, 3, 2])
    labels = np.repeat(np.arange(6), sizes)
    config = SplitConfig(
        identities_per_client=(1, 1),
        client_fraction=1.0,
        verification_images=1,
        held_out_identities=5,
        held_out_pairs=50,
    )
    split = make_split(labels, 1, config, 0)
    possible = sizes * (sizes - 1) // 2
    possible[split.clients[0].identities] = 0
    genuine = np.bincount(labels[split.pairs[split.pairs_same, 0]], minlength=6)
    assert (genuine <= possible).all()
    level = genuine.max()
    assert level < possible.max()
    # As even as possible: whoever has less than the level, less one, has given all there is.
    assert (genuine[genuine < level - 1] == possible[genuine < level - 1]).all()


def test_all_possible_pairs_can_be_asked_for():
    labels = np.repeat(np.arange(6), 4)
    config = SplitConfig(
        identities_per_client=(1, 1),
        client_fraction=1.0,
        verification_images=1,
        held_out_identities=5,
        held_out_pairs=30,
    )
    split = make_split(labels, 1, config, 3)
    genuine = np.unique(np.sort(split.pairs[split.pairs_same], axis=1), axis=0)
    assert len(genuine) == 5 * 6
    with pytest.raises(InputError, match=r"held_out_pairs: 31 genuine .* only 30"):
        make_split(labels, 1, dataclasses.replace(config, held_out_pairs=31), 3)
    two = dataclasses.replace(config, held_out_identities=2, held_out_pairs=12)
    assert make_split(labels, 1, two, 3).pairs_same.sum() == 12
    one = dataclasses.replace(config, held_out_identities=1, held_out_pairs=10)
    lonely = np.repeat(np.arange(3), 5)
    with pytest.raises(InputError, match="10 impostor pairs wanted"):
        make_split(lonely, 1, one, 3)
    nobody = dataclasses.replace(config, held_out_identities=0)
    with pytest.raises(InputError, match="held_out_identities"):
        make_split(labels, 1, nobody, 3)


def test_deterministic_and_seeded():
    assert same(split_of(), split_of())
    assert not same(split_of(), split_of(seed=1))
    more, fewer = split_of(held_out_pairs=60), split_of()
    for a, b in zip(more.clients, fewer.clients, strict=True):
        np.testing.assert_array_equal(a.train_images, b.train_images)


def test_shuffling_reaches_all_identities():
    seen = np.concatenate([split_of(seed=seed).held_out_identities for seed in range(40)])
    assert len(np.unique(seen)) == 120


def test_labels_with_gaps():
    split = split_of(labels=LABELS * 3 + 1)
    for client in split.clients:
        assert (client.identities % 3 == 1).all()
    assert (split.public_identities % 3 == 1).all()


def test_sorted_labels_give_the_same_split():
    # Sorted labels take a way of their own: an image's position is its number.
    order = np.argsort(LABELS, kind="stable")
    for changes in ({}, {"max_training_images": 2, "unused_public": True}):
        mixed = split_of(**changes)
        for dtype in (np.int32, np.int64, np.uint16):
            tidy = split_of(labels=LABELS[order].astype(dtype), **changes)
            assert tidy.clients.order is None
            for a, b in zip(mixed.clients, tidy.clients, strict=True):
                np.testing.assert_array_equal(a.identities, b.identities)
                np.testing.assert_array_equal(a.train_images, order[b.train_images])
                np.testing.assert_array_equal(a.train_labels, b.train_labels)
                np.testing.assert_array_equal(a.verification_images, order[b.verification_images])
            np.testing.assert_array_equal(mixed.public_images, order[tidy.public_images])
            np.testing.assert_array_equal(mixed.pairs, order[tidy.pairs])


def test_clients_are_a_sequence():
    clients = split_of().clients
    assert len(clients) == len(list(clients)) == 8
    for number in (-1, np.int32(-1), 7):
        np.testing.assert_array_equal(clients[number].train_images, [*clients][7].train_images)
    for number in (8, -9):
        with pytest.raises(IndexError, match=r"of 8"):
            clients[number]
    for number in (slice(0, 2), 1.0):
        with pytest.raises(TypeError):
            clients[number]


@pytest.mark.parametrize("changes", [{}, {"verification_images": 0}, {"max_training_images": 2}])
def test_counts_and_images_of_many_clients_at_once(changes):
    clients = split_of(**changes).clients
    everybody = list(clients)
    for counts, field in (
        (clients.sizes, "train_images"),
        (clients.identity_counts, "identities"),
        (clients.verification_counts, "verification_images"),
    ):
        assert counts.dtype == np.int64
        assert counts.tolist() == [len(getattr(client, field)) for client in everybody]
    chosen = np.array([5, 0, 5, 7])
    for together, name in ((clients.training, "train"), (clients.verification, "verification")):
        for array, field in zip(together(chosen), ("images", "labels"), strict=True):
            parts = [getattr(everybody[i], f"{name}_{field}") for i in chosen]
            np.testing.assert_array_equal(array, np.concatenate(parts))
        assert [len(array) for array in together(chosen[:0])] == [0, 0]


def test_a_hundred_thousand_clients(tmp_path):
    labels = np.repeat(np.arange(450_000, dtype=np.int32), 6)
    config = SplitConfig(
        client_fraction=0.9, identities_per_client=(2, 6), verification_images=2, unused_public=True
    )
    tracemalloc.start()
    split = make_split(labels, 100_000, config, 0, min_client_images=8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20
    assert split.clients.sizes.sum() == 4 * len(split.clients.identities)
    owners = np.concatenate([split.clients.identities, split.public_identities])
    assert np.array_equal(np.sort(owners), np.arange(450_000))
    last = split.clients[-1]
    np.testing.assert_array_equal(labels[last.train_images], last.identities[last.train_labels])
    assert len(last.train_images) == split.clients.sizes[-1]
    save_split(tmp_path / "split.npz", split)
    loaded = load_split(tmp_path / "split.npz").clients
    np.testing.assert_array_equal(loaded[-1].train_images, last.train_images)
    np.testing.assert_array_equal(loaded.sizes, split.clients.sizes)


def test_the_first_client_that_cannot_train_is_named():
    labels = np.repeat(np.arange(12), [9] * 6 + [3] * 6)
    config = SplitConfig(client_fraction=1.0, identities_per_client=(2, 2), verification_images=3)
    found = set()
    for seed in range(20):
        order = make_split(
            labels, 6, dataclasses.replace(config, verification_images=0), seed
        ).clients.identities
        images = np.maximum(9 - 6 * (order >= 6) - 3, 0).reshape(6, 2)
        first = int(np.flatnonzero(images.min(axis=1) == 0)[0])
        with pytest.raises(InputError, match=rf"client {first}'s identity \d+ no training image"):
            make_split(labels, 6, config, seed)
        # A client with too few images for a batch comes first if it stands first.
        wish = rf"client {first}'s identity" if first == 0 else "client 0 has 12 training images"
        with pytest.raises(InputError, match=wish):
            make_split(labels, 6, config, seed, min_client_images=13)
        found.add(first)
    assert len(found) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": 30}, r"30 clients need \d+, but only \d+ of"),
        ({"clients": 0}, r"fed\.num_clients"),
        ({"seed": -1}, r"data\.seed"),
        ({"client_fraction": 1.5}, r"client_fraction"),
        ({"identities_per_client": (5, 2)}, r"identities_per_client"),
        ({"identities_per_client": (3,)}, r"identities_per_client"),
        ({"client_images": (0, 5)}, r"client_images"),
        ({"verification_images": -1}, r"verification_images"),
        (
            {"verification_images": 6, "client_images": (6, 6), "clients": 1},
            r"data\.split\.verification_images: 6 leave client 0's identity \d+ no",
        ),
        ({"public_images": (26, 30)}, r"no public identities: none of 40"),
        ({"held_out_identities": 121}, r"held_out_identities: 121 wanted, .* 120"),
        ({"held_out_pairs": 5}, r"held_out_pairs: 5"),
        ({"held_out_pairs": 100_000}, r"held_out_pairs: 100000 genuine"),
        ({"min_client_images": 200}, r"client 0 has \d+ training images.*fed\.batch_size"),
    ],
)
def test_impossible_wishes(changes, message):
    split_of()
    with pytest.raises(InputError, match=message):
        split_of(**changes)


def test_enough_images_for_a_batch():
    sizes = [len(client.train_images) for client in split_of().clients]
    assert same(split_of(min_client_images=min(sizes)), split_of())
    smallest = int(np.argmin(sizes))
    with pytest.raises(InputError, match=rf"client {smallest} has {min(sizes)} training images"):
        split_of(min_client_images=min(sizes) + 1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "verification_images": 0,
            "held_out_identities": 0,
            "held_out_pairs": 0,
            "client_fraction": 1.0,
        },
        {"clients": 1},
    ],
)
def test_save_and_load(tmp_path, changes):
    split = split_of(**changes)
    path = tmp_path / "split.npz"
    save_split(path, split)
    loaded = load_split(path)
    assert same(split, loaded)
    assert len(loaded.clients) == len(split.clients)
    assert [array.dtype for array in arrays_of(loaded)] == [a.dtype for a in arrays_of(split)]
    assert [file.name for file in tmp_path.iterdir()] == ["split.npz"]


def test_load_something_else(tmp_path):
    path = tmp_path / "split.npz"
    with pytest.raises(InputError, match=r"split\.npz"):
        load_split(path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"split\.npz"):
        load_split(path)
    np.savez(path, pairs=np.zeros(3))
    with pytest.raises(InputError, match=r"split\.npz"):
        load_split(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match=r"split\.npz"):
        load_split(path)
    save_split(path, split_of())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"split\.npz"):
        load_split(path)


def test_description():
    split = split_of()
    text = json.loads(json.dumps(describe_split(split, "some faces")))
    sizes = [len(client.train_images) for client in split.clients]
    assert text["source"] == "some faces"
    assert text["clients"] == 8
    assert text["client_training_images"] == sum(sizes)
    assert text["training_images_per_client"] == {
        "min": min(sizes),
        "mean": pytest.approx(np.mean(sizes)),
        "max": max(sizes),
    }
    assert text["public_images"] == len(split.public_images)
    assert text["genuine_pairs"] == text["impostor_pairs"] == 40
    assert text["held_out_identities"] == 20
    none = describe_split(split_of(client_fraction=1.0), "x")
    assert none["public_images_per_identity"] == {"min": 0, "mean": 0.0, "max": 0}


def test_identities_that_no_client_took_can_become_public():
    labels = np.repeat(np.arange(30), np.arange(1, 31))
    config = SplitConfig(
        client_fraction=1.0,
        unused_public=True,
        client_images=(10, 30),
        identities_per_client=(3, 3),
        verification_images=2,
    )
    split = make_split(labels, 4, config, seed=0)
    held = np.concatenate([c.identities for c in split.clients])
    assert not set(held) & set(split.public_identities)
    assert set(held) | set(split.public_identities) == set(range(30))


def test_validation_images_are_the_last_ones_and_not_trained_on(tmp_path):
    labels = np.repeat(np.arange(20), 9)
    config = SplitConfig(
        client_fraction=1.0,
        identities_per_client=(4, 4),
        verification_images=2,
        validation_images=3,
        unused_public=True,
    )
    split = make_split(labels, 3, config, 0)
    clients = split.clients
    for i in range(3):
        validation, local = clients.validation(np.array([i]))
        train = clients[i].train_images
        assert len(validation) == 12 and len(train) == 16 == clients.sizes[i]
        assert not set(validation) & (set(train) | set(clients[i].verification_images))
        np.testing.assert_array_equal(labels[validation], clients[i].identities[local])
        for identity in clients[i].identities:
            own = labels[train] == identity
            assert train[own].max() < validation[labels[validation] == identity].min()
    save_split(tmp_path / "split.npz", split)
    again = load_split(tmp_path / "split.npz").clients
    np.testing.assert_array_equal(again.validation(np.arange(3)), clients.validation(np.arange(3)))


def test_people_for_choosing_settings_are_apart_whatever_the_seed():
    def people(seed, **settings):
        found = split_of(seed, clients=2, tuning_fraction=0.4, **settings)
        return {
            *found.clients.identities.tolist(),
            *found.public_identities.tolist(),
            *found.held_out_identities.tolist(),
        }

    ours = [people(seed) for seed in range(4)]
    others = [people(seed, tuning=True) for seed in range(4)]
    assert not set.union(*ours) & set.union(*others)
    assert len(set.union(*ours)) <= 72 and len(set.union(*others)) <= 48
    assert ours[0] != ours[1] and others[0] != others[1]


def test_tuning_without_people_for_it_is_refused():
    with pytest.raises(InputError, match=r"data\.split\.tuning_fraction: 0\.0"):
        split_of(tuning=True)
    with pytest.raises(InputError, match=r"data\.split\.tuning_fraction: 1\.5"):
        split_of(tuning_fraction=1.5)


def test_quantity_skew_spreads_clients_and_leaves_each_a_batch():
    even = split_of(clients=7).clients
    skewed = split_of(clients=7, quantity_skew=1.5, min_client_images=6).clients
    np.testing.assert_array_equal(skewed.identities, even.identities)
    assert (skewed.sizes <= even.sizes).all() and (skewed.sizes >= 6).all()
    assert skewed.sizes.max() == even.sizes[skewed.sizes.argmax()]  # one client has all
    assert skewed.sizes.min() < 0.5 * even.sizes[skewed.sizes.argmin()]
    assert (skewed.counts > skewed.verification_images).all()  # nobody's person is lost
    again = split_of(clients=7, quantity_skew=1.5, min_client_images=6).clients
    np.testing.assert_array_equal(again.counts, skewed.counts)
    np.testing.assert_array_equal(skewed.verification_counts, even.verification_counts)


def test_a_skew_out_of_range_is_refused():
    with pytest.raises(InputError, match=r"data\.split\.quantity_skew: -1"):
        split_of(quantity_skew=-1.0)


# Digests of splits as they were before people could be shared or grouped.
UNCHANGED = [
    ({}, "7c86c1572c3b18b917a41e4897a2f7eb2ac02fafdab331f4717d22f0c87f53f0"),
    (
        {"seed": 7, "clients": 1},
        "412f0cc465e5aaed32615455b5bc8cb7e0885ddf61c6a49ef65a313ad73a01e5",
    ),
    (
        {"seed": 1, "quantity_skew": 1.0, "unused_public": True},
        "f7dd29923bca116efe13f79b68725bcee5d4d59ecbc04f5c9e7c87026caaacec",
    ),
    (
        {
            "seed": 2,
            "clients": 6,
            "max_training_images": 4,
            "validation_images": 2,
            "client_images": (7, 25),
        },
        "49985e325b52c0191efd6e9b332300ee3c90c0de605d1933b8a44a5b065a00e0",
    ),
    (
        {
            "seed": 3,
            "clients": 5,
            "tuning_fraction": 0.4,
            "tuning": True,
            "held_out_identities": 0,
            "held_out_pairs": 0,
        },
        "7c4f3e70e02e9449c9bb013ffba6b059a6025a885bec10210566d2c72ff07898",
    ),
    (
        {"labels": np.sort(LABELS)},
        "37aa11ebea4a98bab9400d1f790987e884a8bde7e33f37a569e1eaae412014d9",
    ),
]


@pytest.mark.parametrize(("changes", "digest"), UNCHANGED)
def test_splits_of_earlier_runs_are_made_again(changes, digest):
    assert split_digest(split_of(**changes)) == digest
