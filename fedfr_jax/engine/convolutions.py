"""Convolutions that stay fast when every client has its own weights.

Under ``jax.vmap`` over clients an ordinary convolution becomes a grouped one,
and XLA:CPU also runs convolution *gradients* inside a loop on a slow generic
path. Each strategy here computes the same convolution and the same gradients:

* ``grouped``: ``lax.conv_general_dilated`` and its own gradients. Best when
  weights are shared, or one client at a time runs on a GPU/TPU.
* ``patches``: patches and a matrix product, forward and backward. Under vmap
  it is a batched matrix product, which is fast on GPUs and TPUs.
* ``layered``: each layer chooses between these two and clients one after the other, by its shape
  and the number of clients side by side (:mod:`fedfr_jax.engine.layered`).
* ``custom``: fast on XLA:CPU, also inside loops (:mod:`fedfr_jax.engine.custom`). Under vmap the
  clients take turns.
"""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from fedfr_jax.engine.custom import custom
from fedfr_jax.engine.forms import by_patches, depthwise, ordinary
from fedfr_jax.engine.layered import layered

STRATEGIES = ("grouped", "patches", "custom", "layered")


def default_strategy(lanes: int = 1) -> str:
    """The strategy for this backend when none is set.

    Args:
      lanes: clients side by side under vmap; 1 where weights are shared.
    """
    if jax.default_backend() == "cpu":
        return "custom"
    return "layered" if lanes > 1 else "grouped"


def conv2d(
    x: Float[Array, "N H W C"],
    kernel: Float[Array, "kh kw _ D"],
    *,
    stride: int = 1,
    padding: int = 1,
    groups: int = 1,
    strategy: str = "auto",
) -> Float[Array, "N h w D"]:
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
        return ordinary(x, kernel, stride, padding, groups)
    if strategy == "layered":
        return layered(x, kernel, stride, padding, groups)
    if groups > 1:
        return depthwise(x, kernel, stride, padding)
    if strategy == "patches" or (kernel.shape[:2] == (1, 1) and padding == 0):
        return by_patches(x, kernel, stride, padding)
    return custom(x, kernel, stride, padding)
