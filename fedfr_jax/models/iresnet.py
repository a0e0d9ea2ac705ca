"""IResNet: the residual network of ArcFace with batch norm before each convolution.

``iresnet`` has the structure of insightface's PyTorch ``iresnet18`` to ``iresnet200``
(arcface_torch). ``iresnet_adaface`` has that of AdaFace's and CVLFace's ``IR_18`` to ``IR_101``,
which differs in two places: a shortcut that keeps the number of channels has no convolution and
skips pixels instead (with the published widths, in the first block of all), and the last batch norm
learns nothing. Both add 1e-5 to variances. AdaFace trains with dropout of 0.4 before the linear
layer; there is none here, nor in arcface_torch's default.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

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
from fedfr_jax.models.preprocessing import Preprocessing
from fedfr_jax.models.weights import Published
from fedfr_jax.settings import ModelConfig

# Blocks per stage, by depth.
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
DEEPEST = {200: (6, 26, 60, 6)}  # of arcface_torch; AdaFace's of more than 100 have other blocks

_conv_init = nn.initializers.normal(0.1)
# PyTorch's default for linear layers: uniform within 1/sqrt(fan_in).
_linear_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class _Block(nn.Module):
    """norm, conv, norm, PReLU, conv with the stride, norm; added to the shortcut.

    Attributes:
      projects: the shortcut has a 1×1 convolution and batch norm; else it is the input, of which
        it skips pixels at stride 2.
    """

    width: int
    stride: int
    strategy: str
    projects: bool

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
        if self.projects:
            x = Conv(
                self.width,
                1,
                self.stride,
                strategy=self.strategy,
                init=_conv_init,
                name="downsample_conv",
            )(x)
            x = BatchNorm(name="downsample_norm")(x, train)
        elif self.stride != 1:
            x = x[:, :: self.stride, :: self.stride]
        return x + y


class IResNet(nn.Module):
    """IResNet on (N, S, S, 3) images; the result is (N, embedding), at least float32.

    Attributes:
      blocks: blocks per stage, 4 entries.
      widths: channels per stage, 4 entries; the stem has as many as the first stage.
      embedding: size of the feature.
      dtype: compute type of the convolutions.
      strategy: how ``conv2d`` computes them.
      adaface: shortcuts and last batch norm as in AdaFace.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    embedding: int
    dtype: jnp.dtype
    strategy: str
    adaface: bool = False
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
            return BatchNorm(use_scale=False, use_bias=not self.adaface, name=name)(x, train)
        stage, k = map(int, name.removeprefix("layer").split("_"))
        width, stride = self.widths[stage - 1], 2 if k == 0 else 1
        projects = x.shape[-1] != width if self.adaface else stride != 1
        return _Block(width, stride, self.strategy, projects, name=name)(x, train)


def build(config: ModelConfig, image_size: int, conv: str) -> tuple[nn.Module, Published]:
    """IResNet of ``config.depth`` and ``config.widths``, and its PyTorch names.

    Raises:
      ConfigError: if the depth is not known, or widths are not four.
    """
    module = _module(config, conv, BLOCKS | DEEPEST, adaface=False)
    return module, Published(
        name=torch_name,
        map_side=final_map_side(image_size),
        ones=("features.weight",),
        input_name="conv1.weight",
        preprocessing=Preprocessing(source="iresnet of arcface_torch"),
    )


def build_adaface(config: ModelConfig, image_size: int, conv: str) -> tuple[nn.Module, Published]:
    """IResNet as AdaFace has it, and its PyTorch names. AdaFace's images are BGR.

    Raises:
      ConfigError: if the depth is not a key of ``BLOCKS``, or widths are not four.
    """
    module = _module(config, conv, BLOCKS, adaface=True)
    return module, Published(
        name=functools.partial(adaface_name, module.blocks),
        map_side=final_map_side(image_size),
        input_name="input_layer.0.weight",
        preprocessing=Preprocessing(channels="BGR", source="iresnet of AdaFace"),
    )


def _module(
    config: ModelConfig, conv: str, known: Mapping[int, tuple[int, ...]], adaface: bool
) -> IResNet:
    if config.depth not in known:
        raise ConfigError(
            f"model.depth is {config.depth}; {config.name} has {', '.join(map(str, known))}"
        )
    check_widths(config.widths)
    return IResNet(
        blocks=known[config.depth],
        widths=tuple(config.widths),
        embedding=config.embedding,
        dtype=compute_dtype(config.dtype),
        strategy=conv,
        adaface=adaface,
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


_ADAFACE_MODULES = {
    "conv1": "input_layer.0",
    "bn1": "input_layer.1",
    "prelu": "input_layer.2",
    "bn2": "output_layer.0",
    "fc": "output_layer.3",
    "features": "output_layer.4",
}
_ADAFACE_BLOCK = {
    "bn1": "res_layer.0",
    "conv1": "res_layer.1",
    "bn2": "res_layer.2",
    "prelu": "res_layer.3",
    "conv2": "res_layer.4",
    "bn3": "res_layer.5",
    "downsample_conv": "shortcut_layer.0",
    "downsample_norm": "shortcut_layer.1",
}


def adaface_name(blocks: tuple[int, ...], path: tuple[str, ...]) -> str:
    """PyTorch state-dict name of a variable, as AdaFace's and CVLFace's checkpoints have it.

    ``input_layer`` is convolution, batch norm, PReLU; ``body.n`` is block ``n``, counted through
    all stages, with ``res_layer`` (norm, conv, norm, PReLU, conv, norm) and, where the width
    changes, ``shortcut_layer`` (conv, norm); ``output_layer`` has batch norm (0), dropout,
    flattening, a linear layer (3) and batch norm (4).

    Args:
      blocks: per stage.
      path: collection, module names and leaf.
    """
    _, module, *inner, leaf = path
    if module.startswith("layer"):
        stage, k = map(int, module.removeprefix("layer").split("_"))
        number = sum(blocks[: stage - 1]) + k
        return f"body.{number}.{_ADAFACE_BLOCK[inner[0]]}.{_LEAVES[leaf]}"
    return f"{_ADAFACE_MODULES[module]}.{_LEAVES[leaf]}"
