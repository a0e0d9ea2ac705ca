"""MobileFaceNet (Chen et al., 2018): inverted residual bottlenecks of depthwise
convolutions, a global depthwise convolution and a linear layer.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedfr_jax.errors import ConfigError
from fedfr_jax.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    PReLU,
    compute_dtype,
    entering,
    he_normal,
)
from fedfr_jax.models.preprocessing import Preprocessing
from fedfr_jax.models.weights import Published
from fedfr_jax.settings import ModelConfig

# (name, expanded channels, output channels, stride, residual blocks or None)
BLOCKS = (
    ("dconv_23", 128, 64, 2, None),
    ("res_3", 128, 64, 1, 4),
    ("dconv_34", 256, 128, 2, None),
    ("res_4", 256, 128, 1, 6),
    ("dconv_45", 512, 128, 2, None),
    ("res_5", 256, 128, 1, 2),
)
STEM = 64
HEAD = 512
_EPS = 1e-3
_LAST_EPS = 2e-5


class ConvNorm(nn.Module):
    """Convolution, batch norm and, unless ``linear``, PReLU."""

    width: int
    size: int = 1
    stride: int = 1
    depthwise: bool = False
    linear: bool = False
    padding: int | None = None
    strategy: str = "auto"
    eps: float = _EPS

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Conv(
            self.width,
            self.size,
            self.stride,
            self.padding,
            self.depthwise,
            strategy=self.strategy,
            init=he_normal,
            name="conv",
        )(x)
        x = BatchNorm(eps=self.eps, name="norm")(x, train)
        return x if self.linear else PReLU(name="prelu")(x)


class Bottleneck(nn.Module):
    """1×1 expansion, depthwise 3×3, linear 1×1 projection."""

    expanded: int
    width: int
    stride: int
    strategy: str
    eps: float = _EPS

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layer = functools.partial(ConvNorm, strategy=self.strategy, eps=self.eps)
        x = layer(self.expanded, name="conv_sep")(x, train)
        x = layer(self.expanded, 3, self.stride, depthwise=True, name="conv_dw")(x, train)
        return layer(self.width, linear=True, name="conv_proj")(x, train)


class MobileFaceNet(nn.Module):
    """MobileFaceNet on (N, S, S, 3) images; the result is (N, embedding), at least float32.

    The global depthwise convolution covers the whole last feature map, which is 7×7 for
    the published image size of 112.

    Attributes:
      embedding: size of the feature (published: 128).
      dtype: compute type of the convolutions.
      strategy: how ``conv2d`` computes them.
    """

    embedding: int
    dtype: jnp.dtype
    strategy: str
    last_stage = "dconv_45"
    output_layers = ("fc", "fc_norm")

    @property
    def layers(self) -> tuple[str, ...]:
        blocks = []
        for name, *_, count in BLOCKS:
            blocks += [name] if count is None else [f"{name}_block{k}" for k in range(count)]
        return ("conv_1", "conv_2_dw", *blocks, "conv_6sep", "conv_6dw", *self.output_layers)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, part: slice = slice(None)) -> jax.Array:
        x = entering(images, self.dtype)
        for name in self.layers[part]:
            x = self._layer(name, x, train)
        return x

    def _layer(self, name: str, x: jax.Array, train: bool) -> jax.Array:
        if name in self.output_layers:
            return self._output(name, x, train)
        convolution = functools.partial(ConvNorm, strategy=self.strategy, name=name)
        match name:
            case "conv_1":
                return convolution(STEM, 3, 2)(x, train)
            case "conv_2_dw":
                return convolution(STEM, 3, depthwise=True)(x, train)
            case "conv_6sep":
                return convolution(HEAD)(x, train)
            case "conv_6dw":
                return convolution(HEAD, x.shape[1], depthwise=True, linear=True, padding=0)(
                    x, train
                )
        sizes: dict[str, Any] = {stage: of for stage, *of in BLOCKS}
        expanded, width, stride, count = sizes[name.rpartition("_block")[0] or name]
        y = Bottleneck(expanded, width, stride, self.strategy, name=name)(x, train)
        return y if count is None else x + y

    def _output(self, name: str, x: jax.Array, train: bool) -> jax.Array:
        if name == "fc":
            x = x.reshape(x.shape[0], -1)
            return Dense(self.embedding, init=he_normal, name=name)(x)
        return BatchNorm(eps=_LAST_EPS, use_scale=False, name=name)(x, train)


def build(config: ModelConfig, image_size: int, conv: str) -> tuple[nn.Module, Published]:
    """MobileFaceNet and the names of its published MXNet weights.

    The structure is fixed except for the size of the feature.

    Raises:
      ConfigError: if depth or widths were changed from their defaults.
    """
    del image_size
    default = ModelConfig()
    for setting in ("depth", "widths"):
        if getattr(config, setting) != getattr(default, setting):
            raise ConfigError(
                f"model.{setting} is {getattr(config, setting)}, but mobilefacenet "
                "has one structure; leave the setting at its default"
            )
    module = MobileFaceNet(
        embedding=config.embedding, dtype=compute_dtype(config.dtype), strategy=conv
    )
    return module, Published(
        name=mxnet_name,
        ones=("fc1_gamma",),
        input_name="conv_1_conv2d_weight",
        preprocessing=Preprocessing(scale=1 / 128, source="MobileFaceNet of MXNet"),
        eps=None,
    )


_LEAVES = {
    ("conv", "kernel"): "conv2d_weight",
    ("norm", "scale"): "batchnorm_gamma",
    ("norm", "bias"): "batchnorm_beta",
    ("norm", "mean"): "batchnorm_moving_mean",
    ("norm", "var"): "batchnorm_moving_var",
    ("prelu", "slope"): "relu_gamma",
    ("fc", "kernel"): "fc1_weight",
    ("fc", "bias"): "pre_fc1_bias",
    ("fc_norm", "bias"): "fc1_beta",
    ("fc_norm", "mean"): "fc1_moving_mean",
    ("fc_norm", "var"): "fc1_moving_var",
}


def mxnet_name(path: tuple[str, ...]) -> str:
    """Name of a variable in the MXNet original, e.g. ``res_3_block0_conv_dw_relu_gamma``.

    Args:
      path: collection, module names and leaf.
    """
    _, *modules, layer, leaf = path
    modules = ["conv_6dw7_7" if module == "conv_6dw" else module for module in modules]
    return "_".join([*modules, _LEAVES[layer, leaf]])
