"""Images, where they lie during a round, and their features under frozen backbones.

If only the upper part of a network is trained (``fed.trainable``), activations of the lower part
are used in place of images everywhere: (V, ...) floats per image, those of the image itself and,
if images are mirrored, those of its mirror image.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8

from fedfr_jax import engine
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.algorithm.state import ServerState
from fedfr_jax.algorithm.transforms import TRANSFORMS
from fedfr_jax.engine.layout import Layout
from fedfr_jax.models import Backbone
from fedfr_jax.population.cohort_data import CohortData, PublicData

PyTree = Any
Images = UInt8[Array, "B S S 3"] | Float[Array, "B ..."]


@struct.dataclass
class Shared:
    """Data that all clients read in a round."""

    server: ServerState
    public: Any  # PublicData, or None where nothing looks at it
    table: Any  # (T, S, S, 3) training images, if they are on every device, or None
    key: jax.Array


@struct.dataclass
class Device:
    """A device's list of training images: the images, or their positions in the table."""

    images: Any  # (R, S, S, 3), or None
    table_rows: Any  # (R,), or None


def where_images_are(server, public: PublicData | None, cohort: CohortData, key):
    """Returns (data that all devices share, data of each device)."""
    in_table = cohort.table_rows is not None
    return (
        Shared(server, public, cohort.images if in_table else None, key),
        Device(None if in_table else cohort.images, cohort.table_rows),
    )


def own_images(shared: Shared, device: Device, positions: Int[Array, " B"]) -> Images:
    """Images at some positions of a device's list."""
    if shared.table is not None:
        return shared.table[device.table_rows[positions]]
    return device.images[positions]


def type_of(variables: PyTree) -> jnp.dtype:
    """The type of a pytree of parameters, and so of the computations with them."""
    return engine.sum_type(variables)


def to_input(images: Images, dtype: Any) -> Float[Array, "*B S S 3"]:
    """uint8 RGB -> a float in [-1, 1], ``(x / 255 - 0.5) / 0.5``; activations as they are."""
    return images.astype(dtype) / 127.5 - 1.0 if _is_image(images) else images.astype(dtype)


def mirror(images: UInt8[Array, "*B H W 3"]) -> UInt8[Array, "*B H W 3"]:
    """Flips (..., H, W, 3) images horizontally."""
    return images[..., ::-1, :]


def views(images: Images, flip: Bool[Array, " B"]) -> Images:
    """Network input for B images (or their activations): mirrored where ``flip`` is True."""
    if _is_image(images):
        return jnp.where(flip[:, None, None, None], mirror(images), images)
    return images[jnp.arange(len(images)), flip.astype(int)]


def unmirrored(images: Images) -> Images:
    """Network input for images that are not mirrored."""
    return images if _is_image(images) else images[:, 0]


def _is_image(images: Images) -> bool:
    return images.dtype == jnp.uint8


def features(backbone: Backbone, variables: PyTree, images: Images) -> Float[Array, "B d"]:
    """(B, d) features of images, as :func:`views` gives them, under a frozen backbone."""
    return backbone.apply(variables, to_input(images, type_of(variables)), False)[0]


def list_features(
    backbone: Backbone, variables: PyTree, shared: Shared, device: Device, used, block: int
) -> Float[Array, "R d"]:
    """(R, d) features of a device's list of images; those after ``used`` are undefined."""
    size = len(device.images if shared.table is None else device.table_rows)
    return engine.loop_blocks(
        lambda p: features(backbone, variables, unmirrored(own_images(shared, device, p))),
        jnp.arange(size),
        used,
        block=block,
    )


def public_features(
    spec: RoundSpec, layout: Layout, variables: PyTree, public: PublicData
) -> Float[Array, "N_0 d"]:
    """(N_0, d) features of the public images, computed by all devices together."""
    return engine.map_blocks(
        lambda s, p: features(spec.backbone, s[0], unmirrored(s[1][p])),
        (variables, public.images),
        len(public.labels),
        mesh=layout.mesh,
        block=layout.feature_batch,
    )


def personal_features(
    spec: RoundSpec, backbone: PyTree, transform: PyTree, images: Images
) -> Float[Array, "B d"]:
    """Features under a client's personalized model: its own backbone, then its transform.

    Args:
      backbone: variables of the client's backbone, as trained and not averaged.
      transform: the client's DFC transform.
      images: (B, S, S, 3) uint8, or activations as :func:`views` gives them.

    Returns:
      (B, d).
    """
    f = features(spec.backbone, backbone, images)
    return TRANSFORMS[spec.terms.transform].apply(transform, f) if spec.uses_binary else f
