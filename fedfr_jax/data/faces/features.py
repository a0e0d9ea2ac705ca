"""The face itself: skin with beard, nose, mouth, eyes and brows.

A layer takes an image, (3, S, S) float32, and a scene, and paints on the image.
"""

from __future__ import annotations

import jax.numpy as jnp

from fedfr_jax.data.faces.scene import Scene, hair_colour, skin_colour
from fedfr_jax.data.faces.shapes import (
    band,
    bump,
    cover,
    ellipse,
    mix,
    power,
    rgb,
    ridge,
    stroke,
    wave,
)


def skin(s: Scene):
    """Skin with blush, freckles, a mole, folds and beard, (3, S, S); it fills the image."""
    face, shot, u, v, side = s.face, s.shot, s.u, s.v, s.side
    colour = skin_colour(face)
    blush = (face["blush"] + 0.12 * shot["makeup"]) * bump(side - 0.31, v - 0.20, 0.16, 0.13)
    colour = mix(colour, colour * rgb(1.02, 0.74, 0.72), blush)
    phase = face["freckle_phase"]
    dots = wave(71.0 * u + 3.0 * wave(23.0 * v + phase))
    dots = dots * wave(67.0 * v + 3.0 * wave(29.0 * u + phase))
    dots = jnp.clip(2.5 * dots - 1.1, 0.0, 1.0) * bump(side - 0.18, v - 0.12, 0.24, 0.14)
    freckles = 0.75 * jnp.maximum(0.0, face["freckles"]) * dots
    colour = mix(colour, colour * rgb(0.74, 0.60, 0.52), freckles)
    mole = cover(ellipse(u - face["mole_x"], v - face["mole_y"], 0.022, 0.022), s.soft)
    colour = mix(colour, colour * 0.35, 0.85 * mole * (face["mole"] > 0.72))
    run = jnp.clip((v - s.nose_v) / (face["mouth_gap"] + 0.05), 0.0, 1.0)
    fold = ridge(side - face["nose_width"] - 0.02 - 0.09 * run, 0.022)
    fold = fold * ridge(v - 0.5 * (s.nose_v + s.mouth_v), 0.11)
    depth = jnp.clip(face["fold"] + 0.15 * jnp.maximum(0.0, shot["smile"]), 0.0, 0.6)
    return _beard(colour * (1.0 - 0.55 * depth * fold), s) * s.light


def _beard(colour, s: Scene):
    face, side, v = s.face, s.side, s.v
    grown = jnp.clip((face["beard"] - 0.72) * 5.0, 0.0, 1.0) * (face["hair_length"] < 0.55)
    grown = grown * (0.75 + 0.25 * s.shot["stubble"])
    moustache = jnp.clip((face["moustache"] - 0.55) * 6.0, 0.0, 1.0)
    cheek = s.mouth_v - 0.08 + 0.13 * face["beard_line"] - 0.65 * jnp.maximum(0.0, side - 0.17)
    lips = bump(s.u, v - s.mouth_v, 0.75 * face["mouth_width"] + 0.06, 0.10)
    jaw = cover(cheek - v, 0.10) * (1.0 - 0.85 * lips)
    upper = bump(s.u, v - 0.5 * (s.nose_v + s.mouth_v) - 0.04, 0.16, 0.042) * moustache
    hair = 0.75 * hair_colour(face) + 0.08 * colour
    return mix(colour, hair, 0.85 * grown * jnp.clip(jaw + upper, 0.0, 1.0))


def nose(image, s: Scene):
    """Layer of the nose: its shadows, nostrils and gleam."""
    u, width, soft = s.nose_u, s.face["nose_width"], s.soft
    dv = s.v - s.nose_v
    under = bump(u, dv - 0.045, 0.95 * width, 0.030)
    wing = ridge(jnp.abs(u) - width * (1.0 - 6.0 * (dv - 0.005) ** 2), 0.014)
    wing = wing * ridge(dv - 0.005, 0.045)
    hole = ellipse(jnp.abs(u) - 0.5 * width, dv - 0.028, 0.34 * width, 0.017)
    hole = s.face["nostril"] * cover(hole, soft + 0.01)
    image = image * (1.0 - 0.22 * under - 0.34 * wing)
    image = mix(image, image * rgb(0.34, 0.24, 0.22), hole)
    return image + 0.07 * bump(u, dv + 0.02, 0.03, 0.035)


def mouth(image, s: Scene):
    """Layer of lips and, if the mouth is open, teeth."""
    face, shot, soft, v = s.face, s.shot, s.soft, s.v
    width = face["mouth_width"] * (1.0 + 0.14 * shot["smile"])
    t = jnp.clip(s.u / width, -1.0, 1.0)
    arch = 1.0 - t * t
    bend = face["mouth_corner"] - 0.045 * shot["smile"]
    line = s.mouth_v + bend * (t * t - 0.3)
    gap = 0.085 * shot["mouth_open"] * arch
    top, bottom = line - 0.3 * gap, line + 0.7 * gap
    bow = 1.0 - face["cupid_bow"] * ridge(t, 0.16)
    upper = top - face["upper_lip"] * (1.0 - power(jnp.abs(t) + 1e-6, 1.5)) * bow
    lower = bottom + face["lower_lip"] * arch
    reach = cover(jnp.abs(s.u) - width, soft)
    red = 0.30 + 0.35 * face["lip_red"] + 0.25 * shot["makeup"] * (shot["makeup"] > 0.7)
    lips = mix(skin_colour(face) * rgb(0.84, 0.66, 0.64), rgb(0.66, 0.27, 0.28), red)
    sheen = 1.0 + 0.16 * ridge(v - bottom - 0.5 * face["lower_lip"], 0.014)
    image = image * (1.0 - 0.20 * ridge(v - lower - 0.030, 0.022) * arch)
    image = mix(image, lips * sheen * s.light, 0.92 * reach * band(upper - v, v - lower, soft))
    image = mix(image, rgb(0.22, 0.07, 0.07), reach * band(top - v, v - bottom, soft))
    teeth = band(top - v, v - top - 0.55 * gap, soft) * cover(jnp.abs(t) - 0.85, 0.1)
    white = rgb(0.88, 0.86, 0.82) * jnp.minimum(s.light, 1.05)
    image = mix(image, white, 0.9 * reach * teeth)
    closed = 1.0 - 0.7 * jnp.minimum(1.0, 40.0 * gap)
    return mix(image, lips * 0.42, 0.75 * stroke(v - top, 0.006, soft) * reach * closed)


def _lids(s: Scene):
    """Distances (across, down) from an eye's centre, those below both lids, and the position."""
    face, shot = s.face, s.shot
    du = s.side - face["eye_distance"]
    dv = s.v - face["eye_y"] + face["eye_slant"] * du
    t = jnp.clip(du / face["eye_width"], -1.0, 1.0)
    arch = (1.0 - t * t) * (1.0 + face["eye_peak"] * t)
    squint = 1.0 - 0.25 * jnp.clip(shot["smile"], 0.0, 2.0)
    height = face["eye_height"] * jnp.clip(1.0 + shot["eye_open"], 0.08, 1.4) * squint
    return du, dv, dv + height * arch, dv - height * face["eye_lower"] * arch, t


def _iris(face):
    kind = face["iris_colour"]
    brown, green, blue = rgb(0.26, 0.15, 0.09), rgb(0.34, 0.38, 0.26), rgb(0.30, 0.42, 0.54)
    dark = mix(brown, green, jnp.clip((kind - 0.4) / 0.3, 0.0, 1.0))
    return mix(dark, blue, jnp.clip((kind - 0.7) / 0.3, 0.0, 1.0))


def eyes(image, s: Scene):
    """Layer of both eyes, mirrored at the middle line, except for gaze and highlights."""
    face, shot, soft, sign = s.face, s.shot, s.soft, jnp.sign(s.u)
    du, dv, upper, lower, t = _lids(s)
    outside = jnp.abs(du) - face["eye_width"]
    reach = cover(outside, soft)
    inside = band(-upper, lower, soft) * reach
    crease = face["lid_crease"] * ridge(upper + 0.030, 0.016) * cover(outside, 0.06)
    bag = face["eye_bag"] * ridge(lower - 0.035, 0.022) * cover(outside, 0.08)
    image = image * (1.0 - 0.55 * crease - 0.45 * bag)
    white = rgb(0.90, 0.885, 0.87) * (0.80 + 0.20 * jnp.clip(upper / 0.05, 0.0, 1.0))
    image = mix(image, white * jnp.minimum(s.light, 1.05), inside)
    gu, gv = du - sign * (shot["gaze_x"] + 0.02 * s.turn), dv - shot["gaze_y"]
    radius = jnp.sqrt(gu * gu + gv * gv + 1e-8)
    r = face["iris_radius"]
    image = mix(image, _iris(face) * jnp.clip(s.light, 0.5, 1.1), inside * cover(radius - r, soft))
    image = mix(image, 0.04, inside * cover(radius - 0.45 * r, soft))
    lamp = sign * 0.35 * r * jnp.sign(shot["light_x"] + 1e-4)
    glint = cover(ellipse(gu - lamp, gv + 0.4 * r, 0.014, 0.014), soft)
    image = mix(image, 0.95, 0.8 * inside * glint)
    lash = stroke(upper, 0.008 + 0.006 * jnp.maximum(0.0, t), soft) * reach
    skin = skin_colour(face)
    image = mix(image, skin * 0.22, 0.9 * lash)
    return mix(image, skin * 0.5, 0.5 * stroke(lower, 0.005, soft) * reach)


def brows(image, s: Scene):
    """Layer of both brows."""
    face = s.face
    du = s.side - face["eye_distance"] - face["brow_inset"]
    t = du / face["brow_length"]
    middle = face["eye_y"] - face["brow_gap"] - s.shot["brow_raise"]
    curve = middle - face["brow_arch"] * (1.0 - (t - 0.25) ** 2) - face["brow_tilt"] * du
    thick = face["brow_thickness"] * (1.0 - 0.45 * jnp.clip(t, -0.4, 1.0))
    mask = stroke(s.v - curve, thick, s.soft + 0.012) * cover(jnp.abs(t) - 1.0, 0.25)
    return mix(image, hair_colour(face) * 0.75, face["brow_dark"] * mask)
