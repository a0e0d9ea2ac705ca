"""Which network a set of published arrays belongs to, from their names and shapes alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

from fedfr_jax.errors import InputError
from fedfr_jax.models import iresnet, mobilefacenet_arcface, spherenet
from fedfr_jax.models.weight_file import Structure, largest_side
from fedfr_jax.settings import ModelConfig

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Detected:
    """A network that was found.

    Attributes:
      structure: name and sizes.
      image_size: side of its images, in pixels.
      prefix: what stood before the names of its arrays.
      arrays: those of the network, without the prefix.
      ignored: other arrays in the file, such as a classifier's.
    """

    structure: Structure
    image_size: int
    prefix: str
    arrays: dict[str, np.ndarray]
    ignored: tuple[str, ...]


# An array that only this network has, and that shows the prefix of all its names.
_ANCHORS = {
    "spherenet": "layer1.0.bias",
    "iresnet": "layer1.0.bn1.weight",
    "iresnet_adaface": "input_layer.0.weight",
    "mobilefacenet_arcface": "conv_sep.layers.0.weight",
    "mobilefacenet": "conv_1_conv2d_weight",
}
SUPPORTED = (*_ANCHORS, "mobilefacenet_arcface_large")


def detect(arrays: Arrays, source: str, model: str = "") -> Detected:
    """Finds architecture, depth, widths and size of the embedding.

    Args:
      arrays: name -> array, as in the file, possibly with a prefix and with other arrays.
      source: what error messages call them.
      model: the architecture, if it is known; a name of :data:`fedfr_jax.models.MODELS`.

    Raises:
      InputError: it is none that is supported; the message says why.
    """
    if model and model not in SUPPORTED:
        raise InputError(f"--model is {model!r}; use one of {', '.join(SUPPORTED)}")
    _refuse_other_networks(arrays, source)
    kind = "mobilefacenet_arcface" if model == "mobilefacenet_arcface_large" else model
    found = [
        (name, prefix)
        for name in ([kind] if kind else _ANCHORS)
        for prefix in _prefixes(arrays, _ANCHORS[name])
    ]
    if not found:
        what = f"{model}'s {_ANCHORS[kind]}" if kind else "a network that is supported"
        raise InputError(
            f"{source}: its {len(arrays)} arrays ({_some(arrays)}) do not include {what}; "
            f"supported are {', '.join(SUPPORTED)}"
        )
    if len(found) > 1:
        places = " and ".join(repr(prefix) for _, prefix in found)
        raise InputError(
            f"{source} holds several networks, under {places}; save the one that you want alone"
        )
    [(name, prefix)] = found
    own = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    own, heads = _without_heads(name, own)
    outside = [n for n in arrays if not n.startswith(prefix)]
    try:
        structure, image_size = _SIZES[name](own)
    except (KeyError, IndexError) as error:
        raise InputError(f"{source} looks like {name}, but array {error} is missing") from error
    except _Differs as error:
        raise InputError(f"{source} looks like {name}, but {error}") from error
    if model and structure.name != model:
        raise InputError(f"{source} holds {structure.name}, not {model}")
    ignored = (*outside, *(prefix + n for n in heads))
    return Detected(structure, image_size, prefix, own, ignored)


class _Differs(Exception):
    """How the arrays differ from a structure that is supported."""


def _prefixes(arrays: Arrays, anchor: str) -> list[str]:
    """What stands before an array's name, where it occurs as a whole name or after a dot."""
    return [
        n.removesuffix(anchor)
        for n in arrays
        if n.endswith(anchor) and (n == anchor or n.removesuffix(anchor).endswith("."))
    ]


def _some(arrays: Arrays) -> str:
    names = [n if len(n) < 60 else n[:57] + "..." for n in list(arrays)[:3]]
    return ", ".join(names) + (", ..." if len(arrays) > 3 else "")


def _refuse_other_networks(arrays: Arrays, source: str) -> None:
    """Networks that resemble supported ones and are not."""
    for words, pattern in (
        (
            "squeeze-and-excitation blocks (ir_se)",
            r"\b(se_block|se_module)\b|res_layer\.5\.fc1|\.se\.",
        ),
        ("bottleneck blocks (IR_152, IR_200)", r"body\.0\.res_layer\.7\."),
        (
            "blocks without batch norm after their first convolution (the 'ir' of "
            "InsightFace_Pytorch)",
            r"body\.0\.res_layer\.4\.running_mean$",
        ),
        ("attention (a vision transformer)", r"\battn\b|\bpos_embed$"),
    ):
        if any(re.search(pattern, name) for name in arrays):
            raise InputError(f"{source} has {words}, which are not supported")


# Classifiers that stand beside the network, under names of their own.
_HEADS = re.compile(r"(head|classifier|margin|loss|product|softmax_fc|partial_fc|kernel|arcface)\b")


def _without_heads(name: str, arrays: Arrays) -> tuple[dict[str, np.ndarray], list[str]]:
    heads = [n for n in arrays if _HEADS.match(n)]
    return {n: a for n, a in arrays.items() if n not in heads}, heads


def _need(arrays: Arrays, name: str, dimensions: int) -> tuple[int, ...]:
    shape = np.shape(arrays[name])
    if len(shape) != dimensions or not all(shape):
        raise _Differs(f"array {name} has shape {shape} instead of {dimensions} dimensions")
    return shape


def _size(arrays: Arrays, name: str, channels: int) -> tuple[int, int]:
    """(embedding, side of the images) from the linear layer after the last map."""
    embedding, inputs = _need(arrays, name, 2)
    side = largest_side(inputs, channels)
    if not side:
        raise _Differs(f"{name} takes {inputs} inputs, no square map of {channels} channels")
    return embedding, 16 * side


def _depth(known: Mapping[int, tuple[int, ...]], counts: tuple[int, ...], what: str) -> int:
    for depth, blocks in known.items():
        if blocks == counts:
            return depth
    raise _Differs(
        f"its stages have {counts} {what}; known are {', '.join(map(str, known.values()))}"
    )


def _count(arrays: Arrays, pattern: str) -> int:
    """One more than the largest number that stands in the place of ``#`` in names."""
    found = re.compile("^" + re.escape(pattern).replace(r"\#", r"(\d{1,4})") + r"\.")
    return 1 + max((int(m[1]) for name in arrays if (m := found.match(name))), default=-1)


def _spherenet(arrays: Arrays) -> tuple[Structure, int]:
    stages = range(1, 5)
    widths = tuple(_need(arrays, f"layer{i}.0.weight", 4)[0] for i in stages)
    units = tuple(max(_count(arrays, f"layer{i}.#") - 2, 0) for i in stages)
    embedding, size = _size(arrays, "fc.weight", widths[3])
    depth = _depth(spherenet.UNITS, units, "units")
    return Structure("spherenet", depth, widths, embedding), size


def _iresnet(arrays: Arrays) -> tuple[Structure, int]:
    stages = range(1, 5)
    if "features.running_mean" not in arrays:
        raise _Differs("it has no batch norm 'features' after the linear layer")
    widths = tuple(_need(arrays, f"layer{i}.0.conv1.weight", 4)[0] for i in stages)
    depth = _depth(
        iresnet.BLOCKS | iresnet.DEEPEST,
        tuple(_count(arrays, f"layer{i}.#") for i in stages),
        "blocks",
    )
    embedding, size = _size(arrays, "fc.weight", widths[3])
    return Structure("iresnet", depth, widths, embedding), size


def _iresnet_adaface(arrays: Arrays) -> tuple[Structure, int]:
    total = _count(arrays, "body.#")
    depths = {sum(blocks): depth for depth, blocks in iresnet.BLOCKS.items()}
    if total not in depths:
        raise _Differs(f"it has {total} blocks; known are {', '.join(map(str, depths))}")
    blocks, widths, at = iresnet.BLOCKS[depths[total]], [], 0
    for count in blocks:
        widths.append(_need(arrays, f"body.{at}.res_layer.1.weight", 4)[0])
        at += count
    embedding, size = _size(arrays, "output_layer.3.weight", widths[3])
    return Structure("iresnet_adaface", depths[total], tuple(widths), embedding), size


def _mobilefacenet_arcface(arrays: Arrays) -> tuple[Structure, int]:
    large = "layers.1.layers.0.layers.0.layers.0.weight" in arrays
    blocks, scale = mobilefacenet_arcface.LARGE if large else mobilefacenet_arcface.NORMAL
    stem = _need(arrays, "layers.0.layers.0.weight", 4)[0]
    inside = [_need(arrays, f"layers.{k}.layers.0.layers.0.weight", 4)[0] for k in (2, 4, 6)]
    if stem % scale:
        raise _Differs(f"its first convolution has {stem} channels, no multiple of {scale}")
    counts = tuple(_count(arrays, f"layers.{k}.layers.#") for k in (3, 5, 7))
    if counts != blocks[1:]:
        raise _Differs(f"its stages have {counts} residual blocks, not {blocks[1:]}")
    if not large and _need(arrays, "layers.1.layers.0.weight", 4)[1] != scale:
        raise _Differs(f"layers.1 has groups of other than {scale} channels")
    embedding = _need(arrays, "features.layers.2.weight", 2)[0]
    side = _need(arrays, "features.layers.0.layers.0.weight", 4)[2]
    name = "mobilefacenet_arcface_large" if large else "mobilefacenet_arcface"
    widths = (stem // scale, *inside)
    return Structure(name, ModelConfig().depth, widths, embedding), 16 * side


def _mobilefacenet(arrays: Arrays) -> tuple[Structure, int]:
    default = ModelConfig()
    embedding = _need(arrays, "fc1_weight", 2)[0]
    side = _need(arrays, "conv_6dw7_7_conv2d_weight", 4)[2]
    return Structure("mobilefacenet", default.depth, default.widths, embedding), 16 * side


_SIZES: dict[str, Callable[[Arrays], tuple[Structure, int]]] = {
    "spherenet": _spherenet,
    "iresnet": _iresnet,
    "iresnet_adaface": _iresnet_adaface,
    "mobilefacenet_arcface": _mobilefacenet_arcface,
    "mobilefacenet": _mobilefacenet,
}
