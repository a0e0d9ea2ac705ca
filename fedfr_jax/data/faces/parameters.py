"""Who a generated person is, and how one photograph of that person differs from the next.

Both are dictionaries of float32 scalars, each a pure function of a key. Lengths are in half
image sides: a frontal, centred face spans about [-0.6, 0.6] x [-0.85, 0.85], y pointing down.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedfr_jax.data.faces.draws import population_key, uniform

# Trait -> (lowest, highest), drawn uniformly and independently per identity.
_TRAITS: dict[str, tuple[float, float]] = {
    # Head outline.
    "face_width": (0.50, 0.62),
    "chin": (0.66, 0.84),
    "skull": (0.72, 0.82),
    "jaw_power": (1.75, 3.0),
    "jaw_taper": (0.0, 0.28),
    "temple": (0.90, 1.02),
    "cheekbone": (0.0, 1.0),
    "cheek_y": (0.12, 0.26),
    "chin_bump": (0.0, 1.0),
    "skin_tone": (0.0, 1.0),
    "skin_red": (-0.035, 0.035),
    "blush": (0.0, 0.22),
    # Eyes and brows.
    "eye_y": (-0.13, -0.03),
    "eye_distance": (0.205, 0.275),
    "eye_width": (0.085, 0.125),
    "eye_height": (0.036, 0.064),
    "eye_slant": (-0.16, 0.20),
    "eye_peak": (-0.35, 0.35),
    "eye_lower": (0.35, 0.85),
    "eye_depth": (0.2, 1.0),
    "lid_crease": (0.0, 0.6),
    "eye_bag": (0.0, 0.4),
    "iris_radius": (0.042, 0.054),
    "iris_colour": (0.0, 1.0),
    "brow_gap": (0.10, 0.18),
    "brow_thickness": (0.014, 0.040),
    "brow_tilt": (-0.24, 0.16),
    "brow_arch": (0.0, 0.065),
    "brow_length": (0.105, 0.165),
    "brow_inset": (-0.03, 0.03),
    "brow_dark": (0.5, 0.95),
    # Nose and mouth.
    "nose_length": (0.24, 0.38),
    "nose_width": (0.070, 0.125),
    "bridge_width": (0.028, 0.060),
    "nose_height": (0.5, 1.1),
    "nostril": (0.25, 0.85),
    "mouth_gap": (0.16, 0.26),
    "mouth_width": (0.135, 0.225),
    "upper_lip": (0.018, 0.050),
    "lower_lip": (0.028, 0.070),
    "cupid_bow": (0.0, 0.5),
    "mouth_corner": (-0.032, 0.014),
    "lip_red": (0.0, 1.0),
    "fold": (0.0, 0.32),
    # Hair, ears and marks.
    "hair_tone": (0.0, 1.0),
    "hair_grey": (-1.6, 0.7),
    "hairline": (-0.62, -0.40),
    "hairline_power": (1.7, 4.0),
    "hair_volume": (0.03, 0.15),
    "hair_length": (0.0, 1.0),
    "fringe": (-0.9, 1.0),
    "parting": (-1.0, 1.0),
    "curl": (0.0, 1.0),
    "curl_phase": (0.0, 6.2832),
    "baldness": (0.0, 1.0),
    "sideburn": (-0.10, 0.16),
    "ear_size": (0.75, 1.25),
    "ear_out": (0.02, 0.075),
    "beard": (0.0, 1.0),
    "moustache": (0.0, 1.0),
    "beard_line": (0.0, 1.0),
    "freckles": (-1.2, 1.0),
    "freckle_phase": (0.0, 6.2832),
    "mole": (0.0, 1.0),
    "mole_x": (-0.36, 0.36),
    "mole_y": (0.10, 0.58),
}

# Circumstance -> half range around zero at difficulty 1, drawn with a triangular density so
# that most photographs are ordinary and a few are extreme.
_POSE_LIGHT: dict[str, float] = {
    "yaw": 0.85,
    "pitch": 0.38,
    "roll": 0.24,
    "shift_x": 0.08,
    "shift_y": 0.07,
    "zoom": 0.11,
    "light_x": 1.5,
    "light_y": 0.9,
    "light_contrast": 0.35,
    "exposure": 0.42,
    "temperature": 0.20,
    "tint": 0.08,
    "gamma": 0.40,
    "smile": 1.6,
    "brow_raise": 0.05,
    "gaze_x": 0.05,
    "gaze_y": 0.02,
    "eye_open": 0.5,
    "hair_change": 0.09,
}

# Drawn uniformly in [0, 1); what the number means is decided in `sample_parameters`.
_CHANCES = (
    "open", "eyewear", "lens", "frame", "frame_tone", "cap", "cap_tone", "scarf", "scarf_y",
    "patch", "patch_x", "patch_y", "patch_w", "patch_h", "patch_angle", "patch_tone",
    "back_r", "back_g", "back_b", "back_angle", "back_step", "back_wave", "back_freq",
    "back_phase", "cloth_r", "cloth_g", "cloth_b", "blur", "coarse", "noise", "makeup",
    "stubble",
)  # fmt: skip


# Numbers folded into the keys of a person and of a photograph, one per purpose.
_OF_TRAITS, _OF_PHOTOGRAPHS = 0, 1
_OF_CIRCUMSTANCES, _OF_NOISE = 0, 1


def _person_key(seed, identity, purpose: int):
    """Key of a person's traits or of all photographs of that person."""
    key = jax.random.fold_in(population_key(seed), identity)
    return jax.random.fold_in(key, purpose)


def _sample_key(seed, identity, sample, purpose: int):
    """Key of a photograph's circumstances or of its sensor noise."""
    key = jax.random.fold_in(_person_key(seed, identity, _OF_PHOTOGRAPHS), sample)
    return jax.random.fold_in(key, purpose)


def identity_parameters(seed, identity) -> dict[str, jax.Array]:
    """Draws the lasting traits of one person.

    Args:
      seed: int scalar, which population.
      identity: int32 scalar, which person; may be traced, so `jax.vmap` works.

    Returns:
      Dictionary from trait name to a float32 scalar, the same for the same arguments,
      independent of other draws and of the options of JAX.
    """
    draws = uniform(_person_key(seed, identity, _OF_TRAITS), len(_TRAITS))
    low, high = jnp.asarray(tuple(_TRAITS.values()), jnp.float32).T
    return dict(zip(_TRAITS, low + (high - low) * draws, strict=True))


def noise_key(seed, identity, sample):
    """Key of the sensor noise of one photograph."""
    return _sample_key(seed, identity, sample, _OF_NOISE)


def sample_parameters(seed, identity, sample, difficulty) -> dict[str, jax.Array]:
    """Draws the circumstances of one photograph: pose, light, expression, occlusion, camera.

    Args:
      seed: int scalar, which population.
      identity: int32 scalar, which person.
      sample: int32 scalar, which photograph of that person.
      difficulty: float scalar >= 0, strength; at 0 only background, clothes and a slight
        smile change.

    Returns:
      Dictionary from name to a float32 scalar.
    """
    difficulty = jnp.asarray(difficulty, jnp.float32)  # a Python float may become float64
    count = len(_POSE_LIGHT)
    key = _sample_key(seed, identity, sample, _OF_CIRCUMSTANCES)
    draws = uniform(key, 2 * count + len(_CHANCES))
    bell = draws[:count] + draws[count : 2 * count] - 1.0
    half = jnp.asarray(tuple(_POSE_LIGHT.values()), jnp.float32)
    out = dict(zip(_POSE_LIGHT, difficulty * half * bell, strict=True))
    chance = dict(zip(_CHANCES, draws[2 * count :], strict=True))
    level = jnp.minimum(difficulty, 2.0)
    out["strength"] = jnp.minimum(1.0, 0.4 + 0.6 * difficulty)
    out["smile"] = out["smile"] + 0.15 * bell[0]
    out["mouth_open"] = level * jnp.maximum(0.0, chance["open"] - 0.6) / 0.4
    out["glasses"] = (chance["eyewear"] < 0.24 * level).astype(jnp.float32)
    out["sunglasses"] = (chance["eyewear"] < 0.06 * level).astype(jnp.float32)
    out["cap_on"] = (chance["cap"] < 0.09 * level).astype(jnp.float32)
    out["scarf_on"] = (chance["scarf"] < 0.06 * level).astype(jnp.float32)
    out["patch_on"] = (chance["patch"] < 0.14 * level).astype(jnp.float32)
    out["blur_width"] = 0.018 * level * chance["blur"] ** 3
    out["cell_width"] = 0.055 * level * jnp.maximum(0.0, chance["coarse"] - 0.6) / 0.4
    out["noise_level"] = 0.05 * level * chance["noise"] ** 3
    return out | {name: chance[name] for name in _CHANCES}
