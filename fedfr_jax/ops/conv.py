"""Convolutions that stay fast when every client has its own weights.

Under ``jax.vmap`` over clients an ordinary convolution becomes a grouped one,
and XLA:CPU also runs convolution *gradients* inside a loop on a slow generic
path. Each strategy here computes the same convolution and the same gradients:

* ``grouped``: ``lax.conv_general_dilated`` and its own gradients. Best when
  weights are shared, or one client at a time runs on a GPU/TPU.
* ``patches``: patches and a matrix product, forward and backward. Under vmap
  it is a batched matrix product, which GPUs and TPUs are made for.
* ``custom``: an ordinary forward convolution; the weight gradient as one
  matrix product over patches, the input gradient as another *forward*
  convolution (patch transpose at stride > 1). For CPUs, also inside loops;
  under vmap the clients take turns.
"""
from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

STRATEGIES = ("grouped", "patches", "custom")
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def default_strategy(lanes: int = 1) -> str:
    """The strategy for this backend when none is set.

    Args:
      lanes: clients side by side under vmap; 1 where weights are shared.
    """
    if jax.default_backend() == "cpu":
        return "custom"
    return "patches" if lanes > 1 else "grouped"


def conv2d(x, kernel, *, stride: int = 1, padding: int = 1, groups: int = 1,
           strategy: str = "auto"):
    """Two-dimensional convolution.

    Args:
      x: (N, H, W, C) images or feature maps.
      kernel: (kh, kw, C / groups, C') weights, cast to the type of ``x``.
      stride: step in both directions.
      padding: zeros added on every side.
      groups: 1, or C for a depthwise convolution (then C' = C).
      strategy: one of ``STRATEGIES``, or ``auto``.

    Returns:
      (N, H', W', C') in the type of ``x``.

    Raises:
      ValueError: unknown strategy, or groups that are neither 1 nor C.
    """
    if strategy == "auto":
        strategy = default_strategy()
    if strategy not in STRATEGIES:
        raise ValueError(f"convolution strategy {strategy!r} is not one of {STRATEGIES} or 'auto'")
    if groups not in (1, x.shape[-1]):
        raise ValueError(f"groups={groups} must be 1 or the {x.shape[-1]} input channels")
    kernel = kernel.astype(x.dtype)
    if strategy == "grouped":
        return _ordinary(x, kernel, stride, padding, groups)
    if groups > 1:
        return _depthwise(x, kernel, stride, padding)
    if kernel.shape[:2] == (1, 1) and padding == 0:
        return _matmul(x[:, ::stride, ::stride], kernel[0, 0])
    if strategy == "patches":
        return _matmul(_patches(x, kernel.shape[:2], stride, padding),
                       kernel.reshape(-1, kernel.shape[-1]))
    return _custom(x, kernel, stride, padding)


def _ordinary(x, kernel, stride, padding, groups=1):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2,
        dimension_numbers=_DIMENSIONS, feature_group_count=groups)


def _matmul(x, w):
    """Contracts the last axis of ``x`` with ``w``, summing in float32."""
    return jnp.einsum("...k,kc->...c", x, w, preferred_element_type=jnp.float32).astype(x.dtype)


def _windows(x, window, stride, padding):
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


def _patches(x, window, stride, padding):
    """(N, H', W', kh kw C): what each output position sees, in kernel order."""
    return jnp.concatenate(list(_windows(x, window, stride, padding)), axis=-1)


def _depthwise(x, kernel, stride, padding):
    """A sum of shifted products: elementwise work that vmaps without grouping."""
    kh, kw = kernel.shape[:2]
    if padding == 0 and (kh, kw) == x.shape[1:3]:  # the whole map: one contraction
        return jnp.einsum("nhwc,hwc->nc", x, kernel[:, :, 0])[:, None, None, :]
    taps = kernel.reshape(kh * kw, -1)
    views = _windows(x, (kh, kw), stride, padding)
    return functools.reduce(jnp.add, (v * taps[k] for k, v in enumerate(views)))


def _taking_turns(op):
    """Wraps an op on (data, data or weights): clients with their own weights run one by one."""
    op = custom_vmap(op)

    @op.def_vmap
    def rule(axis_size, in_batched, a, b):
        pairs = list(zip((a, b), in_batched, strict=True))
        if axis_size == 1:
            return op(*(v[0] if batched else v for v, batched in pairs))[None], True
        stacked = [v if batched else jnp.broadcast_to(v, (axis_size, *v.shape))
                   for v, batched in pairs]
        return lax.map(lambda ab: op(*ab), stacked), True

    return op


@functools.cache
def _ops(window, stride, padding):
    """Forward, weight-gradient and input-gradient functions of one geometry."""

    def forward(x, kernel):
        return _ordinary(x, kernel, stride, padding)

    forward = custom_vmap(forward)

    @forward.def_vmap
    def forward_rule(axis_size, in_batched, x, kernel):
        if not in_batched[1]:  # shared weights: clients are just more images
            flat = forward(x.reshape(-1, *x.shape[2:]), kernel)
            return flat.reshape(axis_size, -1, *flat.shape[1:]), True
        if axis_size == 1:
            return forward(x[0] if in_batched[0] else x, kernel[0])[None], True
        if not in_batched[0]:
            x = jnp.broadcast_to(x, (axis_size, *x.shape))
        return lax.map(lambda xk: forward(*xk), (x, kernel)), True

    def weight_gradient(x, dy):
        # Images and channels change places: the gradient is the forward convolution of
        # x with dy as a kernel. Written with transposes, it stays on the fast path.
        reach = [(out - 1) * stride + 1 + k - 1 - size - padding
                 for out, k, size in zip(dy.shape[1:3], window, x.shape[1:3], strict=True)]
        grad = lax.conv_general_dilated(
            x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), (1, 1),
            [(padding, r) for r in reach], rhs_dilation=(stride, stride),
            dimension_numbers=_DIMENSIONS)
        return grad.transpose(1, 2, 0, 3)

    def input_gradient_for(shape):
        def input_gradient(dy, kernel):
            if stride == 1:
                flipped = kernel[::-1, ::-1].swapaxes(2, 3)
                return _ordinary(dy, flipped, 1, window[0] - 1 - padding)
            columns = _matmul(dy, kernel.reshape(-1, kernel.shape[-1]).T)
            transpose = jax.linear_transpose(
                lambda x: _patches(x, window, stride, padding),
                jax.ShapeDtypeStruct(shape, dy.dtype))
            return transpose(columns)[0]

        return _taking_turns(input_gradient)

    return forward, _taking_turns(weight_gradient), functools.cache(input_gradient_for)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _custom(x, kernel, stride, padding):
    return _ops(kernel.shape[:2], stride, padding)[0](x, kernel)


def _custom_forward(x, kernel, stride, padding):
    return _custom(x, kernel, stride, padding), (x, kernel)


def _custom_backward(stride, padding, residuals, dy):
    x, kernel = residuals
    _, weight_gradient, input_gradient_for = _ops(kernel.shape[:2], stride, padding)
    return input_gradient_for(x.shape)(dy, kernel), weight_gradient(x, dy)


_custom.defvjp(_custom_forward, _custom_backward)
