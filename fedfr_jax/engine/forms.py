"""Ways to compute a convolution with plain operations, which JAX can batch and differentiate.

All take (N, H, W, C) maps and a (kh, kw, C / groups, C') kernel of the same type.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from fedfr_jax.engine.precision import sum_type

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def ordinary(x, kernel, stride, padding, groups=1):
    """XLA's convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=DIMENSIONS,
        feature_group_count=groups,
    )


@jax.custom_vjp
def matmul(x, w):
    """Contracts the last axis of ``x`` with ``w``, summing in at least float32.

    It has a custom gradient: JAX's own, of the result in bfloat16, converts both operands to
    float32, nine times the map for patches, and multiplies those.
    """
    return jnp.einsum("...k,kc->...c", x, w, preferred_element_type=sum_type(x)).astype(x.dtype)


def _matmul_forward(x, w):
    return matmul(x, w), (x, w)


def _matmul_backward(residuals, dy):
    x, w = residuals
    rows, drows = (v.reshape(-1, v.shape[-1]) for v in (x, dy))  # XLA:CPU needs it for bfloat16
    dx = jnp.einsum("nc,kc->nk", drows, w, preferred_element_type=sum_type(x))
    dw = jnp.einsum("nc,nk->ck", drows, rows, preferred_element_type=sum_type(x)).T
    return dx.astype(x.dtype).reshape(x.shape), dw.astype(w.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def windows(x, window, stride, padding):
    """One strided (N, H', W', C) view of ``x`` per kernel position."""
    kh, kw = window
    if padding:
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    n, h, w, c = x.shape
    rows, cols = (h - kh) // stride + 1, (w - kw) // stride + 1
    for i in range(kh):
        for j in range(kw):
            end = (n, i + (rows - 1) * stride + 1, j + (cols - 1) * stride + 1, c)
            yield lax.slice(x, (0, i, j, 0), end, (1, stride, stride, 1))


def patches(x, window, stride, padding):
    """(N, H', W', kh kw C): the input window of each output position, in kernel order."""
    return jnp.concatenate(list(windows(x, window, stride, padding)), axis=-1)


def by_patches(x, kernel, stride, padding):
    """Patches and one matrix product; a 1x1 kernel needs no patches."""
    if kernel.shape[:2] == (1, 1) and padding == 0:
        return matmul(x[:, ::stride, ::stride], kernel[0, 0])
    return matmul(
        patches(x, kernel.shape[:2], stride, padding), kernel.reshape(-1, kernel.shape[-1])
    )


def depthwise(x, kernel, stride, padding):
    """A sum of shifted products: elementwise, so vmap needs no grouped convolution."""
    kh, kw = kernel.shape[:2]
    if padding == 0 and (kh, kw) == x.shape[1:3]:  # the whole map: one contraction
        return jnp.einsum("nhwc,hwc->nc", x, kernel[:, :, 0])[:, None, None, :]
    taps = kernel.reshape(kh * kw, -1)
    views = windows(x, (kh, kw), stride, padding)
    return functools.reduce(jnp.add, (v * taps[k] for k, v in enumerate(views)))
