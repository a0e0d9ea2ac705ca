"""Draws one face from traits and circumstances: soft-edged layers, lit and filmed.

The head is a bumpy ellipsoid: a turn shifts each feature by its depth, and a lamp shades the
relief that the traits describe. The same person looks alike at 32 and at 112 pixels.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fedfr_jax.data.faces.camera import film, pixel_noise
from fedfr_jax.data.faces.features import brows, eyes, mouth, nose, skin
from fedfr_jax.data.faces.scene import MIDDLE, Scene, hair_colour, make_scene, skin_colour
from fedfr_jax.data.faces.shapes import band, bump, cover, ellipse, mix, rgb, superellipse, wave
from fedfr_jax.data.faces.surroundings import background, eyewear, headwear, patch, torso


def _head(s: Scene):
    """Signed distance to the outline of skull and jaw."""
    face = s.face
    y = s.y - MIDDLE
    below = jnp.maximum(y, 0.0)
    x = (s.x - 0.16 * s.turn * below) * (1.0 + face["jaw_taper"] * below)
    narrowing = mix(1.0, face["temple"], jnp.clip(-4.0 * y, 0.0, 1.0))
    chin = face["chin"] + 0.06 * s.shot["mouth_open"] - 0.06 * s.tilt
    height = jnp.where(y < 0.0, face["skull"], chin)
    roundness = jnp.where(y < 0.0, 2.3, face["jaw_power"])
    return superellipse(x, y, face["face_width"] * narrowing, height, roundness)


def _ears(image, s: Scene):
    face, lit = s.face, skin_colour(s.face) * s.light
    across = jnp.abs(s.x - 0.08 * s.turn) - face["face_width"] * 0.985 - 0.5 * face["ear_out"]
    down = s.y - face["eye_y"] - 0.12
    shape = ellipse(across, down, 0.05 + 0.6 * face["ear_out"], 0.145 * face["ear_size"])
    shape = cover(shape, s.soft)
    image = mix(image, lit * rgb(0.93, 0.86, 0.84), shape)
    inner = bump(across, down, 0.03, 0.08 * face["ear_size"])
    return mix(image, lit * rgb(0.62, 0.50, 0.47), 0.5 * inner * shape)


@dataclasses.dataclass(frozen=True)
class _Hair:
    """One person's hair: paint (3, S, S), distance to its outer edge, and how far down it goes."""

    paint: jax.Array
    outer: jax.Array
    long: jax.Array
    bald: jax.Array
    end: jax.Array


def _hair(s: Scene) -> _Hair:
    face = s.face
    bald = jnp.clip((face["baldness"] - 0.88) * 40.0, 0.0, 1.0)
    long = jnp.clip((face["hair_length"] - 0.55) * 12.0, 0.0, 1.0) * (1.0 - bald)
    volume = jnp.clip(face["hair_volume"] * (1.0 + 5.5 * s.shot["hair_change"]), 0.015, 0.2)
    y = s.y - MIDDLE
    width = face["face_width"] * face["temple"] + 0.35 * volume + 0.05 * long
    width = width * (1.0 + long * 0.12 * jnp.clip(y + 0.2, 0.0, 1.0))
    ripple = wave(17.0 * (y + 0.5 * jnp.abs(s.x)) + face["curl_phase"])
    outer = superellipse(s.x, jnp.minimum(y, 0.0), width, face["skull"] + volume, 2.3)
    bend = face["curl"] * 0.35 * wave(13.0 * s.v + face["curl_phase"])
    comb = 26.0 * (s.u - 0.2 * face["parting"]) / (1.15 + 0.4 * s.v)
    line = wave(comb + 3.0 * bend) + 0.6 * wave(2.3 * comb + 4.0 * bend + 1.0)
    shine = bump(s.x - 0.15 * face["parting"], s.y + 0.68, 0.5, 0.16)
    paint = hair_colour(face) * s.light * (1.0 + 0.13 * line + 0.45 * shine)
    end = mix(face["sideburn"], 0.35 + 1.65 * (face["hair_length"] - 0.55), long)
    return _Hair(paint, outer - 0.018 * face["curl"] * ripple, long, bald, end)


def _hair_behind(image, s: Scene, hair: _Hair):
    mask = cover(hair.outer, 2 * s.soft) * cover(s.y - hair.end, 0.08)
    return mix(image, 0.72 * hair.paint, hair.long * mask)


def _hair_front(image, s: Scene, hair: _Hair):
    """Hair between its outer edge and the window that the hairline leaves to the face."""
    face = s.face
    away = jnp.sign(face["parting"] + 1e-3) * (0.28 * face["parting"] - s.u)
    sweep = jnp.clip(1.6 * away, -0.35, 1.0)
    fringe = jnp.maximum(0.0, face["fringe"])
    jag = 0.012 * wave(41.0 * s.u + face["curl_phase"]) * (0.4 + fringe)
    top = face["hairline"] + s.shot["hair_change"] + 0.20 * fringe * (0.35 + sweep) + jag
    window = superellipse(
        s.u, jnp.maximum(0.0, MIDDLE - s.v), face["face_width"] * (0.95 - 0.04 * hair.long),
        MIDDLE - top, face["hairline_power"],
    )  # fmt: skip
    mask = band(hair.outer, -window, 1.6 * s.soft) * cover(s.v - hair.end, 0.07)
    return mix(image, hair.paint, mask * mix(1.0, 0.16, hair.bald))


def photograph(face, shot, noise_key, size: int) -> jax.Array:
    """Draws one photograph before rounding to bytes.

    Args:
      face: traits, see `parameters.identity_parameters`.
      shot: circumstances, see `parameters.sample_parameters`.
      noise_key: key of the sensor noise.
      size: side S of the image in pixels.

    Returns:
      (3, S, S) float32, about [0, 1].
    """
    s = make_scene(face, shot, size)
    hair = _hair(s)
    front = skin(s)
    for feature in (nose, mouth, eyes, brows):
        front = feature(front, s)
    image = _ears(torso(_hair_behind(background(s), s, hair), s), s)
    image = mix(image, front, cover(_head(s), s.soft))
    image = _hair_front(image, s, hair)
    for layer in (eyewear, headwear, patch):
        image = layer(image, s)
    return film(image, shot, pixel_noise(noise_key, size), size)


def to_bytes(image) -> jax.Array:
    """Rounds (3, S, S) float in [0, 1] to (S, S, 3) uint8."""
    pixels = jnp.clip(jnp.round(255.0 * image), 0.0, 255.0).astype(jnp.uint8)
    return jnp.moveaxis(pixels, 0, -1)
