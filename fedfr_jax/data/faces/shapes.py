"""Anti-aliased shapes and smooth textures: what faces are drawn with.

Every shape is a signed distance (negative inside) turned into pixel coverage. Images are
(3, S, S) float32, about [0, 1]; positions are in half image sides, y pointing down.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


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
