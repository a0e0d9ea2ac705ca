"""Which form a convolution takes, by its shape and the number of clients side by side.

The rule follows one measurement: 3x3 convolutions, forward and both gradients, on an H100
(docs/engine.md has the table). In short:

* ``grouped`` needs wide layers and maps of middle size: with 64 channels it took twice the time
  of patches, and in a network of 32 and 64 channels three times;
* ``apart``, one client after the other, is best where one client has enough work for the chip:
  56 x 56 at batch 16, or 28 x 28 at batch 64;
* ``patches`` is best for small maps and at stride 2, where ``grouped`` took six times as long,
  and for narrow layers.

Shapes between those measured are divided at the geometric mean. Nothing was measured on a TPU:
there, one client's layer of 64 channels or more is taken to fill the matrix unit.
"""

from __future__ import annotations

FORMS = ("grouped", "patches", "apart", "shifted", "custom")
PLATFORMS = ("cpu", "gpu", "tpu")

# Output positions of one client's mini-batch: batch x side x side.
_FEW, _MANY = 1_600, 25_000  # between 7 and 14, and between 28 and 56 pixels a side at batch 16
_NARROW, _WIDE = 64, 128  # channels, the smaller of input and output


def form_of(
    lanes: int,
    batch: int,
    side: int,
    channels: tuple[int, int],
    *,
    stride: int = 1,
    window: int = 3,
    depthwise: bool = False,
    platform: str = "gpu",
) -> str:
    """The form of a convolution in which each client has its own weights.

    Args:
      lanes: clients side by side; 1 also where all share the weights.
      batch: images of each.
      side: of the input map, in pixels.
      channels: of input and output.
      stride: in pixels.
      window: side of the kernel, in pixels.
      depthwise: one filter per channel.
      platform: one of ``PLATFORMS``; any GPU is ``gpu``.

    Returns:
      One of ``FORMS``: ``grouped`` (XLA's convolution, under vmap where there are several clients),
      ``patches`` (a batched matrix product; of 1x1 windows, without patches), ``apart`` (XLA's
      convolution, once per client), ``shifted`` (depthwise: a sum of shifted products), ``custom``
      (the convolutions for CPUs).
    """
    if platform != "cpu" and lanes == 1:
        return "grouped"
    if depthwise:
        return "shifted"
    if window == 1:
        return "patches"
    if platform == "cpu":
        return "custom"
    return _of_windows(batch * side**2, min(channels), stride, platform)


def _of_windows(positions: int, narrow: int, stride: int, platform: str) -> str:
    """The form of windows larger than a pixel, of several clients on an accelerator."""
    if narrow < _NARROW:
        return "patches"
    if platform == "tpu":
        return "apart"
    if stride > 1 or positions < _FEW:
        return "patches"
    if positions > _MANY:
        return "apart"
    return "grouped" if narrow >= _WIDE else "patches"
