"""Where the points of a photograph lie on the head, how it is lit, and what colours it has."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fedfr_jax.data.faces.shapes import bump, mix, rgb

MIDDLE = 0.05  # height of the cheekbones, where the upper and lower outlines meet


@dataclasses.dataclass(frozen=True)
class Scene:
    """What every layer needs; fields are scalars or (S, S), in half image sides.

    Attributes:
      face, shot: traits and circumstances.
      x, y: in the head's plane, after undoing shift, zoom and in-plane rotation.
      u, v: on the face, after undoing turns too; features are drawn here.
      side: distance |u| from the middle line; t of a mirrored feature starts there.
      soft: width of an anti-aliased edge.
      turn, tilt: sines of yaw and pitch.
      nose_u: as u, for points raised as high as the nose.
      nose_v, mouth_v: heights of the tip of the nose and of the mouth.
      light: brightness of a lit surface; 1 is neutral.
    """

    face: dict
    shot: dict
    x: jax.Array
    y: jax.Array
    u: jax.Array
    v: jax.Array
    side: jax.Array
    soft: jax.Array
    turn: jax.Array
    tilt: jax.Array
    nose_u: jax.Array
    nose_v: jax.Array
    mouth_v: jax.Array
    light: jax.Array


def make_scene(face, shot, size: int) -> Scene:
    """Places and lights a head.

    Args:
      face: traits, see `parameters.identity_parameters`.
      shot: circumstances, see `parameters.sample_parameters`.
      size: side S of the image in pixels.

    Returns:
      The scene, with pixel centres on a grid of [-1, 1] x [-1, 1].
    """
    grid = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (2.0 / size) - 1.0
    zoom = 1.06 * jnp.exp(shot["zoom"])
    cos, sin = jnp.cos(shot["roll"]) / zoom, jnp.sin(shot["roll"]) / zoom
    dx, dy = (grid - shot["shift_x"])[None, :], (grid - shot["shift_y"])[:, None]
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    turn, tilt = jnp.sin(shot["yaw"]), jnp.sin(shot["pitch"])
    bulge = jnp.maximum(0.0, 1.0 - (x / 0.62) ** 2 - (y / 0.95) ** 2)
    depth = 0.55 * jnp.sqrt(bulge + 0.02)
    u, v = x - turn * depth, y - 0.55 * tilt * depth
    nose_v = face["eye_y"] + face["nose_length"] - 0.03 * tilt
    rise = jnp.clip((v - face["eye_y"]) / face["nose_length"], 0.0, 1.1)
    nose_u = u - 0.17 * turn * rise * face["nose_height"]
    scene = Scene(
        face=face, shot=shot, x=x, y=y, u=u, v=v, side=jnp.abs(u), soft=2.4 / (size * zoom),
        turn=turn, tilt=tilt, nose_u=nose_u, nose_v=nose_v, mouth_v=nose_v + face["mouth_gap"],
        light=jnp.float32(1.0),
    )  # fmt: skip
    return dataclasses.replace(scene, light=_light(scene))


def _relief(s: Scene):
    """Slope (d/du, d/dv) of the face's relief, a sum of smooth hills and hollows."""
    face = s.face
    bridge_v, half = 0.5 * (face["eye_y"] + s.nose_v), 0.5 * (s.nose_v - face["eye_y"])
    high = face["nose_height"]
    # (distance across, distance down, width, height, amount)
    middle = (
        (s.nose_u, s.v - bridge_v, face["bridge_width"] + 0.02, 0.62 * half + 0.05, 0.045 * high),
        (s.nose_u, s.v - s.nose_v + 0.02, 0.75 * face["nose_width"], 0.075, 0.050 * high),
        (s.u, s.v - s.mouth_v, 0.22, 0.10, 0.022),
        (s.u, s.v - face["chin"] + 0.08, 0.15, 0.10, 0.020 + 0.035 * face["chin_bump"]),
    )
    mirrored = (
        (s.side - face["eye_distance"], s.v - face["eye_y"], 0.15, 0.10,
         -0.055 * face["eye_depth"]),
        (s.side - 0.33, s.v - face["cheek_y"], 0.17, 0.13, 0.055 * face["cheekbone"]),
    )  # fmt: skip
    slope_u, slope_v = 0.0, 0.0
    for hills, sign in ((middle, 1.0), (mirrored, jnp.sign(s.u))):
        for du, dv, width, height, amount in hills:
            value = -2.0 * amount * bump(du, dv, width, height)
            slope_u = slope_u + sign * value * du / (width * width)
            slope_v = slope_v + value * dv / (height * height)
    return slope_u, slope_v


def _light(s: Scene):
    """Brightness of the head under one lamp and diffuse light, (S, S)."""
    slope_u, slope_v = _relief(s)
    nx, ny = s.x / 0.72, s.y / 1.05
    nz = jnp.sqrt(jnp.maximum(0.06, 1.0 - nx * nx - ny * ny))
    nx, ny = nx - slope_u, ny - slope_v
    lx, ly = s.shot["light_x"], -0.35 + s.shot["light_y"]
    lengths = jnp.sqrt((nx * nx + ny * ny + nz * nz) * (lx * lx + ly * ly + 1.0))
    facing = jnp.maximum(0.0, (nx * lx + ny * ly + nz) / lengths)
    contrast = jnp.clip(0.55 + s.shot["light_contrast"], 0.1, 0.9)
    return 1.10 * (1.0 - contrast) + contrast * (0.12 + 1.18 * facing)


def skin_colour(face):
    """Unlit colour of a person's skin, (3, 1, 1)."""
    tone = mix(rgb(0.90, 0.735, 0.625), rgb(0.56, 0.395, 0.31), face["skin_tone"])
    return tone + rgb(1.0, -0.4, -0.2) * face["skin_red"]


def hair_colour(face):
    """Unlit colour of a person's hair, brows and beard, (3, 1, 1)."""
    black, brown, blond = rgb(0.10, 0.08, 0.075), rgb(0.30, 0.20, 0.14), rgb(0.56, 0.43, 0.28)
    tone = face["hair_tone"]
    dark = mix(black, brown, tone / 0.6)
    colour = jnp.where(tone < 0.6, dark, mix(brown, blond, (tone - 0.6) / 0.4))
    return mix(colour, rgb(0.62, 0.61, 0.60), jnp.maximum(0.0, face["hair_grey"]))


def any_colour(*numbers):
    """A cloth or wall colour, (3, 1, 1), from three numbers in [0, 1); not too vivid."""
    colour = 0.14 + 0.68 * jnp.stack(numbers).reshape(3, 1, 1)
    return mix(colour, colour.mean(), 0.35)
