"""The layers that the backbones share, in NHWC.

They replace those of ``flax.linen`` because every convolution has
to go through :func:`fedfr_jax.engine.convolutions.conv2d`: with one set of weights per client,
``nn.Conv`` under ``jax.vmap`` becomes a grouped convolution, which is slow.
Activations are kept in the compute type of a backbone; sums are taken in at least float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedfr_jax.engine.convolutions import conv2d
from fedfr_jax.engine.precision import sum_type
from fedfr_jax.errors import ConfigError

Initializer = Callable[..., jax.Array]

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}
MIN_IMAGE_SIZE = 16  # four halvings leave a map of one pixel

# fan_in of a depthwise kernel is its area, so one rule serves both kinds.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
xavier_uniform = nn.initializers.xavier_uniform()


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


class Conv(nn.Module):
    """2-D convolution of (N, H, W, C) maps.

    Attributes:
      features: output channels; with ``depthwise`` it must equal the input channels.
      size: side of the kernel, in pixels.
      stride: step of the kernel, in pixels.
      padding: zeros added on each side; ``None`` keeps the map at stride 1.
      depthwise: one filter per channel.
      use_bias: add a bias, which starts at zero.
      strategy: how ``conv2d`` computes it (setting ``engine.conv``).
      init: initializer of the (size, size, C or 1, features) kernel.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: int | None = None
    depthwise: bool = False
    use_bias: bool = False
    strategy: str = "auto"
    init: Initializer = he_normal  # type: ignore[assignment]  # flax has a method of this name

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        groups = channels if self.depthwise else 1
        padding = self.size // 2 if self.padding is None else self.padding
        kernel = self.param(
            "kernel", self.init, (self.size, self.size, channels // groups, self.features)
        )
        y = conv2d(
            x,
            kernel.astype(x.dtype),
            stride=self.stride,
            padding=padding,
            groups=groups,
            strategy=self.strategy,
        ).astype(x.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(y.dtype)
        return y


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


class Dense(nn.Module):
    """Linear layer (N, F) -> (N, features); its result is at least float32."""

    features: int
    init: Initializer = xavier_uniform  # type: ignore[assignment]
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.init, (x.shape[-1], self.features))
        y = matmul(x, kernel.astype(x.dtype))
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.features,))


@jax.custom_vjp
def matmul(x, w):
    """(N, F) times (F, features) in at least float32.

    It has a custom gradient, because JAX's gradient is transposed, and XLA:CPU transposes it
    back inside the optimizer's update, which takes several times as long as the product.
    """
    return jnp.matmul(x, w, preferred_element_type=sum_type(x))


def _matmul_forward(x, w):
    return matmul(x, w), (x, w)


def _matmul_backward(residuals, dy):
    x, w = residuals
    dy = dy.astype(x.dtype)
    dx = jnp.einsum("nc,kc->nk", dy, w, preferred_element_type=sum_type(x))
    if x.shape[0] <= 16 and x.dtype != jnp.bfloat16:
        # Few rows: these products fuse with the optimizer, and dw is never written to memory.
        dw = functools.reduce(jnp.add, (x[i, :, None] * dy[i] for i in range(x.shape[0])))
    else:
        dw = jnp.einsum("nk,nc->kc", x, dy, preferred_element_type=sum_type(x))
    return dx.astype(x.dtype), dw.astype(w.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


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
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * jax.lax.rsqrt(var + self.eps)
        return ((x.astype(sum_type(x)) - mean) * factor + bias).astype(x.dtype)


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
