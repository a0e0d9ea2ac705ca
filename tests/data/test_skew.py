"""Clients with similar people: groups, and who gets whom."""

import numpy as np
import pytest

from fedfr_jax.data import attributes
from fedfr_jax.data.attributes import LOOKED_AT, features_of
from fedfr_jax.data.skew import draw_people, effective_groups, group_counts, group_people
from fedfr_jax.data.split import make_split
from fedfr_jax.data.split_file import load_split, save_split
from fedfr_jax.data.types import ImageSource
from fedfr_jax.errors import ConfigError, InputError
from fedfr_jax.settings import SplitConfig

PEOPLE, EACH, SIZE = 120, 6, 12
LABELS = np.repeat(np.arange(PEOPLE), EACH)
KIND = np.random.default_rng(1).permutation(PEOPLE) % 4  # what people look like
COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [120, 120, 120]])


def source(images=None):
    """Faces of four colours, the brighter the higher the person's number, with some noise."""
    if images is None:
        rng = np.random.default_rng(0)
        shade = (LABELS * 0.3)[:, None, None, None]
        noise = rng.integers(-10, 11, (len(LABELS), SIZE, SIZE, 3))
        images = np.clip(COLOURS[KIND[LABELS]][:, None, None] + shade + noise, 0, 255)
        images = images.astype(np.uint8)
    names = [str(i) for i in range(PEOPLE)]
    return ImageSource("x", LABELS, SIZE, lambda n: images[n].copy(), names)


def split_of(clients=12, seed=0, data=None, **changes):
    config = SplitConfig(
        **{"client_fraction": 1.0, "identities_per_client": (4, 6), "verification_images": 2}
        | {"skew_by": "cluster", "skew_groups": 4, "skew_alpha": 0.05}
        | changes
    )
    data = source() if data is None else data
    return make_split(LABELS, clients, config, seed, features=features_of(data, config))


def test_clusters_are_of_people_who_look_alike_and_clients_have_few():
    split = split_of()
    pairs = set(zip(KIND[split.clients.identities], split.groups.tolist(), strict=True))
    assert len(pairs) == 4 == len(np.unique(split.groups))
    owner, count = split.clients.entry_clients, len(split.clients)
    few = effective_groups(split.groups, owner, count)
    many = split_of(skew_alpha=1e6)
    all_alike = effective_groups(many.groups, many.clients.entry_clients, count)
    assert few.mean() < 1.5 and all_alike.mean() > 2.5


@pytest.mark.parametrize("kind", ["brightness", "sharpness"])
def test_quantiles_are_in_the_order_of_the_attribute(kind):
    rng = np.random.default_rng(2)
    level = rng.permutation(PEOPLE)
    if kind == "brightness":
        images = np.broadcast_to(level[LABELS, None, None, None] * 2, (len(LABELS), SIZE, SIZE, 3))
    else:
        board = 2 * (np.indices((SIZE, SIZE)).sum(axis=0)[..., None] % 2) - 1
        images = 128 + board * level[LABELS, None, None, None] + np.zeros((1, 1, 1, 3))
    split = split_of(data=source(images.astype(np.uint8)), skew_by=kind, skew_groups=5)
    people = split.clients.identities
    np.testing.assert_array_equal(split.groups, level[people] * 5 // PEOPLE)
    order = np.argsort(level[people])
    assert (np.diff(split.attribute[order]) >= 0).all()
    if kind == "brightness":
        np.testing.assert_allclose(split.attribute, 2 * level[people])


def test_sharpness_is_the_variance_of_the_laplacian():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    luma = image @ np.array([0.299, 0.587, 0.114])
    found = [
        luma[y - 1, x] + luma[y + 1, x] + luma[y, x - 1] + luma[y, x + 1] - 4 * luma[y, x]
        for y in range(1, 8)
        for x in range(1, 8)
    ]
    assert attributes.sharpness(image) == pytest.approx(np.var(found))
    assert attributes.brightness(image) == pytest.approx(luma.mean())
    assert attributes.sharpness(np.full((9, 9, 3), 7, np.uint8)) == pytest.approx(0)


def test_shares_of_groups_are_those_of_a_dirichlet_distribution():
    # Many clients, and so many people that no group runs out.
    alpha, share = 2.0, np.array([0.5, 0.3, 0.2])
    group = np.repeat(np.arange(3), (share * 1_000_000).astype(int))
    sizes = np.full(3000, 40)
    drawn = draw_people(group, sizes, alpha, np.random.default_rng(0))
    owner = np.repeat(np.arange(3000), sizes)
    found = group_counts(group[drawn], owner, 3000) / 40
    np.testing.assert_allclose(found.mean(axis=0), share, atol=0.02)
    # Variance of a Dirichlet-multinomial share with concentration alpha G.
    total = alpha * 3
    expected = share * (1 - share) / 40 * (40 + total) / (1 + total)
    np.testing.assert_allclose(found.var(axis=0), expected, rtol=0.1)


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e6])
def test_everybody_is_drawn_once_where_all_are_needed(alpha):
    rng = np.random.default_rng(0)
    group = np.unique(rng.integers(0, 7, 300) ** 2, return_inverse=True)[1]
    sizes = rng.multinomial(300, np.full(40, 1 / 40))
    drawn = draw_people(group, sizes, alpha, rng)
    np.testing.assert_array_equal(np.sort(drawn), np.arange(300))


def test_features_from_a_file(tmp_path):
    path = tmp_path / "features.npy"
    np.save(path, np.eye(4, dtype=np.float32)[KIND] * 3)
    split = split_of(skew_features=str(path), data=source(np.zeros((len(LABELS), 1, 1, 3))))
    assert len(set(zip(KIND[split.clients.identities], split.groups.tolist(), strict=True))) == 4
    assert split.attribute is None
    for array, message in (
        (np.zeros((PEOPLE - 1, 4)), r"shape \(119, 4\); give .* \(120, d\)"),
        (np.zeros(PEOPLE), r"shape \(120,\)"),
        (np.zeros((PEOPLE, 3), "U1"), "number array"),
        (np.full((PEOPLE, 4), np.nan), r"row \d+ of .* is not finite"),
        (np.ones((PEOPLE, 4)), "do not differ"),
    ):
        np.save(path, array)
        with pytest.raises(InputError, match=message):
            split_of(skew_features=str(path))
    path.write_bytes(b"x")
    with pytest.raises(InputError, match=r"features\.npy"):
        split_of(skew_features=str(path))


def test_too_many_people_are_refused_before_an_image_is_read(monkeypatch):
    def read(numbers):
        raise AssertionError("read")

    names = [str(i) for i in range(PEOPLE)]
    data = ImageSource("x", LABELS, SIZE, read, names)
    monkeypatch.setattr(attributes, "MOST_PEOPLE", 100)
    with pytest.raises(ConfigError, match=r"images of 120 people .* at most 100"):
        split_of(data=data)
    with pytest.raises(InputError, match="too few client identities"):
        split_of(clients=100, data=data)
    with pytest.raises(InputError, match=r"skew_groups: 200 wanted, but only 120"):
        split_of(skew_groups=200, data=data)


def test_only_images_of_people_who_can_be_drawn_are_looked_at():
    seen, inner = [], source()

    def read(numbers):
        seen.append(numbers)
        return inner.read(numbers)

    data = ImageSource("x", LABELS, SIZE, read, inner.identity_names)
    split = split_of(clients=5, client_fraction=0.4, data=data)
    numbers = np.concatenate(seen)
    people, counts = np.unique(LABELS[numbers], return_counts=True)
    assert len(people) == 48 and (counts == LOOKED_AT).all()
    assert np.isin(split.clients.identities, people).all()
    assert sorted({int(n) % EACH for n in numbers}) == [0, 2, 5]  # at equal distances


def test_groups_are_saved(tmp_path):
    split = split_of()
    save_split(tmp_path / "split.npz", split)
    np.testing.assert_array_equal(load_split(tmp_path / "split.npz").groups, split.groups)


def test_clustering_copes_with_fewer_kinds_than_groups():
    kinds = np.repeat([[0.0, 1], [5, 5], [9, 0]], 20, axis=0)
    groups = group_people(kinds, 10, np.random.default_rng(0))
    assert sorted(np.unique(groups)) == list(range(groups.max() + 1))
    for k in range(3):
        assert len(set(groups[20 * k : 20 * k + 20])) == 1


def test_effective_numbers():
    groups = np.array([0, 0, 0, 1, 0, 1, 2, 2])
    client = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    expected = [np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))), 3, 1]
    np.testing.assert_allclose(effective_groups(groups, client, 3), expected)
