"""The embedded data set: reproducible, well-formed faces whose difficulty can be set."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import ROOT

from fedfr_jax.data.faces import draws, generated, parameters, renderer
from fedfr_jax.errors import InputError
from fedfr_jax.settings import DataConfig, GeneratedConfig

SIZE = 32


def _config(**changes) -> DataConfig:
    made = GeneratedConfig(identities=12, images_per_identity=(3, 9))
    return DataConfig(image_size=SIZE, seed=5, generated=dataclasses.replace(made, **changes))


def _faces(difficulty: float, people: int = 12, samples: int = 8) -> np.ndarray:
    sheet = generated.contact_sheet(0, people, samples, SIZE, difficulty)
    return sheet.reshape(people, samples, -1).astype(np.float32) / 255.0


def _within(faces: np.ndarray) -> float:
    return float(faces.var(axis=1).mean())


def _between(faces: np.ndarray) -> float:
    return float(faces.mean(axis=1).var(axis=0).mean())


def test_source_is_well_formed():
    source = generated.open_source(_config())
    counts = np.bincount(source.labels)
    assert source.num_identities == len(set(source.identity_names)) == len(counts) == 12
    assert counts.min() >= 3
    assert counts.max() <= 9
    assert len(set(counts)) > 1
    assert source.labels.dtype == np.int32
    images = source.read(np.arange(len(source.labels)))
    assert images.shape == (len(source.labels), SIZE, SIZE, 3)
    assert images.dtype == np.uint8
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_counts_do_not_depend_on_the_number_of_identities():
    few, many = (generated.open_source(_config(identities=n)) for n in (5, 40))
    assert np.array_equal(few.labels, many.labels[: len(few.labels)])
    fixed = generated.open_source(_config(images_per_identity=(4, 4)))
    assert np.bincount(fixed.labels).tolist() == [4] * 12


@pytest.mark.parametrize("limits", [(3, 9), (44, 48), (1, 2), (1, 2**31 - 1), (1, 3 * 2**29)])
def test_counts_are_those_of_the_seed_and_the_person(limits):
    # The last two ranges are so wide that a generator often has to draw again.
    many = generated._image_counts(5, 20_000, *limits)
    assert np.array_equal(generated._image_counts(5, 700, *limits), many[:700])
    assert not np.array_equal(generated._image_counts(6, 20_000, *limits), many)
    assert limits[0] <= many.min() <= many.max() <= limits[1]
    assert abs((many - limits[0]).mean() / (limits[1] - limits[0]) - 0.5) < 0.02
    if limits[1] < 100:
        assert set(many) == set(range(limits[0], limits[1] + 1))


def test_millions_of_people_cost_little():
    tracemalloc.start()
    source = generated.open_source(_config(identities=1_000_000, images_per_identity=(2, 4)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 * 2**20
    assert source.num_identities == 1_000_000
    names = source.identity_names
    assert (names[0], names[-1], names[7]) == ("person000000", "person999999", "person000007")
    with pytest.raises(IndexError):
        names[1_000_000]
    last = source.describe(np.array([len(source.labels) - 1]))
    assert last["identity"] == [999_999]
    assert last["sample"] == [np.bincount(source.labels)[-1] - 1]


def test_drawing_on_the_device_gives_what_is_read():
    source = generated.open_source(_config(identities=30))
    block = generated.block_images(SIZE)
    numbers = np.random.default_rng(0).permutation(len(source.labels))[:block]
    inputs = source.describe(numbers)
    assert {v.dtype for v in inputs.values()} == {np.dtype(np.int32)}
    assert {v.shape for v in inputs.values()} == {numbers.shape}
    read = source.read(numbers)
    assert np.array_equal(source.render(**inputs), read)
    drawn = jax.jit(source.render)(**inputs)
    assert drawn.dtype == jnp.uint8
    assert np.abs(np.asarray(drawn).astype(int) - read).max() <= 1
    assert np.abs(source.read(numbers[::-1]).astype(int) - read).max() > 1


def test_any_subset_in_any_order_has_the_same_pixels():
    # More than one block, so that padding and block borders matter.
    config = _config(identities=50, images_per_identity=(7, 7))
    source = generated.open_source(config)
    assert len(source.labels) > generated.block_images(SIZE)
    everything = source.read(np.arange(len(source.labels)))
    order = np.random.default_rng(0).permutation(len(source.labels))
    assert np.array_equal(source.read(order), everything[order])
    assert np.array_equal(source.read(np.array([17, 3, 17])), everything[[17, 3, 17]])
    assert source.read(np.array([], np.int64)).shape == (0, SIZE, SIZE, 3)
    again = generated.open_source(config).read(order[:5])
    assert np.array_equal(again, everything[order[:5]])


def test_a_photograph_is_the_same_at_any_position_of_a_block():
    count = generated.block_images(SIZE) + 3
    images = generated.render_many(5, np.full(count, 3), np.full(count, 2), SIZE, 1.0)
    assert (images == images[0]).all()
    mixed = generated.render_many(5, np.array([9, 3, 8]), np.array([0, 2, 1]), SIZE, 1.0)
    assert np.array_equal(mixed[1], images[0])


OTHER_OPTIONS = """
import sys; sys.path[:0] = ["tests", "tests/data"]
import jax, numpy, test_generated
assert len(jax.devices()) == 1
assert jax.config.jax_enable_x64 and not jax.config.jax_threefry_partitionable
source = test_generated.generated.open_source(test_generated._config())
numpy.save(sys.argv[1], source.read(numpy.arange(40)))
"""


@pytest.mark.slow
def test_images_do_not_depend_on_devices_and_options(tmp_path):
    # This process has two devices and the default options.
    source = generated.open_source(_config())
    images = source.read(np.arange(40))
    with jax.default_device(jax.devices()[1]):
        assert np.array_equal(source.read(np.arange(40)), images)
    options = {
        "JAX_ENABLE_X64": "1",
        "JAX_THREEFRY_PARTITIONABLE": "0",
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=2", "count=1"),
    }
    subprocess.run(
        [sys.executable, "-c", OTHER_OPTIONS, str(tmp_path / "images.npy")],
        cwd=ROOT,
        env=os.environ | options,
        check=True,
    )
    assert np.array_equal(np.load(tmp_path / "images.npy"), images)


def test_draws_are_those_of_the_key():
    # Written down, because recorded results name populations by their seeds.
    key = draws.population_key(7)
    assert draws.random_bits(key, 3).tolist() == [2895194379, 4185947648, 1300703658]
    assert np.array_equal(draws.random_bits(key, 1000)[:3], draws.random_bits(key, 3))
    numbers = draws.uniform(key, 100_000)
    assert numbers.dtype == jnp.float32
    assert 0 <= numbers.min() <= numbers.max() < 1
    shares = np.histogram(numbers, bins=10, range=(0, 1))[0] / numbers.size
    assert np.abs(shares - 0.1).max() < 0.004


def test_seeds_identities_and_samples_differ():
    who, which = np.array([0, 0, 1]), np.array([0, 1, 0])
    one = generated.render_many(0, who, which, SIZE, 1.0).astype(int)
    other = generated.render_many(1, who, which, SIZE, 1.0).astype(int)
    for a, b in ((one[0], one[1]), (one[0], one[2]), (one[0], other[0])):
        assert np.abs(a - b).mean() > 3


def test_render_agrees_alone_and_in_a_batch_and_is_finite():
    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0, None))
    def both(seed, identity, sample, difficulty):
        face = generated.identity_parameters(seed, identity)
        shot = generated.sample_parameters(seed, identity, sample, difficulty)
        key = parameters.noise_key(seed, identity, sample)
        image = generated.render(seed, identity, sample, image_size=SIZE, difficulty=difficulty)
        return image, renderer.photograph(face, shot, key, SIZE)

    who, which = np.arange(40), np.arange(40) + 2
    for difficulty in (0.0, 1.0, 3.0):
        images, floats = both(7, who, which, jnp.float32(difficulty))
        assert images.dtype == jnp.uint8
        assert bool(jnp.isfinite(floats).all())
        blocks = generated.render_many(7, who, which, SIZE, difficulty)
        # Another batch size is another program, which may round differently by one step.
        assert np.abs(np.asarray(images).astype(int) - blocks).max() <= 1


def test_traits_are_a_function_of_the_identity():
    traits = jax.jit(jax.vmap(generated.identity_parameters, in_axes=(None, 0)))
    forward, backward = traits(0, np.arange(200)), traits(0, np.arange(200)[::-1])
    for name, values in forward.items():
        assert values.shape == (200,)
        assert np.array_equal(values, backward[name][::-1])
    alone = traits(0, np.array([17]))  # another batch size, which may round differently
    assert all(np.allclose(alone[name], forward[name][17], atol=1e-6) for name in forward)
    assert all(values.dtype == np.float32 for values in forward.values())
    table = np.corrcoef(np.stack(list(forward.values())))
    assert np.abs(table - np.eye(len(table))).max() < 0.35


def test_without_nuisance_a_person_resembles_himself_most():
    faces = _faces(0.0).mean(axis=1)
    single = _faces(0.0)[:, 0]
    nearest = np.linalg.norm(single[:, None] - faces[None], axis=2).argmin(axis=1)
    assert nearest.tolist() == list(range(12))
    everything = _faces(0.0)
    assert _between(everything) > _within(everything)


def test_difficulty_makes_photographs_of_a_person_differ():
    spread = [_within(_faces(d)) for d in (0.0, 0.4, 1.0)]
    assert spread[0] < 0.8 * spread[1] < 0.8 * 0.8 * spread[2]
    hard = _faces(1.0)
    assert _within(hard) > _between(hard)


def test_images_are_neither_flat_nor_saturated():
    faces = _faces(1.0, people=16, samples=16)
    assert 0.3 < faces.mean() < 0.6
    assert faces.std() > 0.12
    assert (faces >= 1.0).mean() < 0.01
    assert (faces <= 0.0).mean() < 0.02
    assert faces.std(axis=2).min() > 0.01


@pytest.mark.parametrize("size", [48, 112])
def test_the_same_person_at_another_size(size):
    who, which = np.arange(4), np.zeros(4, int)
    small = generated.render_many(0, who, which, SIZE, 0.0).astype(np.float32)
    large = generated.render_many(0, who, which, size, 0.0)
    assert large.shape == (4, size, size, 3)
    shape = (4, SIZE, SIZE, 3)
    reduced = jax.image.resize(large.astype(np.float32), shape, "linear", antialias=True)
    distance = np.abs(np.asarray(reduced)[:, None] - small[None]).mean(axis=(2, 3, 4))
    assert distance.argmin(axis=1).tolist() == [0, 1, 2, 3]
    assert distance.diagonal().max() < 8


def test_extreme_settings_still_give_pictures():
    image = generated.contact_sheet(0, 2, 20, SIZE, 3.0).astype(np.float32)
    assert image.shape == (2, 20, SIZE, SIZE, 3)
    assert image.std() > 10


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"identities": 0}, "data.generated.identities"),
        ({"images_per_identity": (5, 3)}, "data.generated.images_per_identity"),
        ({"images_per_identity": (0, 3)}, "data.generated.images_per_identity"),
        ({"images_per_identity": (4,)}, "data.generated.images_per_identity"),
        ({"difficulty": -0.1}, "data.generated.difficulty"),
        ({"difficulty": float("nan")}, "data.generated.difficulty"),
    ],
)
def test_bad_settings_are_named(change, word):
    with pytest.raises(InputError, match=word.replace(".", r"\.")):
        generated.open_source(_config(**change))


def test_bad_size_seed_and_image_numbers():
    with pytest.raises(InputError, match=r"data\.image_size"):
        generated.open_source(dataclasses.replace(_config(), image_size=8))
    with pytest.raises(InputError, match=r"data\.seed"):
        generated.open_source(dataclasses.replace(_config(), seed=-1))
    source = generated.open_source(_config())
    for number in (-1, len(source.labels)):
        with pytest.raises(InputError, match="image numbers"):
            source.read(np.array([number]))
        with pytest.raises(InputError, match="image numbers"):
            source.describe(np.array([number]))
