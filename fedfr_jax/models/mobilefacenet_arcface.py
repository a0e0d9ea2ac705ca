"""MobileFaceNet as insightface's arcface_torch has it (``mbf`` and ``mbf_large``).

It differs from :mod:`fedfr_jax.models.mobilefacenet` in its widths, in the second convolution,
which has groups of two channels (or, in the large one, is two bottlenecks), in its batch norm,
which adds 1e-5 everywhere and learns a scale after the last layer, too, and in a linear layer
without bias.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedfr_jax.engine.convolutions import conv2d
from fedfr_jax.errors import ConfigError
from fedfr_jax.models.layers import (
    BatchNorm,
    Dense,
    PReLU,
    check_widths,
    compute_dtype,
    entering,
    he_normal,
)
from fedfr_jax.models.mobilefacenet import Bottleneck, ConvNorm
from fedfr_jax.models.preprocessing import Preprocessing
from fedfr_jax.models.weights import Published
from fedfr_jax.settings import ModelConfig

# (residual blocks of the four stages, how many times the widths the maps have); a first stage of
# one block is a single convolution.
NORMAL, LARGE = ((1, 4, 6, 2), 2), ((2, 8, 12, 4), 4)
_EPS = 1e-5


class _GroupedNorm(nn.Module):
    """3×3 convolution in ``groups`` groups of channels, batch norm, PReLU."""

    groups: int
    strategy: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        size = width // self.groups
        kernel = self.param("kernel", he_normal, (3, 3, size, width)).astype(x.dtype)
        # One depthwise convolution per channel of a group: every output sees the first channel of
        # its group, then the second. The engine has none of groups, which would be slow under vmap.
        members = x.reshape(*x.shape[:-1], self.groups, size)
        parts = [
            conv2d(
                jnp.repeat(members[..., k], size, axis=-1),
                kernel[:, :, k : k + 1],
                groups=width,
                strategy=self.strategy,
            )
            for k in range(size)
        ]
        y = functools.reduce(jnp.add, parts)
        y = BatchNorm(eps=_EPS, name="norm")(y, train)
        return PReLU(name="prelu")(y)


class MobileFaceNet(nn.Module):
    """MobileFaceNet on (N, S, S, 3) images; the result is (N, embedding), at least float32.

    Attributes:
      blocks: residual blocks of the four stages.
      scale: how many times the widths the maps have.
      widths: (a, b, c, d). The stages' maps have ``scale`` times a, a, b, b channels, their
        bottlenecks b, b, c, c inside (d where the last stage begins), the last map d.
      embedding: size of the feature.
      dtype: compute type of the convolutions.
      strategy: how ``conv2d`` computes them.
    """

    blocks: tuple[int, ...]
    scale: int
    widths: tuple[int, ...]
    embedding: int
    dtype: jnp.dtype
    strategy: str
    last_stage = "stage4"
    output_layers = ("fc", "fc_norm")

    @property
    def layers(self) -> tuple[str, ...]:
        names = ["stem"]
        for stage, count in enumerate(self.blocks, 1):
            names += [f"stage{stage}"] if stage > 1 else []
            if count > 1:
                names += [f"stage{stage}_block{k}" for k in range(count)]
            else:
                names.append("stem_groups")
        return (*names, "conv_sep", "conv_dw", *self.output_layers)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, part: slice = slice(None)) -> jax.Array:
        x = entering(images, self.dtype)
        for name in self.layers[part]:
            x = self._layer(name, x, train)
        return x

    def _layer(self, name: str, x: jax.Array, train: bool) -> jax.Array:
        if name.startswith("stage"):
            return self._bottleneck(name, x, train)
        if name in self.output_layers:
            return self._output(name, x, train)
        a, *_, d = self.widths
        match name:
            case "stem":
                layer = self._norm(a * self.scale, 3, 2, name=name)
            case "stem_groups":
                return _GroupedNorm(a, self.strategy, name=name)(x, train)
            case "conv_sep":
                layer = self._norm(d, name=name)
            case "conv_dw":
                size = x.shape[1]
                layer = self._norm(d, size, depthwise=True, linear=True, padding=0, name=name)
        return layer(x, train)

    def _output(self, name: str, x: jax.Array, train: bool) -> jax.Array:
        if name == "fc":
            x = x.reshape(x.shape[0], -1)
            return Dense(self.embedding, init=he_normal, use_bias=False, name=name)(x)
        return BatchNorm(eps=_EPS, name=name)(x, train)

    def _bottleneck(self, name: str, x: jax.Array, train: bool) -> jax.Array:
        a, b, c, d = self.widths
        stage, _, block = name.removeprefix("stage").partition("_block")
        width = self.scale * (a, a, b, b)[int(stage) - 1]
        inside = (b, b, c, c if block else d)[int(stage) - 1]
        bottleneck = Bottleneck(inside, width, 1 if block else 2, self.strategy, _EPS, name=name)
        return x + bottleneck(x, train) if block else bottleneck(x, train)

    def _norm(self, width: int, size: int = 1, stride: int = 1, **changes) -> ConvNorm:
        return ConvNorm(width, size, stride, strategy=self.strategy, eps=_EPS, **changes)


def build(config: ModelConfig, image_size: int, conv: str) -> tuple[nn.Module, Published]:
    """arcface_torch's ``mbf``; the default of ``model.widths`` is the published structure.

    Raises:
      ConfigError: the depth was changed, or widths are not four.
    """
    return _build(config, conv, *NORMAL)


def build_large(config: ModelConfig, image_size: int, conv: str) -> tuple[nn.Module, Published]:
    """arcface_torch's ``mbf_large``; as :func:`build`."""
    return _build(config, conv, *LARGE)


def _build(
    config: ModelConfig, conv: str, blocks: tuple[int, ...], scale: int
) -> tuple[nn.Module, Published]:
    if config.depth != ModelConfig().depth:
        raise ConfigError(
            f"model.depth is {config.depth}, but {config.name} has one depth; leave the setting "
            "at its default"
        )
    check_widths(config.widths)
    module = MobileFaceNet(
        blocks=blocks,
        scale=scale,
        widths=tuple(config.widths),
        embedding=config.embedding,
        dtype=compute_dtype(config.dtype),
        strategy=conv,
    )
    return module, Published(
        name=torch_name,
        input_name="layers.0.layers.0.weight",
        preprocessing=Preprocessing(source="MobileFaceNet of arcface_torch"),
    )


_LEAVES: dict[str, Callable[[int], str]] = {
    "kernel": lambda at: f"{at}.weight",
    "scale": lambda at: f"{at + 1}.weight",
    "bias": lambda at: f"{at + 1}.bias",
    "mean": lambda at: f"{at + 1}.running_mean",
    "var": lambda at: f"{at + 1}.running_var",
    "slope": lambda at: f"{at + 2}.weight",
}
_INNER = {"conv_sep": "0", "conv_dw": "1", "conv_proj": "2"}


def torch_name(path: tuple[str, ...]) -> str:
    """PyTorch state-dict name of a variable, as arcface_torch's checkpoints have it.

    ``layers.0`` and ``layers.1`` are the first two convolutions (or ``layers.1.layers.k`` the
    bottlenecks of a first stage); ``layers.2``, ``4`` and ``6`` begin the further stages, of which
    ``layers.3``, ``5`` and ``7`` are the residual blocks. A bottleneck is ``layers.0`` to ``2``,
    each with ``layers.0`` (convolution), ``1`` (batch norm) and ``2`` (PReLU). ``features.layers``
    has the last convolution and its batch norm (0), the linear layer (2) and its batch norm (3).

    Args:
      path: collection, module names and leaf.
    """
    _, module, *inner, leaf = path
    if module == "fc":
        return "features.layers.2.weight"
    if module == "fc_norm":
        return f"features.layers.{_LEAVES[leaf](2)}"
    if module.startswith("stage"):
        stage, _, block = module.removeprefix("stage").partition("_block")
        at = 2 * int(stage) - 1 if block else 2 * int(stage) - 2
        where = f"layers.{at}.layers.{block}" if block else f"layers.{at}"
        return f"{where}.layers.{_INNER[inner[0]]}.layers.{_LEAVES[leaf](0)}"
    where = {
        "stem": "layers.0",
        "stem_groups": "layers.1",
        "conv_sep": "conv_sep",
        "conv_dw": "features.layers.0",
    }[module]
    return f"{where}.layers.{_LEAVES[leaf](0)}"
