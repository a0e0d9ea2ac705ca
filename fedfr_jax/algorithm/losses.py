"""The three loss terms of FedFR and their sum.

``L = L_cos + mu L_con + beta L_bin`` (FedFR, Liu et al., AAAI 2022, equation 6).
All functions take one batch of one client. Stacked clients are padded to the largest
one, so the arrays may have more class embeddings than the client has identities: a
boolean mask marks those that exist, and the others are ignored.
"""

from __future__ import annotations

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax import nn
from jaxtyping import Array, Bool, Float, Int

Logits = Float[Array, "B K"]
Labels = Int[Array, " B"]
Loss = Float[Array, ""]


def normalize(x: Float[Array, ...], axis: int = -1) -> Float[Array, ...]:
    """Scales vectors to length 1; a zero vector stays zero and has zero gradient."""
    squared = jnp.sum(x * x, axis=axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))


def cosine_logits(features: Float[Array, "B d"], class_embeddings: Float[Array, "K d"]) -> Logits:
    """Cosines of features with class embeddings.

    Args:
      features: (B, d).
      class_embeddings: (K, d), any length.

    Returns:
      (B, K) cosines.
    """
    return normalize(features) @ normalize(class_embeddings).T


def cosface_logits(cosine: Logits, labels: Labels, *, scale: float, margin: float) -> Logits:
    """``s (cos - m [k = y])`` (CosFace, Wang et al., CVPR 2018, equation 4).

    Args:
      cosine: (B, K).
      labels: (B,) int in [0, K).

    Returns:
      (B, K) logits.
    """
    is_label = jnp.arange(cosine.shape[-1]) == labels[:, None]
    return scale * (cosine - margin * is_label)


def arcface_logits(cosine: Logits, labels: Labels, *, scale: float, margin: float) -> Logits:
    """``s cos(theta + m [k = y])`` (ArcFace, Deng et al., CVPR 2019, equation 3).

    Beyond theta + m = pi, ``s (cos(theta) - m sin(m))`` continues to decrease, as in the
    published code. The sine is computed from the cosine, to avoid the edges of the arc cosine.

    Args:
      cosine: (B, K); labels: (B,) int in [0, K); margin: in radians.

    Returns:
      (B, K) logits.
    """
    sine = jnp.sqrt(jnp.maximum(1.0 - cosine**2, 1e-12))
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    turned = jnp.where(cosine > -math.cos(margin), turned, cosine - margin * math.sin(margin))
    is_label = jnp.arange(cosine.shape[-1]) == labels[:, None]
    return scale * jnp.where(is_label, turned, cosine)


MARGINS = {"cosface": cosface_logits, "arcface": arcface_logits}


def margin_loss(
    features: Float[Array, "B d"],
    class_embeddings: Float[Array, "K d"],
    labels: Labels,
    *,
    scale: float,
    margin: float,
    kind: str = "cosface",
    class_mask: Bool[Array, " K"] | None = None,
    weights: Float[Array, " B"] | None = None,
    positive_margin: float = 0.0,
    repeats: int = 0,
    is_own: Bool[Array, " O"] | None = None,
) -> Loss:
    """Softmax cross-entropy of logits with a margin, mean over the batch.

    Args:
      features: (B, d).
      class_embeddings: (K, d).
      labels: (B,) int in [0, K).
      kind: key of ``MARGINS``.
      class_mask: (K,) bool, False for padding; None: all exist.
      weights: (B,) of the images; None: all 1.
      positive_margin: if only one class exists, the softmax loss is always 0, and the squared
        hinge ``max(0, positive_margin - cos)^2`` replaces it (FedAwS, Yu et al., ICML 2020);
        0: no replacement.
      repeats: so many times more do the client's own classes, without the image's own, count in
        the softmax's denominator; no gradient flows through these copies.
      is_own: (O,) bool, which of the first O classes are the client's own; needed for repeats.
    """
    chex.assert_rank([features, class_embeddings, labels], [2, 2, 1])
    chex.assert_equal_shape_prefix([features, labels], 1)
    cosine = cosine_logits(features, class_embeddings)
    logits = MARGINS[kind](cosine, labels, scale=scale, margin=margin)
    if class_mask is not None:
        logits = jnp.where(class_mask, logits, -jnp.inf)
    if repeats and is_own is not None:
        copies = jax.lax.stop_gradient(logits[:, : len(is_own)]) + math.log(repeats)
        is_negative = is_own & (jnp.arange(len(is_own)) != labels[:, None])
        logits = jnp.concatenate([logits, jnp.where(is_negative, copies, -jnp.inf)], axis=1)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if positive_margin > 0:
        own = jnp.take_along_axis(cosine, labels[:, None], axis=-1)[:, 0]
        classes = len(class_embeddings) if class_mask is None else class_mask.sum()
        loss = jnp.where(classes == 1, nn.relu(positive_margin - own) ** 2, loss)
    return _mean(loss, weights)


def class_weights(
    labels: Int[Array, " P"], valid: Bool[Array, " P"], classes: int, dtype: Any = jnp.float32
) -> Float[Array, " P"]:
    """Weights that make every class count the same, 1 on average over the valid images.

    Args:
      labels: (P,) int in [0, classes); valid: (P,) bool.

    Returns:
      (P,) ``images / (present classes * images of the class)``; 0 where not valid.
    """
    counts = jax.ops.segment_sum(valid.astype(dtype), labels, classes)
    present = jnp.maximum((counts > 0).sum(), 1)
    return jnp.where(valid, valid.sum() / (present * jnp.maximum(counts[labels], 1)), 0.0)


def contrastive_direction(
    global_features: Float[Array, "B d"], previous_features: Float[Array, "B d"]
) -> Float[Array, "B d"]:
    """The direction that the contrastive term turns features away from: unit previous minus
    unit global.

    The term needs only this difference, which is looked up in every epoch. No gradient flows
    into it.

    Args:
      global_features, previous_features: (B, d) each, of the same augmented images.

    Returns:
      (B, d).
    """
    return jax.lax.stop_gradient(normalize(previous_features) - normalize(global_features))


def _mean(loss: Float[Array, " B"], weights: Float[Array, " B"] | None) -> Loss:
    return jnp.mean(loss if weights is None else weights * loss)


def contrastive_loss(
    features: Float[Array, "B d"],
    direction: Float[Array, "B d"],
    *,
    temperature: float,
    weights: Float[Array, " B"] | None = None,
) -> Loss:
    """Pulls features towards the global model's, away from the previous local model's.

    ``-log(e^{cos(f,g)/tau} / (e^{cos(f,g)/tau} + e^{cos(f,p)/tau}))`` (after MOON,
    Li et al., CVPR 2021, equation 3; FedFR, equation 2), as a softplus of
    ``(cos(f,p) - cos(f,g)) / tau``.

    Args:
      features: (B, d); direction: (B, d) from :func:`contrastive_direction`.
      weights: (B,) of the images; None: all 1.
    """
    chex.assert_equal_shape([features, direction])
    turned = jnp.sum(normalize(features) * direction, -1)
    return _mean(nn.softplus(turned / temperature), weights)


def binary_logits(
    personal_features: Float[Array, "B d"],
    binary_weight: Float[Array, "K d"],
    binary_bias: Float[Array, " K"],
    labels: Labels,
    *,
    scale: float,
    margin: float,
    power: float = 3.0,
) -> tuple[Logits, Bool[Array, "B K"]]:
    """One-vs-all logits of the decoupled feature customization (DFC) branch.

    ``r (q(z) - m) + c`` at an image's own identity, ``r (q(z) + m) + c`` elsewhere,
    ``q(z) = 2 ((z + 1) / 2)^t - 1`` (SphereFace2, Wen et al., ICLR 2022; FedFR, equation 4).

    Args:
      personal_features: (B, d), after the client's transform.
      binary_weight: (K_i, d); binary_bias: (K_i,).
      labels: (B,) int; labels >= K_i are public images, negative for every identity.

    Returns:
      (logits (B, K_i), is_positive (B, K_i) bool).
    """
    chex.assert_equal_shape_prefix([binary_weight, binary_bias], 1)
    chex.assert_equal_shape_prefix([personal_features, labels], 1)
    z = cosine_logits(personal_features, binary_weight)
    # Rounding can put a cosine beyond -1, where a fractional power is not a number.
    q = 2.0 * (jnp.maximum(z + 1.0, 0.0) / 2.0) ** power - 1.0
    is_positive = jnp.arange(binary_weight.shape[0]) == labels[:, None]
    return scale * (q + jnp.where(is_positive, -margin, margin)) + binary_bias, is_positive


def binary_loss(
    personal_features: Float[Array, "B d"],
    binary_weight: Float[Array, "K d"],
    binary_bias: Float[Array, " K"],
    labels: Labels,
    *,
    scale: float,
    margin: float,
    balance: float,
    power: float = 3.0,
    class_mask: Bool[Array, " K"] | None = None,
    weights: Float[Array, " B"] | None = None,
) -> Loss:
    """``mean[lambda/r softplus(-a) + (1 - lambda)/r sum_{k != y} softplus(b_k)]``.

    Args:
      balance: lambda, the weight of the positive part.
      class_mask: (K_i,) bool, False for padding; None: all exist.
      weights: (B,) of the images; None: all 1.
      Others as in :func:`binary_logits`.
    """
    logits, is_positive = binary_logits(
        personal_features,
        binary_weight,
        binary_bias,
        labels,
        scale=scale,
        margin=margin,
        power=power,
    )
    terms = jnp.where(
        is_positive, balance * nn.softplus(-logits), (1.0 - balance) * nn.softplus(logits)
    )
    if class_mask is not None:
        terms = jnp.where(class_mask, terms, 0.0)
    return _mean(jnp.sum(terms, axis=-1), weights) / scale
