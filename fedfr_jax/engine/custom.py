"""Convolutions of one client on a CPU: fast on XLA:CPU, also inside loops.

Forward and both gradients are ordinary *forward* convolutions: no dilation of the input, no
grouping, sums of about a thousand terms; wide float32 layers of 3x3 windows at stride 1 use fewer
products (:mod:`fedfr_jax.engine.winograd`); bfloat16 uses matrix products if they run on AMX.
Under vmap the clients take turns.
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from fedfr_jax.engine import winograd
from fedfr_jax.engine.forms import DIMENSIONS, matmul, patches, windows
from fedfr_jax.engine.precision import sum_type


def _taking_turns(op):
    """Wraps an op on (data, data or weights): clients with their own weights run one by one."""
    op = custom_vmap(op)

    @op.def_vmap
    def rule(axis_size, in_batched, a, b):
        pairs = list(zip((a, b), in_batched, strict=True))
        if axis_size == 1:
            return op(*(v[0] if batched else v for v, batched in pairs))[None], True
        stacked = [
            v if batched else jnp.broadcast_to(v, (axis_size, *v.shape)) for v, batched in pairs
        ]
        return lax.map(lambda ab: op(*ab), stacked), True

    return op


def _swapped(x, dy, stride, padding):
    """Weight gradient in at least float32: the forward convolution of x with dy as its kernel.

    Images and channels change places, by transposes and not by dimension numbers,
    because XLA:CPU has a fast path for NHWC only.
    """
    grad = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        dy.transpose(1, 2, 0, 3),
        (1, 1),
        padding,
        rhs_dilation=(stride, stride),
        dimension_numbers=DIMENSIONS,
        preferred_element_type=sum_type(x),
    )
    return grad.transpose(1, 2, 0, 3)


def _takes_winograd(x, window, stride, shape, weights=False):
    """Whether the convolution of x with a result of ``shape`` uses Winograd's filtering."""
    return (
        window == (3, 3)
        and stride == 1
        and x.dtype == jnp.float32
        and winograd.is_faster(shape, x.shape[-1], weights)
    )


def _plain(x, kernel, stride, padding):
    """Forward convolution; ``padding`` is (before, after) per direction, also negative."""
    window, channels = kernel.shape[:2], x.shape[-1]
    size = [
        side + sum(pair) - k + 1
        for side, pair, k in zip(x.shape[1:3], padding, window, strict=True)
    ]
    shape = (len(x), *size, kernel.shape[-1])
    if _takes_winograd(x, window, stride, shape):
        return winograd.forward(x, kernel, padding)
    products = x.dtype == jnp.bfloat16 and channels >= 64
    if channels > 4 and not products:
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=DIMENSIONS
        )
    x = _pad(x, padding)
    if not products:  # an image: too few channels to fill vector registers
        return matmul(patches(x, window, stride, 0), kernel.reshape(-1, kernel.shape[-1]))
    # XLA:CPU uses AMX for products of bfloat16 matrices, but not for convolutions. One
    # product per kernel position, because writing patches would take longer than multiplying.
    taps = kernel.reshape(-1, *kernel.shape[2:])
    return functools.reduce(
        jnp.add,
        (
            jnp.einsum("nhwk,kc->nhwc", v, taps[k], preferred_element_type=jnp.float32)
            for k, v in enumerate(windows(x, window, stride, 0))
        ),
    ).astype(x.dtype)


def _pad(x, padding):
    """Pads the maps with zeros, or crops them if the padding is negative."""
    return lax.pad(
        x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*pair, 0) for pair in padding), (0, 0, 0)]
    )


def _phases(dy, kernel, stride, padding, shape):
    """Input gradient, for an input of ``shape``.

    Input pixels at the same place in a block of stride x stride pixels see the same part of
    the kernel, flipped: one plain convolution of dy for each place, then interleaved.
    """
    if _takes_winograd(dy, kernel.shape[:2], stride, shape):
        pads = [
            (2 - padding, 2 + side - out - (2 - padding))
            for side, out in zip(shape[1:3], dy.shape[1:3], strict=True)
        ]
        return winograd.forward(dy, kernel, pads, backward=True)
    n, *size, c = shape
    blocks = [-(-side // stride) for side in size]
    phases = []
    for place in itertools.product(range(stride), repeat=2):
        first = [(at + padding) % stride for at in place]
        part = kernel[first[0] :: stride, first[1] :: stride]
        if part.size == 0:  # between the windows
            phases.append(jnp.zeros((n, *blocks, c), dy.dtype))
            continue
        shift = [(at + padding) // stride for at in place]
        pads = [
            (taps - 1 - s, count + s - out)
            for taps, s, count, out in zip(
                part.shape[:2], shift, blocks, dy.shape[1:3], strict=True
            )
        ]
        phases.append(_plain(dy, part[::-1, ::-1].swapaxes(2, 3), 1, pads))
    if stride == 1:
        return phases[0]
    dx = jnp.stack(phases, 3).reshape(n, *blocks, stride, stride, c).transpose(0, 1, 3, 2, 4, 5)
    dx = dx.reshape(n, blocks[0] * stride, blocks[1] * stride, c)
    return dx[:, : size[0], : size[1]]


def _taps_gradient(x, dy, window, stride, padding):
    """Weight gradient, for bfloat16: one matrix product per kernel position.

    Channels are moved to the front once, so that no product has a transposed operand.
    """
    n, h, w, c = x.shape
    x = lax.optimization_barrier(x.transpose(3, 0, 1, 2)).reshape(c * n, h, w, 1)
    dy = dy.reshape(-1, dy.shape[-1])
    grad = [
        jnp.matmul(
            lax.optimization_barrier(v.reshape(c, -1)), dy, preferred_element_type=jnp.float32
        )
        for v in windows(x, window, stride, padding)
    ]
    return jnp.stack(grad).reshape(*window, c, -1).astype(x.dtype)


def _piece(images, rows, cols):
    """(images, rows) of the pieces in which a weight gradient is summed.

    The sum is over all output pixels. XLA:CPU drops to a third of its speed if
    the sum is long; pieces of about 1000 terms are near the optimum for every shape measured.
    Up to 4096 terms, cutting does not help.
    """
    if images * rows * cols <= 4096:
        return images, rows
    images = winograd.divisor(images, 8)
    return images, winograd.divisor(rows, 1024 // (images * cols))


@functools.cache
def operations(window, stride, padding):
    """Forward, weight-gradient and input-gradient functions of one geometry.

    Under ``jax.jit``, so that equal layers of a network are traced and lowered once.
    """

    @jax.jit
    def forward(x, kernel):
        return _plain(x, kernel, stride, [(padding, padding)] * 2)

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

    @jax.jit
    def weight_gradient(x, dy):
        # Otherwise XLA:CPU fuses the previous layer into the transposes, at a slow stride.
        x, dy = lax.optimization_barrier((x, dy))
        if x.dtype == jnp.bfloat16 and x.shape[-1] > 4:
            return _taps_gradient(x, dy, window, stride, padding)
        if _takes_winograd(x, window, stride, dy.shape, weights=True):
            return winograd.weight_gradient(x, dy, [(padding, padding)] * 2)
        images, rows = _piece(*dy.shape[:3])
        # Keep only the pixels that the windows of dy reach.
        reach = [
            (out - 1) * stride + k - size - padding
            for out, k, size in zip(dy.shape[1:3], window, x.shape[1:3], strict=True)
        ]
        if (images, rows) == dy.shape[:2]:
            return _swapped(x, dy, stride, [(padding, r) for r in reach]).astype(x.dtype)
        x = _pad(x, [(padding, r) for r in reach])
        bands = dy.shape[1] // rows

        def add_piece(i, total):
            image, row = i // bands * images, i % bands * rows
            part = lax.dynamic_slice(
                x,
                (image, row * stride, 0, 0),
                (images, (rows - 1) * stride + window[0], *x.shape[2:]),
            )
            dy_part = lax.dynamic_slice(dy, (image, row, 0, 0), (images, rows, *dy.shape[2:]))
            return total + _swapped(part, dy_part, stride, [(0, 0)] * 2)

        total = jnp.zeros((*window, x.shape[-1], dy.shape[-1]), sum_type(x))
        return lax.fori_loop(0, dy.shape[0] // images * bands, add_piece, total).astype(x.dtype)

    def input_gradient_for(shape):
        @jax.jit
        def input_gradient(dy, kernel):
            return _phases(dy, kernel, stride, padding, shape)

        return _taking_turns(input_gradient)

    return forward, _taking_turns(weight_gradient), functools.cache(input_gradient_for)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def custom(x, kernel, stride, padding):
    """The convolution for CPUs: (N, H, W, C) maps with a (kh, kw, C, C') kernel."""
    return operations(kernel.shape[:2], stride, padding)[0](x, kernel)


def _custom_forward(x, kernel, stride, padding):
    return custom(x, kernel, stride, padding), (x, kernel)


def _custom_backward(stride, padding, residuals, dy):
    x, kernel = residuals
    _, weight_gradient, input_gradient_for = operations(kernel.shape[:2], stride, padding)
    return input_gradient_for(x.shape)(dy, kernel), weight_gradient(x, dy)


custom.defvjp(_custom_forward, _custom_backward)
