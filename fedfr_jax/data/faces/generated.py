"""The embedded data set: any number of procedural faces, made on the device when asked for.

A photograph is a pure function of ``(seed, identity, sample)``, an image size and a difficulty,
so nothing is stored and reading any subset in any order gives the same pixels.
"""
from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax.config import DataConfig
from fedfr_jax.data.faces.parameters import identity_parameters, noise_key, sample_parameters
from fedfr_jax.data.faces.renderer import photograph, to_bytes
from fedfr_jax.data.types import ImageSource
from fedfr_jax.errors import InputError

__all__ = [
    "contact_sheet",
    "identity_parameters",
    "open_source",
    "render",
    "render_batch",
    "sample_parameters",
]

SMALLEST_IMAGE = 16  # pixels; below this eyes and mouth share one pixel
BLOCK_PIXELS = 64 * 64 * 64  # pixels of one rendered block, which bounds its working memory
_INT32_END = 2**31
_COUNT_BLOCK = 1 << 18  # identities whose number of images is drawn at a time
_LOW_HALF = 0xFFFFFFFF


def render(seed, identity, sample, *, image_size: int, difficulty=1.0) -> jax.Array:
    """Renders one photograph of one person; works under `jax.jit` and `jax.vmap`.

    Args:
      seed: int scalar, which population.
      identity: int32 scalar, which person.
      sample: int32 scalar, which photograph of that person.
      image_size: side S in pixels, static.
      difficulty: float scalar >= 0; 0 leaves only background, clothes and a slight smile
        to differ between photographs, 1 is the normal strength of pose, light, expression,
        occlusion, blur and noise.

    Returns:
      (S, S, 3) uint8 RGB.
    """
    face = identity_parameters(seed, identity)
    shot = sample_parameters(seed, identity, sample, difficulty)
    return to_bytes(photograph(face, shot, noise_key(seed, identity, sample), image_size))


@functools.partial(jax.jit, static_argnames="image_size")
def render_batch(seed, identities, samples, image_size: int, difficulty=1.0) -> jax.Array:
    """Renders n photographs.

    Args:
      seed: int scalar, which population.
      identities: (n,) int32, the person of each photograph.
      samples: (n,) int32, the number of each photograph.
      image_size: side S in pixels, static.
      difficulty: float scalar >= 0, see `render`.

    Returns:
      (n, S, S, 3) uint8 RGB. One program is compiled per n and S.
    """
    one = functools.partial(render, image_size=image_size, difficulty=difficulty)
    return jax.vmap(one, in_axes=(None, 0, 0))(seed, identities, samples)


def block_images(image_size: int) -> int:
    """Number of images that are rendered together: a power of two, fewer if they are large."""
    return max(1, 2 ** int(math.log2(max(1, BLOCK_PIXELS // image_size**2))))


def render_many(seed: int, identities, samples, image_size: int, difficulty: float) -> np.ndarray:
    """Renders n photographs in padded blocks of one size, so that one program serves any n.

    Args:
      seed: which population.
      identities, samples: (n,) int, as for `render_batch`.
      image_size: side S in pixels.
      difficulty: see `render`.

    Returns:
      (n, S, S, 3) uint8 on the host.
    """
    identities, samples = np.asarray(identities, np.int32), np.asarray(samples, np.int32)
    out = np.empty((len(identities), image_size, image_size, 3), np.uint8)
    block = block_images(image_size)
    strength = jnp.float32(difficulty)
    for start in range(0, len(identities), block):
        count = min(block, len(identities) - start)
        chosen = slice(start, start + count)
        who = np.pad(identities[chosen], (0, block - count))
        which = np.pad(samples[chosen], (0, block - count))
        out[chosen] = np.asarray(render_batch(seed, who, which, image_size, strength))[:count]
    return out


def _image_counts(seed: int, identities: int, fewest: int, most: int) -> np.ndarray:
    """(identities,) int64 images per person; a person's number does not depend on the others.

    It is what ``np.random.default_rng((seed, person)).integers(fewest, most + 1)`` gives. Making
    a generator per person would take half a minute for four million.
    """
    if fewest == most:
        return np.full(identities, most, np.int64)
    counts = np.empty(identities, np.int64)
    spread = most - fewest + 1
    for start in range(0, identities, _COUNT_BLOCK):
        part = counts[start : start + _COUNT_BLOCK]
        draws = _first_draws(seed, np.arange(start, start + len(part), dtype=np.uint32))
        scaled = draws * np.uint64(spread)  # Lemire's method: the upper half is the number
        part[:] = fewest + (scaled >> 32)
        # A generator draws again for what would make some numbers more likely than others.
        for i in np.flatnonzero((scaled & _LOW_HALF) < 2**32 % spread):
            part[i] = np.random.default_rng((seed, start + int(i))).integers(fewest, most + 1)
    return counts


def _first_draws(seed: int, persons: np.ndarray) -> np.ndarray:
    """First 32 random bits of ``np.random.default_rng((seed, person))`` for many persons.

    NumPy's SeedSequence and the PCG64 generator, whose streams NumPy guarantees to keep, on
    arrays in place of numbers; unsigned integers wrap around.

    Args:
      seed: below 2**32.
      persons: (n,) uint32.

    Returns:
      (n,) uint64, below 2**32.
    """
    words = _seed_words(seed, persons)
    state_high, state_low, high, low = (
        words[2 * i].astype(np.uint64) | words[2 * i + 1].astype(np.uint64) << 32 for i in range(4)
    )
    increment = (high << 1 | low >> 63, low << 1 | 1)
    state = _step(_add((state_high, state_low), increment), increment)
    high, low = _step(state, increment)
    folded, turn = high ^ low, high >> 58
    return (folded >> turn | folded << (-turn & 63)) & _LOW_HALF


def _seed_words(seed: int, persons: np.ndarray) -> list[np.ndarray]:
    """The 8 words, (n,) uint32, of ``np.random.SeedSequence((seed, person)).generate_state(8)``."""

    def hashes(start, factor):
        constant = start

        def mix_in(value):
            nonlocal constant
            value = value ^ constant
            constant = constant * factor & _LOW_HALF
            value = value * constant
            return value ^ value >> 16

        return mix_in

    mix_in = hashes(0x43B0D7E5, 0x931E8875)
    nothing = np.zeros_like(persons)
    pool = [mix_in(word) for word in (nothing + seed, persons, nothing, nothing)]
    for source in range(4):
        for target in range(4):
            if source != target:
                mixed = pool[target] * 0xCA01F9DD - mix_in(pool[source]) * 0x4973F715
                pool[target] = mixed ^ mixed >> 16
    mix_in = hashes(0x8B51F9DD, 0x58F38DED)
    return [mix_in(pool[i % 4]) for i in range(8)]


# Numbers of 128 bits are pairs (high, low) of uint64 arrays.
def _add(a, b):
    low = a[1] + b[1]
    return a[0] + b[0] + (low < b[1]), low


def _step(state, increment):
    """PCG64's ``state * factor + increment``."""
    factor_high, factor_low = 2549297995355413924, 4865540595714422341
    high, low = state
    low_low, low_high = low & _LOW_HALF, low >> 32
    middle = low_high * (factor_low & _LOW_HALF) + (low_low * (factor_low & _LOW_HALF) >> 32)
    other = low_low * (factor_low >> 32) + (middle & _LOW_HALF)
    carried = low_high * (factor_low >> 32) + (middle >> 32) + (other >> 32)
    product = (carried + high * factor_low + low * factor_high, low * factor_low)
    return _add(product, increment)


class _Names(Sequence[str]):
    """``person0``, ``person1``, ... with as many digits as the last one needs, made on demand."""

    def __init__(self, count: int):
        self._numbers, self._width = range(count), len(str(count - 1))

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, identity: int) -> str:
        return f"person{self._numbers[operator.index(identity)]:0{self._width}d}"


def _check(config: DataConfig) -> tuple[int, int]:
    """Returns (fewest, most) images per identity, or says which setting is wrong."""
    made = config.generated
    if not 1 <= made.identities < _INT32_END:
        raise InputError(
            f"data.generated.identities is {made.identities}; set it to at least 1"
        )
    if len(made.images_per_identity) != 2:
        raise InputError(
            f"data.generated.images_per_identity is {tuple(made.images_per_identity)}; "
            "give two numbers, (fewest, most)"
        )
    fewest, most = made.images_per_identity
    if not 1 <= fewest <= most < _INT32_END:
        raise InputError(
            f"data.generated.images_per_identity is ({fewest}, {most}); "
            "give (fewest, most) with 1 <= fewest <= most"
        )
    if not (math.isfinite(made.difficulty) and made.difficulty >= 0):
        raise InputError(
            f"data.generated.difficulty is {made.difficulty}; set a finite number >= 0 "
            "(0 = no nuisance, 1 = normal)"
        )
    if config.image_size < SMALLEST_IMAGE:
        raise InputError(
            f"data.image_size is {config.image_size}; generated faces need at least "
            f"{SMALLEST_IMAGE} pixels"
        )
    if not 0 <= config.seed < _INT32_END:
        raise InputError(f"data.seed is {config.seed}; set it to 0 or more, below 2**31")
    return fewest, most


def open_source(config: DataConfig) -> ImageSource:
    """Opens the generated data set; images are rendered when they are read.

    Args:
      config: `seed`, `image_size` and `generated` are used.

    Returns:
      Source with all images of identity 0, then of identity 1, and so on. Its labels are int32,
      of which there may be 10**8, and it can draw on the device (``describe`` and ``render``).

    Raises:
      InputError: a setting is out of range; from `read` and `describe`, an image number is.
    """
    fewest, most = _check(config)
    made, seed, size = config.generated, config.seed, config.image_size
    counts = _image_counts(seed, made.identities, fewest, most)
    labels = np.repeat(np.arange(made.identities, dtype=np.int32), counts)
    starts = np.cumsum(counts) - counts
    name = f"generated faces (seed {seed}, difficulty {made.difficulty:g})"

    def describe(numbers: np.ndarray) -> dict[str, np.ndarray]:
        numbers = np.asarray(numbers, np.int64)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(labels):
            raise InputError(f"{name}: image numbers must lie in [0, {len(labels)})")
        identity = labels[numbers]
        return {"identity": identity, "sample": (numbers - starts[identity]).astype(np.int32)}

    def draw(identity: jax.Array, sample: jax.Array) -> jax.Array:
        return render_batch(seed, identity, sample, size, np.float32(made.difficulty))

    def read(numbers: np.ndarray) -> np.ndarray:
        chosen = describe(numbers)
        return render_many(seed, chosen["identity"], chosen["sample"], size, made.difficulty)

    return ImageSource(name, labels, size, read, _Names(made.identities), describe, draw)


def contact_sheet(
    seed: int,
    identities: int = 8,
    samples: int = 10,
    image_size: int = 112,
    difficulty: float = 1.0,
) -> np.ndarray:
    """Renders a table of faces, one row per person, to be looked at.

    Args:
      seed: which population.
      identities, samples: numbers of rows and of columns.
      image_size: side S in pixels.
      difficulty: see `render`.

    Returns:
      (identities, samples, S, S, 3) uint8.
    """
    who = np.repeat(np.arange(identities), samples)
    which = np.tile(np.arange(samples), identities)
    images = render_many(seed, who, which, image_size, difficulty)
    return images.reshape(identities, samples, image_size, image_size, 3)
