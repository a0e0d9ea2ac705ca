"""Draws one face from traits and circumstances: soft-edged layers, lit and filmed.

The head is a bumpy ellipsoid: a turn shifts each feature by its depth, and a lamp shades the
relief that the traits describe. The same person looks alike at 32 and at 112 pixels.
"""
from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fedfr_jax.data.faces.shapes import (
    band,
    bump,
    cover,
    ellipse,
    film,
    mix,
    pixel_noise,
    power,
    rgb,
    ridge,
    stroke,
    superellipse,
    wave,
)

_MIDDLE = 0.05  # height of the cheekbones, where the upper and lower outlines meet


@dataclasses.dataclass(frozen=True)
class _Scene:
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


def _scene(face, shot, size: int) -> _Scene:
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
    scene = _Scene(
        face=face, shot=shot, x=x, y=y, u=u, v=v, side=jnp.abs(u), soft=2.4 / (size * zoom),
        turn=turn, tilt=tilt, nose_u=nose_u, nose_v=nose_v, mouth_v=nose_v + face["mouth_gap"],
        light=jnp.float32(1.0),
    )  # fmt: skip
    return dataclasses.replace(scene, light=_light(scene))


def _relief(s: _Scene):
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


def _light(s: _Scene):
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


def _skin_colour(face):
    tone = mix(rgb(0.90, 0.735, 0.625), rgb(0.56, 0.395, 0.31), face["skin_tone"])
    return tone + rgb(1.0, -0.4, -0.2) * face["skin_red"]


def _hair_colour(face):
    black, brown, blond = rgb(0.10, 0.08, 0.075), rgb(0.30, 0.20, 0.14), rgb(0.56, 0.43, 0.28)
    tone = face["hair_tone"]
    dark = mix(black, brown, tone / 0.6)
    colour = jnp.where(tone < 0.6, dark, mix(brown, blond, (tone - 0.6) / 0.4))
    return mix(colour, rgb(0.62, 0.61, 0.60), jnp.maximum(0.0, face["hair_grey"]))


def _any_colour(*numbers):
    """A cloth or wall colour from three numbers in [0, 1), not too vivid."""
    colour = 0.14 + 0.68 * jnp.stack(numbers).reshape(3, 1, 1)
    return mix(colour, colour.mean(), 0.35)


def _background(s: _Scene):
    shot, strength = s.shot, s.shot["strength"]
    base = mix(0.5, _any_colour(shot["back_r"], shot["back_g"], shot["back_b"]), strength)
    angle = 2.0 * jnp.pi * shot["back_angle"]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    along, across = s.x * cos + s.y * sin, s.y * cos - s.x * sin
    edge = cover(along - 0.8 * (shot["back_step"] - 0.5), 0.02 + 0.9 * shot["back_wave"])
    frequency = 1.5 + 8.0 * shot["back_freq"]
    pattern = wave(frequency * across + 2.0 * jnp.pi * shot["back_phase"]) * wave(
        0.7 * frequency * along + 9.0 * shot["back_wave"]
    )
    shade = 0.18 * along + 0.35 * (edge - 0.5) * shot["back_freq"]
    shade = shade + 0.08 * shot["back_step"] * pattern
    return base + strength * shade * rgb(1.0, 0.95, 0.85)


def _head(s: _Scene):
    """Signed distance to the outline of skull and jaw."""
    face = s.face
    y = s.y - _MIDDLE
    below = jnp.maximum(y, 0.0)
    x = (s.x - 0.16 * s.turn * below) * (1.0 + face["jaw_taper"] * below)
    narrowing = mix(1.0, face["temple"], jnp.clip(-4.0 * y, 0.0, 1.0))
    chin = face["chin"] + 0.06 * s.shot["mouth_open"] - 0.06 * s.tilt
    height = jnp.where(y < 0.0, face["skull"], chin)
    roundness = jnp.where(y < 0.0, 2.3, face["jaw_power"])
    return superellipse(x, y, face["face_width"] * narrowing, height, roundness)


def _torso(image, s: _Scene):
    skin = _skin_colour(s.face)
    neck = cover(jnp.abs(s.x) - 0.62 * s.face["face_width"], 3 * s.soft)
    image = mix(image, skin * 0.72 * s.light, neck * cover(0.3 - s.y, 2 * s.soft))
    cloth = _any_colour(s.shot["cloth_r"], s.shot["cloth_g"], s.shot["cloth_b"])
    shoulder = 0.90 - s.y + 0.35 * jnp.maximum(0.0, jnp.abs(s.x) - 0.25)
    collar = jnp.maximum(shoulder, 0.97 - s.y - 0.5 * jnp.abs(s.x))
    return mix(image, cloth * s.light, cover(collar, 2 * s.soft))


def _ears(image, s: _Scene):
    face, skin = s.face, _skin_colour(s.face) * s.light
    across = jnp.abs(s.x - 0.08 * s.turn) - face["face_width"] * 0.985 - 0.5 * face["ear_out"]
    down = s.y - face["eye_y"] - 0.12
    shape = ellipse(across, down, 0.05 + 0.6 * face["ear_out"], 0.145 * face["ear_size"])
    shape = cover(shape, s.soft)
    image = mix(image, skin * rgb(0.93, 0.86, 0.84), shape)
    inner = bump(across, down, 0.03, 0.08 * face["ear_size"])
    return mix(image, skin * rgb(0.62, 0.50, 0.47), 0.5 * inner * shape)


def _skin(s: _Scene):
    """Skin with blush, freckles, a mole, folds and beard; it fills the image."""
    face, shot, u, v, side = s.face, s.shot, s.u, s.v, s.side
    colour = _skin_colour(face)
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


def _beard(colour, s: _Scene):
    face, side, v = s.face, s.side, s.v
    grown = jnp.clip((face["beard"] - 0.72) * 5.0, 0.0, 1.0) * (face["hair_length"] < 0.55)
    grown = grown * (0.75 + 0.25 * s.shot["stubble"])
    moustache = jnp.clip((face["moustache"] - 0.55) * 6.0, 0.0, 1.0)
    cheek = s.mouth_v - 0.08 + 0.13 * face["beard_line"] - 0.65 * jnp.maximum(0.0, side - 0.17)
    lips = bump(s.u, v - s.mouth_v, 0.75 * face["mouth_width"] + 0.06, 0.10)
    jaw = cover(cheek - v, 0.10) * (1.0 - 0.85 * lips)
    upper = bump(s.u, v - 0.5 * (s.nose_v + s.mouth_v) - 0.04, 0.16, 0.042) * moustache
    hair = 0.75 * _hair_colour(face) + 0.08 * colour
    return mix(colour, hair, 0.85 * grown * jnp.clip(jaw + upper, 0.0, 1.0))


def _nose(image, s: _Scene):
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


def _mouth(image, s: _Scene):
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
    lips = mix(_skin_colour(face) * rgb(0.84, 0.66, 0.64), rgb(0.66, 0.27, 0.28), red)
    sheen = 1.0 + 0.16 * ridge(v - bottom - 0.5 * face["lower_lip"], 0.014)
    image = image * (1.0 - 0.20 * ridge(v - lower - 0.030, 0.022) * arch)
    image = mix(image, lips * sheen * s.light, 0.92 * reach * band(upper - v, v - lower, soft))
    image = mix(image, rgb(0.22, 0.07, 0.07), reach * band(top - v, v - bottom, soft))
    teeth = band(top - v, v - top - 0.55 * gap, soft) * cover(jnp.abs(t) - 0.85, 0.1)
    white = rgb(0.88, 0.86, 0.82) * jnp.minimum(s.light, 1.05)
    image = mix(image, white, 0.9 * reach * teeth)
    closed = 1.0 - 0.7 * jnp.minimum(1.0, 40.0 * gap)
    return mix(image, lips * 0.42, 0.75 * stroke(v - top, 0.006, soft) * reach * closed)


def _lids(s: _Scene):
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


def _eyes(image, s: _Scene):
    """Both eyes, mirrored at the middle line, except for where they look and glint."""
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
    skin = _skin_colour(face)
    image = mix(image, skin * 0.22, 0.9 * lash)
    return mix(image, skin * 0.5, 0.5 * stroke(lower, 0.005, soft) * reach)


def _brows(image, s: _Scene):
    face = s.face
    du = s.side - face["eye_distance"] - face["brow_inset"]
    t = du / face["brow_length"]
    middle = face["eye_y"] - face["brow_gap"] - s.shot["brow_raise"]
    curve = middle - face["brow_arch"] * (1.0 - (t - 0.25) ** 2) - face["brow_tilt"] * du
    thick = face["brow_thickness"] * (1.0 - 0.45 * jnp.clip(t, -0.4, 1.0))
    mask = stroke(s.v - curve, thick, s.soft + 0.012) * cover(jnp.abs(t) - 1.0, 0.25)
    return mix(image, _hair_colour(face) * 0.75, face["brow_dark"] * mask)


@dataclasses.dataclass(frozen=True)
class _Hair:
    """One person's hair: paint (3, S, S), distance to its outer edge, and how far down it goes."""

    paint: jax.Array
    outer: jax.Array
    long: jax.Array
    bald: jax.Array
    end: jax.Array


def _hair(s: _Scene) -> _Hair:
    face = s.face
    bald = jnp.clip((face["baldness"] - 0.88) * 40.0, 0.0, 1.0)
    long = jnp.clip((face["hair_length"] - 0.55) * 12.0, 0.0, 1.0) * (1.0 - bald)
    volume = jnp.clip(face["hair_volume"] * (1.0 + 5.5 * s.shot["hair_change"]), 0.015, 0.2)
    y = s.y - _MIDDLE
    width = face["face_width"] * face["temple"] + 0.35 * volume + 0.05 * long
    width = width * (1.0 + long * 0.12 * jnp.clip(y + 0.2, 0.0, 1.0))
    ripple = wave(17.0 * (y + 0.5 * jnp.abs(s.x)) + face["curl_phase"])
    outer = superellipse(s.x, jnp.minimum(y, 0.0), width, face["skull"] + volume, 2.3)
    bend = face["curl"] * 0.35 * wave(13.0 * s.v + face["curl_phase"])
    comb = 26.0 * (s.u - 0.2 * face["parting"]) / (1.15 + 0.4 * s.v)
    line = wave(comb + 3.0 * bend) + 0.6 * wave(2.3 * comb + 4.0 * bend + 1.0)
    shine = bump(s.x - 0.15 * face["parting"], s.y + 0.68, 0.5, 0.16)
    paint = _hair_colour(face) * s.light * (1.0 + 0.13 * line + 0.45 * shine)
    end = mix(face["sideburn"], 0.35 + 1.65 * (face["hair_length"] - 0.55), long)
    return _Hair(paint, outer - 0.018 * face["curl"] * ripple, long, bald, end)


def _hair_behind(image, s: _Scene, hair: _Hair):
    mask = cover(hair.outer, 2 * s.soft) * cover(s.y - hair.end, 0.08)
    return mix(image, 0.72 * hair.paint, hair.long * mask)


def _hair_front(image, s: _Scene, hair: _Hair):
    """Hair between its outer edge and the window that the hairline leaves to the face."""
    face = s.face
    away = jnp.sign(face["parting"] + 1e-3) * (0.28 * face["parting"] - s.u)
    sweep = jnp.clip(1.6 * away, -0.35, 1.0)
    fringe = jnp.maximum(0.0, face["fringe"])
    jag = 0.012 * wave(41.0 * s.u + face["curl_phase"]) * (0.4 + fringe)
    top = face["hairline"] + s.shot["hair_change"] + 0.20 * fringe * (0.35 + sweep) + jag
    window = superellipse(
        s.u, jnp.maximum(0.0, _MIDDLE - s.v), face["face_width"] * (0.95 - 0.04 * hair.long),
        _MIDDLE - top, face["hairline_power"],
    )  # fmt: skip
    mask = band(hair.outer, -window, 1.6 * s.soft) * cover(s.v - hair.end, 0.07)
    return mix(image, hair.paint, mask * mix(1.0, 0.16, hair.bald))


def _eyewear(image, s: _Scene):
    face, shot, soft = s.face, s.shot, s.soft
    du, dv = s.side - face["eye_distance"] - 0.01, s.v - face["eye_y"] - 0.01
    height = 0.10 + 0.045 * shot["lens"]
    rim = superellipse(du, dv, 0.165, height, 2.0 + 3.0 * shot["frame"])
    glass = shot["glasses"] * (0.06 + 0.84 * shot["sunglasses"])
    image = mix(image, rgb(0.10, 0.10, 0.12) + 0.12 * s.v, cover(rim, soft) * glass)
    frame = stroke(rim, 0.010 + 0.012 * shot["frame"], soft)
    bridge = stroke(dv + 0.02, 0.009, soft) * cover(s.side - face["eye_distance"] + 0.14, soft)
    arm = stroke(dv + 0.03, 0.010, soft) * cover(0.15 - du, soft)
    arm = arm * cover(jnp.abs(s.x) - face["face_width"], soft)
    line = jnp.clip(frame + bridge + arm, 0.0, 1.0)
    paint = rgb(1.0, 0.85, 0.7) * (0.10 + 0.18 * shot["frame_tone"])
    return mix(image, paint, 0.92 * line * shot["glasses"])


def _headwear(image, s: _Scene):
    """Cap and scarf."""
    face, shot, soft = s.face, s.shot, s.soft
    cloth = _any_colour(shot["cap_tone"], shot["cloth_b"], shot["cloth_r"]) * s.light
    crown = superellipse(s.x, jnp.minimum(s.y - _MIDDLE, 0.0), face["face_width"] + 0.06,
                         face["skull"] + 0.10, 2.5)  # fmt: skip
    edge = s.v - face["eye_y"] + 0.30 - 0.35 * s.u * s.u
    image = mix(image, cloth, band(crown, edge, soft) * shot["cap_on"])
    visor = cover(ellipse(s.u, edge, 0.50, 0.075), soft)
    image = mix(image, 0.6 * cloth, visor * shot["cap_on"])
    wool = _any_colour(shot["scarf_y"], shot["cap_tone"], shot["back_freq"]) * s.light
    edge = face["eye_y"] + 0.30 + 0.20 * shot["scarf_y"] + 0.25 * s.u * s.u
    weave = 1.0 + 0.12 * wave(40.0 * (s.v + 0.3 * s.u * s.u))
    scarf = cover(edge - s.v, soft) * cover(jnp.abs(s.x) - 0.66, 0.03)
    return mix(image, wool * weave, scarf * shot["scarf_on"])


def _patch(image, s: _Scene):
    """A hand, a sign or a passer-by in front of a part of the face."""
    shot = s.shot
    angle = jnp.pi * shot["patch_angle"]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    dx, dy = s.x - 1.5 * (shot["patch_x"] - 0.5), s.y - 1.4 * (shot["patch_y"] - 0.5) - 0.1
    width, height = 0.12 + 0.16 * shot["patch_w"], 0.08 + 0.18 * shot["patch_h"]
    shape = superellipse(cos * dx + sin * dy, cos * dy - sin * dx, width, height, 3.0)
    thing = _any_colour(shot["back_g"], shot["patch_h"], shot["patch_w"])
    paint = mix(0.88 * _skin_colour(s.face), thing, shot["patch_tone"] > 0.4)
    paint = paint * (1.02 - 0.12 * jnp.clip(1.0 + shape / 0.1, 0.0, 1.0))
    return mix(image, paint * s.light, cover(shape, s.soft) * shot["patch_on"])


def photograph(face, shot, noise_key, size: int) -> jax.Array:
    """Draws one photograph before rounding to bytes.

    Args:
      face: traits, see `face_parameters.identity_parameters`.
      shot: circumstances, see `face_parameters.sample_parameters`.
      noise_key: key of the sensor noise.
      size: side S of the image in pixels.

    Returns:
      (3, S, S) float32, about [0, 1].
    """
    s = _scene(face, shot, size)
    hair = _hair(s)
    front = _skin(s)
    for feature in (_nose, _mouth, _eyes, _brows):
        front = feature(front, s)
    image = _ears(_torso(_hair_behind(_background(s), s, hair), s), s)
    image = mix(image, front, cover(_head(s), s.soft))
    image = _hair_front(image, s, hair)
    for layer in (_eyewear, _headwear, _patch):
        image = layer(image, s)
    return film(image, shot, pixel_noise(noise_key, size), size)


def to_bytes(image) -> jax.Array:
    """Rounds (3, S, S) float in [0, 1] to (S, S, 3) uint8."""
    pixels = jnp.clip(jnp.round(255.0 * image), 0.0, 255.0).astype(jnp.uint8)
    return jnp.moveaxis(pixels, 0, -1)
