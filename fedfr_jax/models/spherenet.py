"""SphereNet: a residual network without batch norm (SphereFace, CVPR 2017; the backbone
of FedFR, AAAI 2022).

Four stages; each is a 3×3 stride-2 convolution with bias and PReLU, followed by residual
units of two bias-free 3×3 convolutions, each with PReLU. The last feature map is flattened
and goes through one linear layer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedfr_jax.errors import ConfigError
from fedfr_jax.models.layers import (
    Conv,
    Dense,
    PReLU,
    check_widths,
    compute_dtype,
    entering,
    final_map_side,
    xavier_uniform,
)
from fedfr_jax.models.preprocessing import Preprocessing
from fedfr_jax.models.weights import Published
from fedfr_jax.settings import ModelConfig

# Residual units per stage, by depth: SphereFace's table of networks, in which depth
# counts convolutions. The 64-layer network is FedFR's, with 7 units in its second stage
# where that table has 8: these are the 49.7 million parameters of pretrained models.
UNITS = {4: (0, 0, 0, 0), 10: (0, 1, 2, 0), 20: (1, 2, 4, 1), 36: (2, 4, 8, 2), 64: (3, 7, 16, 3)}

# Small weights make a unit start near the identity, so deep networks train without
# batch norm (SphereFace's choice, as is Xavier for the layers that change the width).
_unit_init = nn.initializers.normal(0.01)


class _Unit(nn.Module):
    """x + PReLU(conv(PReLU(conv(x)))), at constant width."""

    width: int
    strategy: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for k in (1, 2):
            y = Conv(self.width, strategy=self.strategy, init=_unit_init, name=f"conv{k}")(y)
            y = PReLU(name=f"prelu{k}")(y)
        return x + y


class _Stage(nn.Module):
    """Halves the feature map, then applies ``units`` residual units."""

    width: int
    units: int
    strategy: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Conv(
            self.width,
            stride=2,
            use_bias=True,
            strategy=self.strategy,
            init=xavier_uniform,
            name="conv",
        )(x)
        x = PReLU(name="prelu")(x)
        for k in range(1, self.units + 1):
            x = _Unit(self.width, self.strategy, name=f"unit{k}")(x)
        return x


class SphereNet(nn.Module):
    """SphereNet on (N, S, S, 3) images; the result is (N, embedding), at least float32.

    Attributes:
      units: residual units per stage, 4 entries.
      widths: channels per stage, 4 entries.
      embedding: size of the feature.
      dtype: compute type of the convolutions.
      strategy: how ``conv2d`` computes them.
    """

    units: tuple[int, ...]
    widths: tuple[int, ...]
    embedding: int
    dtype: jnp.dtype
    strategy: str
    layers = ("stage1", "stage2", "stage3", "stage4", "fc")
    last_stage = "stage4"
    output_layers = ("fc",)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, part: slice = slice(None)) -> jax.Array:
        del train  # nothing here behaves differently in training
        x = entering(images, self.dtype)
        for name in self.layers[part]:
            if name == "fc":
                x = Dense(self.embedding, name=name)(x.reshape(x.shape[0], -1))
                continue
            k = int(name.removeprefix("stage")) - 1
            x = _Stage(self.widths[k], self.units[k], self.strategy, name=name)(x)
        return x


def build(config: ModelConfig, image_size: int, conv: str) -> tuple[nn.Module, Published]:
    """SphereNet of ``config.depth`` and ``config.widths``, and its PyTorch names.

    Raises:
      ConfigError: if the depth is not a key of ``UNITS``, or widths are not four.
    """
    if config.depth not in UNITS:
        raise ConfigError(
            f"model.depth is {config.depth}; spherenet has {', '.join(map(str, UNITS))}"
        )
    check_widths(config.widths)
    module = SphereNet(
        units=UNITS[config.depth],
        widths=tuple(config.widths),
        embedding=config.embedding,
        dtype=compute_dtype(config.dtype),
        strategy=conv,
    )
    return module, Published(
        name=torch_name,
        map_side=final_map_side(image_size),
        input_name="layer1.0.weight",
        preprocessing=Preprocessing(source="SphereNet of FedFR"),
    )


def torch_name(path: tuple[str, ...]) -> str:
    """PyTorch state-dict name of a variable, as FedFR's checkpoints have it.

    In stage ``i``, entry 0 is the stride-2 convolution (``layer{i}.0.weight`` and
    ``.bias``), entry 1 its PReLU and entry ``1 + k`` the ``k``-th residual unit
    (``layer{i}.{1+k}.conv1.weight``, ``.prelu1.weight``, ...); then ``fc.weight``, ``fc.bias``.

    Args:
      path: collection, module names and leaf, e.g. ("params", "stage1", "conv", "kernel").
    """
    _, *modules, leaf = path
    kind = "bias" if leaf == "bias" else "weight"
    if modules == ["fc"]:
        return f"fc.{kind}"
    stage, entry, *inner = modules
    entry = {"conv": "0", "prelu": "1"}.get(entry) or str(1 + int(entry.removeprefix("unit")))
    return ".".join([stage.replace("stage", "layer"), entry, *inner, kind])
