"""The DFC transform: from the shared feature space to a client's own.

A transform is ``(init, apply)``. To add one, write the two functions, a line in
``TRANSFORMS``, and its name in ``TRANSFORM_NAMES`` of config/checks.py. Every transform
starts as the identity map.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import nn

_BRANCHES = 4


class Transform(NamedTuple):
    """``init(key, d, dtype) -> params`` and ``apply(params, features (B, d)) -> (B, d)``."""

    init: Any
    apply: Any


def _linear_init(key, d, dtype=jnp.float32):
    del key
    return {"weight": jnp.eye(d, dtype=dtype), "bias": jnp.zeros(d, dtype)}


def _linear_apply(params, features):
    return features @ params["weight"].T + params["bias"]


def _bottleneck_init(key, d, dtype=jnp.float32):
    width = d // _BRANCHES
    first, second = jax.random.split(key)
    he = nn.initializers.he_normal(in_axis=1, out_axis=2, batch_axis=0)
    return {
        "down": he(first, (_BRANCHES, d, width), dtype),
        "down_bias": jnp.zeros((_BRANCHES, width), dtype),
        "mid": he(second, (_BRANCHES, width, width), dtype),
        "mid_bias": jnp.zeros((_BRANCHES, width), dtype),
        # Zero: at first only the residual path has an effect.
        "up": jnp.zeros((_BRANCHES * width, d), dtype),
        "up_bias": jnp.zeros(d, dtype),
    }


def _bottleneck_apply(params, features):
    h = jnp.einsum("bd,kdw->bkw", features, params["down"]) + params["down_bias"]
    h = jnp.einsum("bkw,kwv->bkv", nn.leaky_relu(h), params["mid"]) + params["mid_bias"]
    h = nn.leaky_relu(h).reshape(features.shape[0], -1)
    return features + h @ params["up"] + params["up_bias"]


# FedFR, section 3.3: a linear layer; the ablation's deeper transform is four parallel
# two-layer branches of width d/4, concatenated, a linear layer, and a residual path. "none"
# leaves the binary classifiers on the backbone's features.
TRANSFORMS = {
    "none": Transform(lambda key, d, dtype=jnp.float32: {}, lambda params, features: features),
    "linear": Transform(_linear_init, _linear_apply),
    "bottleneck": Transform(_bottleneck_init, _bottleneck_apply),
}
