"""Layers that stay fast with one set of weights per client, in NHWC.

They replace those of ``flax.linen`` where its gradients are slow under ``jax.vmap`` over
clients or, on a CPU, inside a loop over steps. Names and shapes of the parameters are the same, so
weights can be exchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from fedfr_jax.engine.convolutions import conv2d
from fedfr_jax.engine.precision import sum_type

Initializer = Callable[..., jax.Array]

# fan_in of a depthwise kernel is its area, so one rule serves both kinds.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
xavier_uniform = nn.initializers.xavier_uniform()
# That of PyTorch's layers: a sixth of He's variance, for plain SGD at rates such as 0.1.
torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Conv(nn.Module):
    """2-D convolution of (N, H, W, C) maps.

    Attributes:
      features: output channels; with ``depthwise`` it must equal the input channels.
      size: side of the kernel, in pixels.
      stride: step of the kernel, in pixels.
      padding: zeros added on each side; ``None`` keeps the map at stride 1.
      depthwise: one filter per channel.
      use_bias: add a bias, which starts at zero.
      strategy: how :func:`~fedfr_jax.engine.convolutions.conv2d` computes it.
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


def max_pool(x: jax.Array, window: int = 2) -> jax.Array:
    """Maxima of windows that do not overlap, like ``nn.max_pool`` with equal window and stride.

    The gradient of ``lax.reduce_window`` is slow inside a loop on a CPU; a reshape avoids it.
    Where the maximum occurs more than once, its places share the gradient evenly.

    Args:
      x: (N, H, W, C) maps.
      window: side of the window, in pixels.

    Returns:
      (N, H // window, W // window, C); rows and columns that fill no window are dropped.
    """
    n, height, width, channels = x.shape
    rows, columns = height // window, width // window
    x = x[:, : rows * window, : columns * window]
    return x.reshape(n, rows, window, columns, window, channels).max((2, 4))


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Sets values to zero with probability ``rate``, and divides the others by ``1 - rate``.

    The random bits are hashes of the key and the place (:func:`_mixed`, twice): a few operations,
    done again for the gradient rather than kept. In a small network on a CPU they take 1 % of the
    time, and those of ``nn.Dropout`` up to 10 %. They are meant for nothing but dropout.

    Args:
      x: any shape, fewer than 2 ** 32 values.
      rate: in [0, 1).
      key: of this step and this layer.
    """
    if rate == 0:
        return x
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    first, *_, last = jax.random.bits(key, (2,))
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * np.uint32(size) + lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    drawn = _mixed(_mixed(place ^ first) ^ last)
    return jnp.where(drawn >= np.uint32(round(rate * 2**32)), x / (1 - rate), 0)


def _mixed(x: jax.Array) -> jax.Array:
    """A hash of 32 bits: C. Wellons' lowbias32, a bijection with little bias between its bits."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
