"""IResNet: the residual network of ArcFace with batch norm before each convolution.

The structure is that of insightface's PyTorch ``iresnet18`` to ``iresnet100``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedfr_jax.errors import ConfigError
from fedfr_jax.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    PReLU,
    check_widths,
    compute_dtype,
    entering,
    final_map_side,
)
from fedfr_jax.models.weights import Published
from fedfr_jax.settings import ModelConfig

# Blocks per stage, by depth.
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}

_conv_init = nn.initializers.normal(0.1)
# PyTorch's default for linear layers: uniform within 1/sqrt(fan_in).
_linear_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class _Block(nn.Module):
    """norm, conv, norm, PReLU, conv with the stride, norm; added to the (projected) input."""

    width: int
    stride: int
    strategy: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = BatchNorm(name="bn1")(x, train)
        y = Conv(self.width, strategy=self.strategy, init=_conv_init, name="conv1")(y)
        y = BatchNorm(name="bn2")(y, train)
        y = PReLU(name="prelu")(y)
        y = Conv(
            self.width, stride=self.stride, strategy=self.strategy, init=_conv_init, name="conv2"
        )(y)
        y = BatchNorm(name="bn3")(y, train)
        if self.stride != 1:
            x = Conv(
                self.width,
                1,
                self.stride,
                strategy=self.strategy,
                init=_conv_init,
                name="downsample_conv",
            )(x)
            x = BatchNorm(name="downsample_norm")(x, train)
        return x + y


class IResNet(nn.Module):
    """IResNet on (N, S, S, 3) images; the result is (N, embedding), at least float32.

    Attributes:
      blocks: blocks per stage, 4 entries.
      widths: channels per stage, 4 entries; the stem has as many as the first stage.
      embedding: size of the feature.
      dtype: compute type of the convolutions.
      strategy: how ``conv2d`` computes them.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    embedding: int
    dtype: jnp.dtype
    strategy: str
    last_stage = "layer4_0"
    output_layers = ("fc", "features")

    @property
    def layers(self) -> tuple[str, ...]:
        blocks = [f"layer{i}_{k}" for i, n in enumerate(self.blocks, 1) for k in range(n)]
        return ("conv1", "bn1", "prelu", *blocks, "bn2", *self.output_layers)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, part: slice = slice(None)) -> jax.Array:
        x = entering(images, self.dtype)
        for name in self.layers[part]:
            x = self._layer(name, x, train)
        return x

    def _layer(self, name: str, x: jax.Array, train: bool) -> jax.Array:
        if name == "conv1":
            return Conv(self.widths[0], strategy=self.strategy, init=_conv_init, name=name)(x)
        if name in ("bn1", "bn2"):
            return BatchNorm(name=name)(x, train)
        if name == "prelu":
            return PReLU(name=name)(x)
        if name == "fc":
            x = x.reshape(x.shape[0], -1)
            return Dense(self.embedding, init=_linear_init, name=name)(x)
        if name == "features":
            return BatchNorm(use_scale=False, name=name)(x, train)
        stage, k = map(int, name.removeprefix("layer").split("_"))
        stride = 2 if k == 0 else 1
        return _Block(self.widths[stage - 1], stride, self.strategy, name=name)(x, train)


def build(config: ModelConfig, image_size: int, conv: str) -> tuple[nn.Module, Published]:
    """IResNet of ``config.depth`` and ``config.widths``, and its PyTorch names.

    Raises:
      ConfigError: if the depth is not a key of ``BLOCKS``, or widths are not four.
    """
    if config.depth not in BLOCKS:
        raise ConfigError(
            f"model.depth is {config.depth}; iresnet has {', '.join(map(str, BLOCKS))}"
        )
    check_widths(config.widths)
    module = IResNet(
        blocks=BLOCKS[config.depth],
        widths=tuple(config.widths),
        embedding=config.embedding,
        dtype=compute_dtype(config.dtype),
        strategy=conv,
    )
    return module, Published(
        name=torch_name, map_side=final_map_side(image_size), ones=("features.weight",)
    )


_LEAVES = {
    "kernel": "weight",
    "slope": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_MODULES = {"downsample_conv": "downsample.0", "downsample_norm": "downsample.1"}


def torch_name(path: tuple[str, ...]) -> str:
    """PyTorch state-dict name of a variable, as insightface's checkpoints have it.

    ``conv1``, ``bn1``, ``prelu``; block ``k`` (from 0) of stage ``i`` is ``layer{i}.{k}`` with
    ``bn1``, ``conv1``, ``bn2``, ``prelu``, ``conv2``, ``bn3`` and, in the first block of a
    stage, ``downsample.0`` (convolution) and ``downsample.1`` (batch norm); then ``bn2``,
    ``fc`` and ``features`` (batch norm). Batch norms have ``weight``, ``bias``,
    ``running_mean`` and ``running_var``; ``features.weight`` is fixed at 1.

    Args:
      path: collection, module names and leaf.
    """
    _, *modules, leaf = path
    modules = [_MODULES.get(module, module.replace("_", ".")) for module in modules]
    return ".".join([*modules, _LEAVES[leaf]])
