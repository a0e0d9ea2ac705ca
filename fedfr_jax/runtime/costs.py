"""The cost of a round for a client: bytes sent and received, and arithmetic."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.config import Config
from fedfr_jax.engine.flops import multiply_adds
from fedfr_jax.models import build
from fedfr_jax.models.parts import ALL, trained_part
from fedfr_jax.settings import PrivacyConfig

PyTree = Any


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def communication(
    spec: RoundSpec, public_identities: int, identities: float, rounds: int = 1
) -> dict[str, dict[str, float]]:
    """Bytes that a client receives and sends in a round, by content; mean over rounds.

    Counted as float32 tensors, sent ones as ``privacy.top_k`` (with a position of 32 bits for each
    number) and ``privacy.quantize_bits`` make them. Public images, which are the same for all
    clients and never change, are not counted.

    Args:
      public_identities: K_0.
      identities: of a client, on average.
      rounds: of the run; in some rounds a method may send nothing.

    Returns:
      {"down": {what: bytes}, "up": {what: bytes}}.
    """
    if spec.recipe.union or not spec.recipe.trains:
        return {"down": {}, "up": {}}
    variables = jax.eval_shape(spec.backbone.init, jax.random.key(0))
    sent = [
        x
        for x, private in zip(
            jax.tree.leaves(variables), jax.tree.leaves(spec.private(variables)), strict=True
        )
        if not private
    ]
    row = 4 * spec.backbone.embedding
    parts: dict[str, float] = {"backbone": _bytes(sent)}
    if spec.uses_public:
        parts["public class embeddings"] = row * public_identities
    if spec.recipe.server_embeddings is not None:
        parts["class embeddings"] = row * identities
    parts = {what: size for what, size in parts.items() if size}
    averages = spec.recipe.averages
    taken = (
        1.0
        if averages is None
        else float(np.mean([bool(averages(spec.options, r, rounds)) for r in range(rounds)]))
    )
    share = taken * _sent_share(spec.message.privacy)
    return {"down": parts, "up": {what: share * size for what, size in parts.items()}}


def message_bytes(spec: RoundSpec, public_identities: int, identities: float) -> float:
    """Bytes that a client sends in a round in which it sends; see :func:`communication`."""
    received = communication(spec, public_identities, identities)["down"]
    return sum(received.values()) * _sent_share(spec.message.privacy)


def _sent_share(privacy: PrivacyConfig) -> float:
    """Bits sent per bit of a float32 message."""
    bits = privacy.quantize_bits or 32
    return min(privacy.top_k * (bits + 32), bits) / 32 if privacy.top_k else bits / 32


@functools.cache
def _forward_flops(model, image_size: int, trainable: str) -> int:
    backbone = trained_part(
        build(dataclasses.replace(model, dtype="float32"), image_size, "grouped"), trainable
    )
    variables = jax.eval_shape(backbone.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *backbone.input_shape), jnp.float32)
    return 2 * multiply_adds(lambda v, x: backbone.apply(v, x, False)[0], variables, image)


def forward_flops(config: Config) -> int:
    """Floating-point operations of one image through the backbone (convolutions and products).

    Only the trained part counts: the frozen part is computed once, not in every round.
    """
    return _forward_flops(config.model, config.data.image_size, config.fed.trainable)


def whole_forward_flops(config: Config) -> int:
    """:func:`forward_flops` of the whole network, as in pretraining and below what trains."""
    return _forward_flops(config.model, config.data.image_size, ALL)


def trained_images(config: Config, metrics: dict[str, np.ndarray]) -> np.ndarray:
    """(C,) images that each client saw in the steps of a round, every epoch counted.

    Args:
      metrics: of the round, (C,) arrays.
    """
    batch, steps = config.fed.batch_size, metrics["steps"].astype(float)
    if not config.fed.partial_batch:
        return steps * batch
    images = metrics["images"].astype(float)
    return images * steps / np.maximum(np.ceil(images / batch), 1)


def local_passes(
    config: Config, spec: RoundSpec, metrics: dict[str, np.ndarray], public_images: int
) -> dict[str, np.ndarray]:
    """(C,) images through the backbone in a round, counted in forward passes, by purpose.

    A training step counts as 3 forward passes per image. Features under the frozen
    backbones are computed once per image and view (``engine.cache_features``) or once per image
    and step; hard negatives need those of the client's own images. The features of the public
    images under the global backbone are the same for all clients but counted for each, because
    in practice each client would compute them. A client's first round is counted like the others,
    although the contrastive term is off in it.

    Args:
      metrics: of the round, (C,) arrays: ``images``, ``steps`` and ``hard_negatives``.
      public_images: N_0.

    Returns:
      {"training", "directions" of the contrastive term, "hard negatives": own images,
      "public images"}.
    """
    images, trained = metrics["images"].astype(float), trained_images(config, metrics)
    none = np.zeros_like(images)
    passes = {
        "training": 3.0 * trained * (2 if spec.recipe.copy_penalty is not None else 1),
        "directions": none,
        "hard negatives": none,
        "public images": none,
    }
    if spec.uses_contrastive:
        epochs = trained / np.maximum(images, 1)
        views = 2 * (1 - 0.5**epochs) if config.fed.mirror else np.minimum(epochs, 1)
        passes["directions"] = 2 * (views * images if config.engine.cache_features else trained)
    if config.fed.public_data == "hard":
        passes["hard negatives"] = images - metrics["hard_negatives"]
        passes["public images"] = none + public_images
    return passes


def local_flops(
    config: Config, spec: RoundSpec, metrics: dict[str, np.ndarray], public_images: int
) -> np.ndarray:
    """(C,) floating-point operations of each client in a round; see :func:`local_passes`."""
    passes = local_passes(config, spec, metrics, public_images)
    return sum(passes.values(), np.zeros(())) * forward_flops(config)
