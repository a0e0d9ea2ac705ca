"""Makes images harder: low light, low resolution, blur, JPEG, occlusion, a colour cast.

If it is the same for all images, it is a domain shift that even a strong pretrained backbone has to
learn. If it is drawn for each client, clients differ in their cameras, and personalization can
help. Training and evaluation use the same degraded images; an image is the same in every round.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageFilter

from fedfr_jax.data.types import Clients, ImageSource
from fedfr_jax.settings import DEGRADATIONS, DegradeConfig

_STREAM = 0xDE6  # separates these random streams from others of the same seed
_FULL_WELL = 2000.0  # photons per pixel at full light: shot noise
_READ_NOISE = 0.01  # of the sensor, as a share of full light
_PART = 512  # images that are read while as many are degraded


@dataclasses.dataclass(frozen=True)
class Camera:
    """How strongly images are degraded: a strength in [0, 1] for each of ``DEGRADATIONS``.

    Attributes:
      cast: gains of red, green and blue and a gamma, as logarithms at colour = 1.
    """

    occlusion: float = 0.0
    blur: float = 0.0
    low_resolution: float = 0.0
    low_light: float = 0.0
    colour: float = 0.0
    jpeg: float = 0.0
    cast: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)


def camera_of(settings: DegradeConfig, seed: int, client: int) -> Camera:
    """The camera of a client, or of public and held-out people.

    Args:
      settings: with ``per_client`` each strength is multiplied by a number drawn uniformly from 0
        to 2 and limited to 1, so that on average clients have the strength that is set.
      seed: of the data.
      client: its number; -1: public and held-out people.
    """
    everybody = client < 0 or not settings.per_client
    rng = np.random.default_rng(
        np.random.SeedSequence(seed, spawn_key=(_STREAM, 0 if everybody else 1 + client))
    )
    cast, drawn = tuple(0.4 * rng.standard_normal(4)), 2 * rng.random(len(DEGRADATIONS))
    set_to = np.array([getattr(settings, name) for name in DEGRADATIONS])
    strengths = set_to if everybody else np.minimum(set_to * drawn, 1.0)
    named: dict[str, float] = dict(zip(DEGRADATIONS, strengths.tolist(), strict=True))
    return Camera(cast=cast, **named)


def degrade(image: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """One image as taken by a camera.

    Args:
      image: (S, S, 3) uint8 RGB.
      camera: the strengths.
      rng: for noise, and for the position of the occlusion.

    Returns:
      (S, S, 3) uint8.
    """
    if camera.occlusion > 0:
        image = _occluded(image, camera.occlusion, rng)
    if camera.blur > 0:
        radius = 0.04 * camera.blur * len(image)
        image = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
    if camera.low_resolution > 0:
        image = _coarse(image, camera.low_resolution)
    if camera.low_light > 0 or camera.colour > 0:
        image = _developed(image, camera, rng)
    if camera.jpeg > 0:
        image = _compressed(image, camera.jpeg)
    return image


def _occluded(image, share, rng):
    """Draws a gray square at a random position, its side a ``share`` of the image's."""
    side = max(1, round(share * len(image)))
    top, left = rng.integers(0, len(image) - side + 1, 2)
    image = image.copy()
    image[top : top + side, left : left + side] = 96
    return image


def _coarse(image, lost):
    """As from a sensor with fewer pixels: a share ``lost`` less per side, but at least 4."""
    side = max(4, round((1 - lost) * len(image)))
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small.resize(image.shape[1::-1], Image.Resampling.BILINEAR))


def _developed(image, camera, rng):
    """Low light with shot and read noise, brought back to full brightness; then the cast."""
    light = max(1 - camera.low_light, 0.01)
    x = image.astype(np.float32) / 255
    if camera.low_light > 0:
        dim = light * x
        noise = np.sqrt(dim / _FULL_WELL + _READ_NOISE**2, dtype=np.float32)
        x = np.clip((dim + noise * rng.standard_normal(x.shape, np.float32)) / light, 0, 1)
    if camera.colour > 0:
        *gains, gamma = np.exp(camera.colour * np.array(camera.cast))
        x = np.clip(x**gamma * np.array(gains, np.float32), 0, 1)
    return np.round(255 * x).astype(np.uint8)


def _compressed(image, lost):
    """Through JPEG of quality 95 at strength 0 and 5 at strength 1."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=round(95 - 90 * lost))
    return np.asarray(Image.open(file).convert("RGB"))


def _owners(source: ImageSource, clients: Clients) -> Callable[[np.ndarray], np.ndarray]:
    """``image numbers (n,) -> clients (n,)`` that have them, -1: public and held-out people."""
    of_person = np.full(source.num_identities, -1, np.int64)
    of_person[clients.identities] = clients.entry_clients
    # A person of several clients has other images at each.
    images, entry = clients.entry_images(np.flatnonzero(clients.sites > 1))
    order = np.argsort(images)
    images, of_image = images[order], clients.entry_clients[entry[order]]

    def owners(numbers: np.ndarray) -> np.ndarray:
        found = of_person[source.labels[numbers]]
        if len(images):
            place = np.minimum(np.searchsorted(images, numbers), len(images) - 1)
            found = np.where(images[place] == numbers, of_image[place], found)
        return found

    return owners


def degraded(
    source: ImageSource, settings: DegradeConfig, seed: int, clients: Clients
) -> ImageSource:
    """A source with images degraded according to the settings; unchanged if nothing is set.

    Args:
      source: of all images.
      seed: of the data. A degraded image depends only on the seed, its number and its camera.
      clients: which client has which images.
    """
    if not settings.is_active:
        return source
    owners = _owners(source, clients)
    camera = functools.lru_cache(maxsize=4096)(functools.partial(camera_of, settings, seed))

    def one(image: np.ndarray, number: int, owner: int) -> np.ndarray:
        if owner < 0 and not settings.public:
            return image
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM + 1, number)))
        return degrade(image, camera(owner), rng)

    def read(numbers: np.ndarray) -> np.ndarray:
        numbers = np.asarray(numbers)
        size = source.image_size
        images = np.empty((len(numbers), size, size, 3), np.uint8)
        for part, found in _read_ahead(source, numbers):
            every: Iterable[tuple[int, int]] = zip(
                numbers[part].tolist(), owners(numbers[part]).tolist(), strict=True
            )
            for k, (number, owner) in enumerate(every, part.start):
                images[k] = one(found[k - part.start], number, owner)
        return images

    return dataclasses.replace(source, read=read, describe=None, render=None)


def _read_ahead(source: ImageSource, numbers: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The images in parts; a thread reads the next part while the caller works on this one."""
    parts = [slice(k, k + _PART) for k in range(0, len(numbers), _PART)]
    with ThreadPoolExecutor(1) as thread:
        coming = [thread.submit(source.read, numbers[part]) for part in parts[:1]]
        for k, part in enumerate(parts):
            found = coming.pop().result()
            coming = [thread.submit(source.read, numbers[p]) for p in parts[k + 1 : k + 2]]
            yield part, found


def degraded_pairs(images: np.ndarray, settings: DegradeConfig, seed: int) -> np.ndarray:
    """Images of a verification set from a file, with the camera of public and held-out people.

    Args:
      images: (N, S, S, 3) uint8.
    """
    if not (settings.is_active and settings.public):
        return images
    camera = camera_of(settings, seed, -1)
    streams = np.random.SeedSequence(seed, spawn_key=(_STREAM + 2,)).spawn(len(images))
    return np.stack(
        [
            degrade(image, camera, np.random.default_rng(stream))
            for image, stream in zip(images, streams, strict=True)
        ]
    )
