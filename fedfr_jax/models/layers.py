"""The layers that the backbones share, in NHWC.

Convolutions and linear layers are those of :mod:`fedfr_jax.engine.layers`, which stay fast with
one set of weights per client; here are the others.
Activations are kept in the compute type of a backbone; sums are taken in at least float32.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedfr_jax.engine.layers import (
    Conv,
    Dense,
    Initializer,
    he_normal,
    matmul,
    xavier_uniform,
)
from fedfr_jax.engine.precision import sum_type
from fedfr_jax.errors import ConfigError

__all__ = [
    "DTYPES",
    "MIN_IMAGE_SIZE",
    "BatchNorm",
    "Conv",
    "Dense",
    "Initializer",
    "PReLU",
    "apply_module",
    "check_widths",
    "compute_dtype",
    "entering",
    "final_map_side",
    "he_normal",
    "matmul",
    "parameter_count",
    "prelu",
    "xavier_uniform",
]

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}
MIN_IMAGE_SIZE = 16  # four halvings leave a map of one pixel


def compute_dtype(name: str) -> Any:
    """Compute type of a backbone from the setting ``model.dtype``.

    Raises:
      ConfigError: the type is unknown, or not enabled in JAX.
    """
    if name not in DTYPES:
        raise ConfigError(f"model.dtype is {name!r}; use one of {', '.join(DTYPES)}")
    if name == "float64" and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ConfigError(
            "model.dtype is 'float64', which JAX disables by default; set the "
            "environment variable JAX_ENABLE_X64=1"
        )
    return DTYPES[name]


def entering(images: jax.Array, dtype: Any) -> jax.Array:
    """Images in the compute type: bfloat16 where it is asked for, else at least float32.

    Images in float64, which come with parameters of that type, stay in float64.
    """
    return images.astype(
        dtype if dtype == jnp.bfloat16 else jnp.promote_types(images.dtype, jnp.float32)
    )


def final_map_side(image_size: int) -> int:
    """Side (pixels) of the feature map after four stride-2 convolutions."""
    return math.ceil(image_size / 16)


def check_widths(widths: tuple[int, ...]) -> None:
    """Raises ConfigError unless ``widths`` are channels of four stages, all positive."""
    if len(widths) != 4 or any(width < 1 for width in widths):
        raise ConfigError(
            f"model.widths is {tuple(widths)}; give the channels of 4 stages, "
            "e.g. (64, 128, 256, 512)"
        )


class PReLU(nn.Module):
    """``x`` where positive, ``slope·x`` elsewhere, with one slope per channel (start 0.25)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],))
        return prelu(x, slope)


@jax.custom_vjp
def prelu(x, slope):
    """``x`` where positive, ``slope·x`` elsewhere, with (C,) slopes of the last axis.

    It has a custom gradient, because the one that JAX derives reads memory twice as often.
    """
    return jnp.where(x > 0, x, slope.astype(x.dtype) * x)


def _prelu_forward(x, slope):
    return prelu(x, slope), (x, slope)


def _prelu_backward(residuals, dy):
    x, slope = residuals
    dslope = jnp.sum(jnp.where(x > 0, 0, dy * x), range(x.ndim - 1), dtype=slope.dtype)
    return jnp.where(x > 0, dy, slope.astype(x.dtype) * dy), dslope


prelu.defvjp(_prelu_forward, _prelu_backward)


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last, with PyTorch's semantics.

    Training normalizes with the mean and the biased variance of the batch and moves the
    running mean and the running *unbiased* variance towards them; otherwise the running
    ones are used. Statistics are at least float32 for any input type. Under ``vmap``
    each client has its own.

    Attributes:
      eps: added to the variance.
      use_scale: learn a scale per channel; False fixes it at 1.
      use_bias: learn a bias per channel; False fixes it at 0.
      momentum: share of the running statistics that a training step keeps.
    """

    eps: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        shape = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape) if self.use_bias else 0.0
        scale = self.param("scale", nn.initializers.ones, shape) if self.use_scale else 1.0
        if train:
            mean, var = _moments(x)
            count = x.size // x.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * unbiased
            scale, bias = (jnp.broadcast_to(v, shape) for v in (scale, bias))
            return _normalized_by_batch(x, scale, bias, self.eps)
        return _normalized(x, running_mean.value, running_var.value, scale, bias, self.eps)


def _normalized(x, mean, var, scale, bias, eps):
    factor = scale * jax.lax.rsqrt(var + eps)
    return ((x.astype(sum_type(x)) - mean) * factor + bias).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalized_by_batch(x, scale, bias, eps):
    """Normalized by the moments of the batch, which XLA computes once also where others need them.

    It has a custom gradient, with two sums over the batch: the one that JAX derives has eight.
    """
    return _normalized(x, *_moments(x), scale, bias, eps)


def _normalized_forward(x, scale, bias, eps):
    mean, var = _moments(x)
    return _normalized(x, mean, var, scale, bias, eps), (x, mean, var, scale, bias)


def _normalized_backward(eps, residuals, dy):
    x, mean, var, scale, bias = residuals
    axes = tuple(range(x.ndim - 1))
    dy, rate = dy.astype(sum_type(x)), jax.lax.rsqrt(var + eps)
    normal = (x.astype(sum_type(x)) - mean) * rate
    dbias, dscale = jnp.sum(dy, axes), jnp.sum(dy * normal, axes)
    count = x.size // x.shape[-1]
    dx = scale * rate * (dy - (dbias + normal * dscale) / count)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


_normalized_by_batch.defvjp(_normalized_forward, _normalized_backward)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance per channel in at least float32.

    Two passes: E[x²] - E[x]² loses the variance of a channel with a large mean.
    """
    x = x.astype(sum_type(x))
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    return mean, jnp.mean(jnp.square(x - mean), axes)


def parameter_count(tree: Any) -> int:
    """Number of scalars in a pytree of arrays or of ``jax.ShapeDtypeStruct``."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def apply_module(
    module: nn.Module, variables: dict[str, Any], inputs: jax.Array, train: bool, *part: slice
) -> tuple[jax.Array, Any]:
    """(outputs, batch_stats) of a network, or of the ``part`` of its layers.

    In training mode the running statistics are those after the batch.
    """
    if not (train and variables["batch_stats"]):
        outputs: Any = module.apply(variables, inputs, train, *part)
        return outputs, variables["batch_stats"]
    outputs, updates = module.apply(variables, inputs, True, *part, mutable=["batch_stats"])
    return outputs, updates["batch_stats"]
