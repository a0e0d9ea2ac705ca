"""Anti-aliased shapes, smooth textures and a camera: what faces are drawn and filmed with.

Every shape is a signed distance (negative inside) turned into pixel coverage. Images are
(3, S, S) float32, about [0, 1]; positions are in half image sides, y pointing down.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp

from fedfr_jax.data.faces.draws import random_bits


def rgb(red: float, green: float, blue: float) -> jax.Array:
    """A colour that broadcasts against (S, S), shape (3, 1, 1)."""
    return jnp.asarray((red, green, blue), jnp.float32).reshape(3, 1, 1)


def mix(a, b, t):
    """`a` at t = 0, `b` at t = 1; as `mix(image, paint, coverage)` it lays paint over an image."""
    return a + (b - a) * t


def power(base, exponent):
    """`base ** exponent` for a positive base; XLA's own power is four times slower on a CPU."""
    return jnp.exp(exponent * jnp.log(base))


def wave(angle):
    """A sine made of parabolas, for textures; ten times cheaper than `jnp.sin` on a CPU."""
    turn = angle * (0.5 / jnp.pi)
    turn = turn - jnp.round(turn)
    return 8.0 * turn * (1.0 - 2.0 * jnp.abs(turn))


def cover(distance, soft):
    """Share of a pixel that lies inside a shape, whose edge is `soft` wide."""
    return jnp.clip(0.5 - distance / soft, 0.0, 1.0)


def band(upper, lower, soft):
    """Coverage where both distances are negative, right also if that is thinner than a pixel."""
    return jnp.clip(cover(upper, soft) + cover(lower, soft) - 1.0, 0.0, 1.0)


def stroke(distance, half_width, soft):
    """Coverage of a line of the given half width, with the right amount of ink if it is thin."""
    return cover(distance - half_width, soft) - cover(distance + half_width, soft)


def bump(dx, dy, width, height):
    """A smooth hill of height 1."""
    return jnp.exp(-((dx / width) ** 2) - (dy / height) ** 2)


def ridge(distance, width):
    """A smooth hill of height 1 along the zeros of a distance."""
    return jnp.exp(-((distance / width) ** 2))


def ellipse(dx, dy, width, height):
    """Approximate signed distance to an ellipse with the given half axes."""
    radius = jnp.sqrt((dx / width) ** 2 + (dy / height) ** 2 + 1e-6)
    return (radius - 1.0) * jnp.minimum(width, height)


def superellipse(dx, dy, width, height, roundness):
    """As `ellipse`; roundness 2 is an ellipse, below it is pointed, above it is boxy."""
    a, b = jnp.abs(dx) / width + 1e-4, jnp.abs(dy) / height + 1e-4
    radius = power(power(a, roundness) + power(b, roundness), 1.0 / roundness)
    return (radius - 1.0) * jnp.minimum(width, height)


def resampling(size: int, blur, cell):
    """Matrix that blurs a row of pixels, keeps one value per cell and interpolates back.

    Args:
      size: number of pixels S.
      blur: scalar, standard deviation of the blur in pixels.
      cell: scalar >= 1, pixels per kept value; 1 keeps them all.

    Returns:
      (S, S) float32 whose rows sum to one.
    """
    pixel = jnp.arange(size, dtype=jnp.float32) + 0.5
    width = jnp.maximum(0.30, jnp.sqrt(blur**2 + (0.45 * (cell - 1.0)) ** 2))
    down = jnp.exp(-0.5 * ((pixel[None, :] - cell * pixel[:, None]) / width) ** 2) + 1e-12
    down = down / down.sum(axis=1, keepdims=True)
    # Clamped because the cells beyond the edge of the image hold nothing.
    last = jnp.maximum(0.0, jnp.floor(size / cell - 0.5))
    place = jnp.clip(pixel / cell, 0.5, last + 0.5)
    up = jnp.maximum(0.0, 1.0 - jnp.abs(place[:, None] - pixel[None, :]))
    return up @ down


def pixel_noise(key, size: int):
    """(3, S, S) noise of zero mean and unit variance, from one draw of 32 bits per pixel."""
    bits = random_bits(key, size * size).reshape(size, size)
    parts = jnp.stack([(bits >> (10 * i)) & 1023 for i in range(3)])
    return (parts.astype(jnp.float32) - 511.5) * (12.0**0.5 / 1023.0)


def film(image, shot, noise, size: int):
    """Exposure, colour cast, tone curve, blur with loss of resolution, sensor noise.

    Args:
      image: (3, S, S) scene.
      shot: circumstances, see `face_parameters.sample_parameters`.
      noise: (3, S, S), see `pixel_noise`.
      size: S.

    Returns:
      (3, S, S), not yet clipped.
    """
    cast = jnp.exp(
        shot["exposure"]
        + shot["temperature"] * rgb(1.0, 0.1, -1.0)
        + shot["tint"] * rgb(-0.5, 1.0, -0.5)
    )
    image = jnp.maximum(0.0, image) * cast
    # Bright parts are compressed, as cut-off ones would lose their shape.
    image = jnp.where(image < 0.55, image, 0.55 + 0.45 * jnp.tanh((image - 0.55) / 0.45))
    image = power(jnp.clip(image, 1e-3, 1.0), jnp.exp(shot["gamma"]))
    matrix = resampling(size, shot["blur_width"] * size / 2, 1.0 + shot["cell_width"] * size / 2)
    image = jnp.einsum("ij,cjk,lk->cil", matrix, image, matrix)
    return image + shot["noise_level"] * noise
