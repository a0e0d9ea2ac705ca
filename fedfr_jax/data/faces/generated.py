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

from fedfr_jax.data.faces.parameters import identity_parameters, noise_key, sample_parameters
from fedfr_jax.data.faces.renderer import photograph, to_bytes
from fedfr_jax.data.types import ImageSource
from fedfr_jax.errors import InputError
from fedfr_jax.settings import DataConfig

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
_COUNTS_STREAM = 0xFA_CE_05  # separates this random stream from others of the same seed


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
    """(identities,) int64 images per person.

    They are drawn one after the other, so a person's number does not depend on how many follow.
    """
    stream = np.random.SeedSequence(seed, spawn_key=(_COUNTS_STREAM,))
    return np.random.default_rng(stream).integers(fewest, most + 1, identities)


class _Names(Sequence[str]):
    """``person0``, ``person1``, ... padded to the digits of the last one, made on demand."""

    def __init__(self, count: int):
        self._numbers, self._width = range(count), len(str(count - 1))

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, identity: int) -> str:  # type: ignore[override]
        return f"person{self._numbers[operator.index(identity)]:0{self._width}d}"


def _check(config: DataConfig) -> tuple[int, int]:
    """Returns (fewest, most) images per identity, or says which setting is wrong."""
    made = config.generated
    if not 1 <= made.identities < _INT32_END:
        raise InputError(f"data.generated.identities is {made.identities}; set it to at least 1")
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
      Source with all images of identity 0, then of identity 1, and so on. Its labels are int32
      (there may be 10**8), and it can render on the device (``describe`` and ``render``).

    Raises:
      InputError: a setting is out of range; `read` and `describe` raise it for an image number.
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
