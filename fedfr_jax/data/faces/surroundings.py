"""What is around and in front of a head: wall, clothes, glasses, cap, scarf, other things.

A layer takes an image, (3, S, S) float32, and a scene, and paints on the image.
"""

from __future__ import annotations

import jax.numpy as jnp

from fedfr_jax.data.faces.scene import MIDDLE, Scene, any_colour, skin_colour
from fedfr_jax.data.faces.shapes import band, cover, ellipse, mix, rgb, stroke, superellipse, wave


def background(s: Scene):
    """A wall with a step and a soft pattern, (3, S, S); the first layer."""
    shot, strength = s.shot, s.shot["strength"]
    base = mix(0.5, any_colour(shot["back_r"], shot["back_g"], shot["back_b"]), strength)
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


def torso(image, s: Scene):
    """Layer of neck and clothes."""
    skin = skin_colour(s.face)
    neck = cover(jnp.abs(s.x) - 0.62 * s.face["face_width"], 3 * s.soft)
    image = mix(image, skin * 0.72 * s.light, neck * cover(0.3 - s.y, 2 * s.soft))
    cloth = any_colour(s.shot["cloth_r"], s.shot["cloth_g"], s.shot["cloth_b"])
    shoulder = 0.90 - s.y + 0.35 * jnp.maximum(0.0, jnp.abs(s.x) - 0.25)
    collar = jnp.maximum(shoulder, 0.97 - s.y - 0.5 * jnp.abs(s.x))
    return mix(image, cloth * s.light, cover(collar, 2 * s.soft))


def eyewear(image, s: Scene):
    """Layer of glasses, some of them dark."""
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


def headwear(image, s: Scene):
    """Layer of cap and scarf."""
    face, shot, soft = s.face, s.shot, s.soft
    cloth = any_colour(shot["cap_tone"], shot["cloth_b"], shot["cloth_r"]) * s.light
    crown = superellipse(s.x, jnp.minimum(s.y - MIDDLE, 0.0), face["face_width"] + 0.06,
                         face["skull"] + 0.10, 2.5)  # fmt: skip
    edge = s.v - face["eye_y"] + 0.30 - 0.35 * s.u * s.u
    image = mix(image, cloth, band(crown, edge, soft) * shot["cap_on"])
    visor = cover(ellipse(s.u, edge, 0.50, 0.075), soft)
    image = mix(image, 0.6 * cloth, visor * shot["cap_on"])
    wool = any_colour(shot["scarf_y"], shot["cap_tone"], shot["back_freq"]) * s.light
    edge = face["eye_y"] + 0.30 + 0.20 * shot["scarf_y"] + 0.25 * s.u * s.u
    weave = 1.0 + 0.12 * wave(40.0 * (s.v + 0.3 * s.u * s.u))
    scarf = cover(edge - s.v, soft) * cover(jnp.abs(s.x) - 0.66, 0.03)
    return mix(image, wool * weave, scarf * shot["scarf_on"])


def patch(image, s: Scene):
    """Layer of a hand, a sign or a passer-by in front of a part of the face."""
    shot = s.shot
    angle = jnp.pi * shot["patch_angle"]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    dx, dy = s.x - 1.5 * (shot["patch_x"] - 0.5), s.y - 1.4 * (shot["patch_y"] - 0.5) - 0.1
    width, height = 0.12 + 0.16 * shot["patch_w"], 0.08 + 0.18 * shot["patch_h"]
    shape = superellipse(cos * dx + sin * dy, cos * dy - sin * dx, width, height, 3.0)
    thing = any_colour(shot["back_g"], shot["patch_h"], shot["patch_w"])
    paint = mix(0.88 * skin_colour(s.face), thing, shot["patch_tone"] > 0.4)
    paint = paint * (1.02 - 0.12 * jnp.clip(1.0 + shape / 0.1, 0.0, 1.0))
    return mix(image, paint * s.light, cover(shape, s.soft) * shot["patch_on"])
