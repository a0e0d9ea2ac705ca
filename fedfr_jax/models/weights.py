"""Pretrained weights as plain arrays: published names and layouts to ours and back.

Published arrays have the layouts of PyTorch and MXNet: convolutions (out, in, h, w),
linear layers (out, in) with the input flattened as C, H, W. Ours are (h, w, in, out) and
(in, out) with H, W, C. Two things are folded into the values when they are loaded: the input that
the published network expects (:mod:`fedfr_jax.models.preprocessing`), and another epsilon of batch
norm than ours, which is added to the running variances.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax.errors import InputError
from fedfr_jax.models.preprocessing import Preprocessing, fold, unfold
from fedfr_jax.models.weight_file import Structure, WeightFile, read_weight_file

if TYPE_CHECKING:
    from fedfr_jax.models import Backbone
    from fedfr_jax.settings import ModelConfig

# Counters that PyTorch keeps beside batch norm; nothing depends on them.
_IGNORED_SUFFIX = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class Published:
    """How the published weights of a backbone are named and what differs in them.

    Attributes:
      name: path of a variable (collection, modules, leaf) -> name of its array.
      map_side: side of the map that is flattened before the only linear layer.
      ones: arrays that a file may hold although the structure fixes them at 1.
      input_name: array of the first convolution, into which ``preprocessing`` is folded.
      preprocessing: what the published network expects where a file does not say it.
      eps: what its batch norm adds to variances; None: different values, and no other can be used.
    """

    name: Callable[[tuple[str, ...]], str]
    map_side: int = 1
    ones: tuple[str, ...] = ()
    input_name: str = ""
    preprocessing: Preprocessing = dataclasses.field(default_factory=Preprocessing)
    eps: float | None = 1e-5


def load_weights(path: str | os.PathLike[str], backbone: Backbone) -> dict[str, Any]:
    """Reads the pretrained weights of a backbone from a ``.npz`` or ``.safetensors`` file.

    Networks take the names of their PyTorch state dicts, MobileFaceNet those of its MXNet original.
    What the published network expects as input is what the file records, or else what is usual for
    the network: ``(x - 127.5) / 128`` for MXNet's MobileFaceNet, BGR for AdaFace. It is folded into
    the first convolution, so that features of this program's images are the published ones.

    Args:
      path: the file.
      backbone: the backbone that the weights are for.

    Returns:
      ``{"params": ..., "batch_stats": ...}`` in the structure and type of ``backbone.init``.

    Raises:
      InputError: if the file cannot be read, or an array is missing, unknown, of another
        shape, not finite or not numeric; the message names file and array.
    """
    return weights_of(read_weight_file(path), backbone, os.fspath(path))


def weights_of(file: WeightFile, backbone: Backbone, source: str) -> dict[str, Any]:
    """:func:`load_weights` of a file that was read already; ``source`` is what errors call it."""
    if (found := file.structure) is not None and found.name != backbone.name:
        raise InputError(
            f"{source} holds weights of {found.name}, not of {backbone.name}; use {found.flags()}"
        )
    eps = None if found is None else found.eps
    return from_torch(file.arrays, backbone, source, preprocessing=file.preprocessing, eps=eps)


def assumptions(file: WeightFile, backbone: Backbone, source: str) -> str:
    """One line about the input that a file's weights expect, and how that is known."""
    recorded = file.preprocessing
    expected = _published(backbone).preprocessing if recorded is None else recorded
    known = "as recorded in the file"
    if recorded is None:
        expected = dataclasses.replace(expected, image_size=backbone.image_size)
        known = f"not recorded, the default of {backbone.name}"
    origin = f" (from {expected.source})" if expected.source else ""
    other = backbone.image_size
    images = "" if expected.image_size == other else f"; images here have {other} pixels"
    return f"weights {source}{origin}: {expected.formula()}; {known}{images}"


def from_torch(
    arrays: Mapping[str, np.ndarray],
    backbone: Backbone,
    source: str = "weights",
    *,
    preprocessing: Preprocessing | None = None,
    eps: float | None = None,
) -> dict[str, Any]:
    """Converts published arrays (see :func:`load_weights`) to the variables of a backbone.

    Args:
      arrays: name -> array. A leading ``module.`` on every name (a state dict saved from
        PyTorch's DataParallel) and ``num_batches_tracked`` counters are ignored.
      backbone: the backbone that they are for.
      source: what error messages call them, e.g. the file.
      preprocessing: what the published network expects; None: the usual.
      eps: what its batch norm adds to variances; None: the same as here.

    Returns:
      ``{"params": ..., "batch_stats": ...}`` of arrays in the parameters' type.

    Raises:
      InputError: as for :func:`load_weights`.
    """
    published = _published(backbone)
    expected_input = preprocessing or published.preprocessing
    more = _added_to_variances(published, eps, backbone, source)
    arrays = {k: v for k, v in arrays.items() if not k.endswith(_IGNORED_SUFFIX)}
    if arrays and all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    variables = jax.eval_shape(backbone.init, jax.random.key(0))
    expected = {published.name(_keys(path)) for path, _ in _leaves(variables)}
    _check_names(arrays, expected, published, backbone, source)

    def convert(path: Any, leaf: Any) -> jax.Array:
        name = published.name(_keys(path))
        array = _numeric(arrays[name], name, source, leaf.dtype)
        shape = _published_shape(leaf.shape, published.map_side)
        if array.shape != shape:
            raise InputError(
                f"{source}: array {name} has shape {array.shape}, {backbone.name} needs {shape}; "
                "check model.depth, model.widths, model.embedding and data.image_size"
            )
        if name == published.input_name:
            array = fold(array, expected_input, source)
        if more and _keys(path)[-1] == "var":
            array = (array + np.float64(more)).astype(array.dtype)
        return jnp.asarray(_to_ours(array, published.map_side))

    return jax.tree_util.tree_map_with_path(convert, variables)


def to_torch(
    variables: Mapping[str, Any],
    backbone: Backbone,
    *,
    preprocessing: Preprocessing | None = None,
) -> dict[str, np.ndarray]:
    """The inverse of :func:`from_torch`: name -> array in the published layout.

    Also converts anything of the same structure, such as gradients, except where the
    published input differs (there the first convolution is divided by the ratio of the scales).

    Args:
      variables: ``{"params": ..., "batch_stats": ...}`` of ``backbone``.
      backbone: the backbone that they belong to.
      preprocessing: what the written network shall expect; None: the usual.
    """
    published = _published(backbone)
    arrays = {}
    for path, leaf in _leaves(variables):
        name = published.name(_keys(path))
        array = _to_published(
            np.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32)), published.map_side
        )
        if name == published.input_name:
            array = unfold(array, preprocessing or published.preprocessing, backbone.name)
        arrays[name] = array
    for name in published.ones:
        arrays[name] = np.ones(backbone.embedding, array.dtype)
    return arrays


def structure_of(backbone: Backbone, config: ModelConfig) -> Structure:
    """What is recorded about a network of these settings."""
    eps = _published(backbone).eps
    return Structure(config.name, config.depth, tuple(config.widths), config.embedding, eps)


def _added_to_variances(
    published: Published, eps: float | None, backbone: Backbone, source: str
) -> float:
    """What makes ``1 / sqrt(var + eps)`` the published one."""
    if eps is None or eps == published.eps:
        return 0.0
    if published.eps is None:
        raise InputError(
            f"{source}: batch norm with an epsilon of {eps:g} is given, but {backbone.name} has "
            "different ones, which are fixed"
        )
    return eps - published.eps


def _published(backbone: Backbone) -> Published:
    if backbone.published is None:
        raise InputError(
            f"{backbone.name} names no published weights; leave model.weights empty "
            "or give a checkpoint folder"
        )
    return backbone.published


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(entry.key for entry in path)


def _check_names(
    arrays: Mapping[str, np.ndarray],
    expected: set[str],
    published: Published,
    backbone: Backbone,
    source: str,
) -> None:
    """Raises InputError for arrays that are missing, unknown, or not 1 where they must be."""
    missing = sorted(expected - set(arrays))
    if missing:
        raise InputError(
            f"{source}: {_list(missing)} missing for {backbone.name}; check "
            "model.name and model.depth"
        )
    unknown = sorted(set(arrays) - expected - set(published.ones))
    if unknown:
        raise InputError(
            f"{source}: {_list(unknown)} not part of {backbone.name}; check "
            "model.name and model.depth"
        )
    for name in published.ones:
        if name in arrays and not np.allclose(
            _numeric(arrays[name], name, source, np.dtype(np.float32)), 1.0
        ):
            raise InputError(
                f"{source}: array {name} must be all ones, since {backbone.name} has no scale there"
            )


def _list(names: list[str], most: int = 3) -> str:
    """'array a', 'arrays a, b', 'arrays a, b, c and 9 more', with 'is' or 'are'."""
    if len(names) == 1:
        return f"array {names[0]} is"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"arrays {', '.join(names[:most])}{more} are"


def _numeric(array: np.ndarray, name: str, source: str, dtype: np.dtype) -> np.ndarray:
    """The array in a floating type; InputError if it has no finite value there."""
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise InputError(
            f"{source}: array {name} has type {array.dtype}; numbers are needed "
            "(convert bfloat16 to float32 before saving)"
        )
    array = array.astype(dtype)
    if not np.isfinite(array).all():
        raise InputError(f"{source}: array {name} holds infinite or undefined values")
    return array


def _published_shape(shape: tuple[int, ...], side: int) -> tuple[int, ...]:
    return _to_published(np.broadcast_to(np.float32(0), shape), side).shape


def _to_published(array: np.ndarray, side: int) -> np.ndarray:
    """(h, w, in, out) -> (out, in, h, w); (H·W·C, out) -> (out, C·H·W); vectors as they are."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if array.ndim == 2:
        out = array.shape[1]
        return array.reshape(side, side, -1, out).transpose(3, 2, 0, 1).reshape(out, -1)
    return array


def _to_ours(array: np.ndarray, side: int) -> np.ndarray:
    """The inverse of :func:`_to_published`."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if array.ndim == 2:
        out = array.shape[0]
        return array.reshape(out, -1, side, side).transpose(2, 3, 1, 0).reshape(-1, out)
    return array
