"""A convolution that chooses its form when it sees how many clients run side by side.

Forward, gradient of the weights and gradient of the input are an operation each, over lanes: the
operands have a leading axis, the clients with weights of their own, which vmap extends. Without
vmap it has length 1. Where the weights are shared, vmap adds images instead of lanes. The form is
that of :mod:`fedfr_jax.engine.layer_rule`; the platform is the one that the program is lowered
for. Maps and weights are kept for the gradient, and patches are made again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from fedfr_jax.engine import forms
from fedfr_jax.engine.custom import operations
from fedfr_jax.engine.layer_rule import PLATFORMS, form_of

# Clients ``apart`` are so many copies in the program: independent kernels, which may overlap on the
# chip. More of them take turns in groups, or compiling would take too long.
MOST_COPIES = 16


class _Layer(NamedTuple):
    """The static part of a layer: what neither vmap nor the mini-batch changes."""

    size: tuple[int, int]  # of the input map
    channels: tuple[int, int]
    window: tuple[int, int]
    stride: int
    padding: int
    groups: int
    choose: Callable[..., str]

    def form(self, lanes: int, batch: int, platform: str) -> str:
        return self.choose(
            lanes,
            batch,
            math.isqrt(math.prod(self.size)),
            self.channels,
            stride=self.stride,
            window=max(self.window),
            depthwise=self.groups > 1,
            platform=platform,
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def layered(x, kernel, stride, padding, groups, choose=form_of):
    """(N, H, W, C) maps with a (kh, kw, C / groups, C') kernel, as ``conv2d`` computes it.

    Args:
      choose: the rule, with the arguments of :func:`~fedfr_jax.engine.layer_rule.form_of`.
    """
    layer = _layer(x, kernel, stride, padding, groups, choose)
    return _operation("forward", layer)(x[None], kernel[None])[0]


def _layered_forward(x, kernel, stride, padding, groups, choose):
    return layered(x, kernel, stride, padding, groups, choose), (x, kernel)


def _layered_backward(stride, padding, groups, choose, residuals, dy):
    x, kernel = residuals
    layer = _layer(x, kernel, stride, padding, groups, choose)
    dx = _operation("input", layer)(dy[None], kernel[None])[0]
    return dx, _operation("weights", layer)(x[None], dy[None])[0]


layered.defvjp(_layered_forward, _layered_backward)


def _layer(x, kernel, stride, padding, groups, choose):
    channels = (x.shape[-1], kernel.shape[-1])
    return _Layer(x.shape[1:3], channels, kernel.shape[:2], stride, padding, groups, choose)


@functools.cache
def _operation(part: str, layer: _Layer):
    """``forward`` (x, kernel), ``input`` (dy, kernel) or ``weights`` (x, dy), all over lanes."""
    # Under jit, so that layers of the same shape are traced once.
    operation = custom_vmap(jax.jit(functools.partial(_over_lanes, part, layer), inline=True))

    @operation.def_vmap
    def rule(size, batched, a, b):
        if part != "weights" and not batched[1]:  # shared weights: clients are just more images
            lanes, images = a.shape[1:3]
            folded = a.swapaxes(0, 1).reshape(lanes, size * images, *a.shape[3:])
            out = operation(folded, b)
            return out.reshape(lanes, size, images, *out.shape[2:]).swapaxes(0, 1), True
        a, b = (
            v if own else jnp.broadcast_to(v, (size, *v.shape))
            for v, own in zip((a, b), batched, strict=True)
        )
        out = operation(*(v.reshape(-1, *v.shape[2:]) for v in (a, b)))
        return out.reshape(size, -1, *out.shape[1:]), True

    return operation


def _over_lanes(part: str, layer: _Layer, a, b):
    """Chooses the form; where platforms differ, each is traced and that of the lowering is kept."""
    lanes, images = a.shape[:2]
    chosen = {platform: layer.form(lanes, images, platform) for platform in PLATFORMS}
    if jax.default_backend() != "cpu":  # where nothing runs on a CPU, its form need not be traced
        chosen["cpu"] = chosen["gpu"]
    ways = {form: functools.partial(_in_form, form, part, layer) for form in chosen.values()}
    if len(ways) == 1:
        return ways[chosen["gpu"]](a, b)
    cpu, gpu, tpu = (ways[chosen[platform]] for platform in PLATFORMS)
    return lax.platform_dependent(a, b, cpu=cpu, tpu=tpu, default=gpu)


def _in_form(form: str, part: str, layer: _Layer, a, b):
    """The operation on (L, ...) operands, in a form."""
    lanes = len(a)
    one = _of_cpus(part, layer) if form == "custom" else _plain(form, part, layer)
    if lanes == 1:
        return one(a[0], b[0])[None]
    if form == "custom":
        return jax.vmap(one)(a, b)
    return _apart(one, a, b) if form == "apart" else _plain(form, part, layer, lanes)(a, b)


def _apart(one: Callable, a, b):
    """``one`` for each lane, as copies in the program."""
    lanes = len(a)
    if lanes <= MOST_COPIES:
        return jnp.stack([one(a[i], b[i]) for i in range(lanes)])
    rest = lanes % MOST_COPIES
    groups = [v[: lanes - rest].reshape(-1, MOST_COPIES, *v.shape[1:]) for v in (a, b)]
    out = lax.map(lambda ab: _apart(one, *ab), groups)
    out = out.reshape(-1, *out.shape[2:])
    return jnp.concatenate([out, _apart(one, a[-rest:], b[-rest:])]) if rest else out


def _of_cpus(part: str, layer: _Layer) -> Callable:
    """The operation of :mod:`fedfr_jax.engine.custom`, for one client."""
    forward, weights, input_for = operations(layer.window, layer.stride, layer.padding)
    if part == "input":
        shape = (*layer.size, layer.channels[0])
        return lambda dy, kernel: input_for((len(dy), *shape))(dy, kernel)
    return forward if part == "forward" else weights


def _plain(form: str, part: str, layer: _Layer, *lanes: int) -> Callable:
    """The operation for one client, or batched over ``lanes``."""
    size, (channels, features), window, stride, padding, groups, _ = layer

    def convolve(x, kernel):
        if form == "patches":
            return forms.by_patches(x, kernel, stride, padding)
        if form == "shifted":
            return forms.depthwise(x, kernel, stride, padding)
        return forms.ordinary(x, kernel, stride, padding, groups)

    # Batched before the gradient is taken: some versions of JAX cannot batch that of a convolution.
    batched = jax.vmap(convolve) if lanes else convolve

    def weight_gradient(x, dy):
        kernel = jax.ShapeDtypeStruct((*lanes, *window, channels // groups, features), x.dtype)
        return pulled(lambda k: batched(x, k), kernel, dy)

    def input_gradient(dy, kernel):
        shape = (*dy.shape[: 1 + len(lanes)], *size, channels)
        return pulled(lambda x: batched(x, kernel), jax.ShapeDtypeStruct(shape, dy.dtype), dy)

    def pulled(linear, operand, dy):
        if form != "patches":
            return jax.linear_transpose(linear, operand)(dy)[0]
        # Their product has a gradient of its own. XLA drops the forward pass.
        return jax.vjp(linear, jnp.zeros(operand.shape, operand.dtype))[1](dy)[0]

    return {"forward": batched, "weights": weight_gradient, "input": input_gradient}[part]
