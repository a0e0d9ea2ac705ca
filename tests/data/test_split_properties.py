"""Any settings of the split give one that keeps all its promises, or are refused at once."""

import dataclasses
import os
import time

import numpy as np
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from fedfr_jax.data.split import make_split
from fedfr_jax.errors import InputError
from fedfr_jax.runtime.fingerprints import split_digest
from fedfr_jax.settings import SplitConfig

EXAMPLES = int(os.environ.get("FEDFR_SPLITS", "250"))
FEATURES = np.random.default_rng(0).standard_normal((240, 3))
MANY = (1, 10**6)


def of(*values):
    return st.sampled_from(values)


PLAUSIBLE = {
    "tuning_fraction": of(0.0, 0.0, 0.4),
    "client_fraction": of(0.5, 0.8, 1.0),
    "identities_per_client": of((1, 1), (2, 2), (2, 5), (1, 8)),
    "client_images": of(MANY, MANY, (8, 20)),
    "verification_images": of(0, 1, 2, 4),
    "validation_images": of(0, 0, 2),
    "public_identities": of(0, 0, 5),
    "public_images": of(MANY, MANY, (5, 15)),
    "unused_public": st.booleans(),
    "max_training_images": of(0, 0, 1, 4),
    "quantity_skew": of(0.0, 0.0, 0.7),
    "held_out_identities": of(0, 5, 15),
    "shared_identities": of(0.0, 0.2, 0.3, 0.5, 1.0),
    "sites_per_shared_identity": of(2, 2, 2, 3),
    "skew_by": of("", "cluster", "brightness", "sharpness"),
    "skew_alpha": of(1e-3, 0.1, 1.0, 1e6),
    "skew_groups": of(2, 3, 10),
}
# At most one of these is set, so that what is refused is refused for it.
IMPOSSIBLE = [
    {"tuning_fraction": 1.0},
    {"tuning": True, "tuning_fraction": 0.0},
    {"client_fraction": 0.0},
    {"identities_per_client": (0, 3)},
    {"identities_per_client": (5, 2)},
    {"identities_per_client": (1, 2**31 - 1)},
    {"client_images": (26, 30)},
    {"verification_images": 25},
    {"public_images": (26, 30), "client_fraction": 0.5},
    {"quantity_skew": -1.0},
    {"held_out_identities": 10**9},
    {"held_out_pairs": 5},
    {"held_out_pairs": 10**7},
    {"shared_identities": -0.1},
    {"shared_identities": 1.1},
    {"shared_identities": 1.0, "sites_per_shared_identity": 10**9},
    {"sites_per_shared_identity": 1},
    {"skew_by": "age"},
    {"skew_by": "cluster", "skew_alpha": 0.0},
    {"skew_by": "cluster", "skew_groups": 1},
    {"skew_by": "cluster", "skew_groups": 300},
    {"skew_by": "brightness", "skew_features": "features.npy"},
]


@st.composite
def wishes(draw):
    """(labels, number of clients, settings, whether they are impossible)."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    people = draw(of(40, 120, 240))
    labels = np.repeat(np.arange(people), rng.integers(draw(st.integers(1, 10)), 26, people))
    if draw(st.booleans()):
        labels = rng.permutation(labels)
    clients = draw(of(3, 4, 5, 6, 7, 8, 9, 2, 1))
    values = {name: draw(choices) for name, choices in PLAUSIBLE.items()}
    if values["tuning_fraction"]:
        values["tuning"] = draw(st.booleans())
    if values["held_out_identities"]:
        values["held_out_pairs"] = draw(of(0, 10, 40))
    impossible = draw(st.one_of(st.none(), st.none(), st.sampled_from([{}, *IMPOSSIBLE])))
    if impossible == {}:
        clients = draw(of(0, 10**6, 2**31 - 1))
    return labels, clients, SplitConfig(**values | (impossible or {})), impossible is not None


def features_for(config):
    columns = slice(None) if config.skew_by == "cluster" else 0
    return lambda people, numbers: FEATURES[people][:, columns]


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FEDFR_SPLITS" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(wish=wishes(), seed=st.integers(0, 3), least=of(1, 1, 1, 4))
def test_a_split_keeps_its_promises_or_is_refused_at_once(wish, seed, least):
    labels, clients, config, impossible = wish
    features = features_for(config)

    def split_now():
        return make_split(labels, clients, config, seed, min_client_images=least, features=features)

    started = time.process_time()
    try:
        split = split_now()
    except InputError as refusal:
        event(f"refused: {str(refusal)[:40]}")
        assert time.process_time() - started < 1
        return
    assert time.process_time() - started < 1
    assert not impossible
    event(f"split, sharing {config.shared_identities > 0}, skewed {config.skew_by != ''}")
    assert split_digest(split) == split_digest(split_now())
    check_people(split, labels, clients, config)
    check_images(split, labels, config, least)
    check_shared(split, config)
    check_pairs(split, labels, config)


def check_people(split, labels, clients, config):
    counts = np.bincount(labels)
    assert len(split.clients) == clients
    groups = [np.unique(split.clients.identities)]
    groups += [split.public_identities, split.held_out_identities]
    everybody = np.concatenate(groups)
    assert len(np.unique(everybody)) == len(everybody)
    assert len(split.held_out_identities) == config.held_out_identities
    low, high = config.identities_per_client
    for client in split.clients:
        assert low <= len(client.identities) <= high
        assert len(np.unique(client.identities)) == len(client.identities)
    for (low, high), people in zip(
        (config.client_images, config.public_images), groups[:2], strict=True
    ):
        assert ((counts[people] >= low) & (counts[people] <= high)).all()
    if config.tuning_fraction:
        size = round(config.tuning_fraction * len(np.unique(labels)))
        used = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(4,)))
        part = used.permutation(np.unique(labels))[:size]
        assert (
            np.isin(everybody, part).all() if config.tuning else not np.isin(everybody, part).any()
        )
    if split.groups is not None:
        assert len(split.groups) == len(split.clients.identities)
        assert split.groups.min() >= 0 and split.groups.max() < config.skew_groups
        group = dict(zip(split.clients.identities.tolist(), split.groups.tolist(), strict=True))
        assert [group[i] for i in split.clients.identities.tolist()] == split.groups.tolist()
    assert (split.groups is None) == (not config.skew_by)


def check_images(split, labels, config, least):
    taken = [split.public_images]
    np.testing.assert_array_equal(
        labels[split.public_images], split.public_identities[split.public_labels]
    )
    for number, client in enumerate(split.clients):
        validation, of = split.clients.validation(np.array([number]))
        for images, local, most in (
            (client.verification_images, client.verification_labels, config.verification_images),
            (validation, of, config.validation_images),
            (client.train_images, client.train_labels, config.max_training_images or 10**6),
        ):
            taken.append(images)
            np.testing.assert_array_equal(labels[images], client.identities[local])
            found = np.bincount(local, minlength=len(client.identities))
            if images is client.train_images:
                assert ((found >= 1) & (found <= most)).all()
            else:
                assert (found == most).all()
        assert len(client.train_images) >= least
        assert len(client.train_images) == split.clients.sizes[number]
    taken = np.concatenate(taken)
    assert len(np.unique(taken)) == len(taken)


def check_shared(split, config):
    clients, sites = split.clients, config.sites_per_shared_identity
    assert np.isin(clients.sites, [1, sites] if config.shared_identities else [1]).all()
    if not config.shared_identities:
        return
    shared = np.bincount(clients.entry_clients[clients.sites > 1], minlength=len(clients))
    assert shared.sum() > 0
    # Up to rounding: to whole people, and to whole groups of clients that share one.
    wanted = config.shared_identities * clients.identity_counts
    assert (np.abs(shared - wanted) < 2 + 1e-6).all()
    assert wanted.sum() - shared.sum() < sites + 0.5 + 1e-6
    assert clients.union().identity_counts[0] == len(np.unique(clients.identities))


def check_pairs(split, labels, config):
    assert len(split.pairs) == 2 * config.held_out_pairs
    owners = labels[split.pairs]
    assert np.isin(owners, split.held_out_identities).all()
    np.testing.assert_array_equal(owners[:, 0] == owners[:, 1], split.pairs_same)
    assert len(np.unique(np.sort(split.pairs, axis=1), axis=0)) == len(split.pairs)


def test_settings_of_one_thing_leave_the_others_alone():
    labels = np.repeat(np.arange(80), 20)
    base = SplitConfig(identities_per_client=(3, 5), held_out_identities=10, held_out_pairs=20)
    plain = make_split(labels, 6, base, 0)
    for changes in (
        {"shared_identities": 0.5},
        {"skew_by": "cluster", "skew_groups": 3},
        {"shared_identities": 0.5, "skew_by": "brightness", "skew_groups": 4},
    ):
        config = dataclasses.replace(base, **changes)
        other = make_split(labels, 6, config, 0, features=features_for(config))
        assert other.clients.identity_counts.tolist() == plain.clients.identity_counts.tolist()
        for name in ("public_images", "held_out_identities", "pairs"):
            np.testing.assert_array_equal(getattr(other, name), getattr(plain, name))
        assert split_digest(other) != split_digest(plain)
