"""The camera: exposure, colours, tone curve, loss of resolution and sensor noise."""

from __future__ import annotations

import jax.numpy as jnp

from fedfr_jax.data.faces.draws import random_bits
from fedfr_jax.data.faces.shapes import power, rgb


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
      shot: circumstances, see `parameters.sample_parameters`.
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
