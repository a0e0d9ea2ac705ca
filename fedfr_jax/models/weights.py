"""Pretrained weights as plain arrays: published names and layouts to ours and back.

Published arrays have the layouts of PyTorch and MXNet: convolutions (out, in, h, w),
linear layers (out, in) with the input flattened as C, H, W. Ours are (h, w, in, out) and
(in, out) with H, W, C. Arrays come as ``.npz``, which needs no pickle; a PyTorch state
dict becomes one with ``numpy.savez(path, **{k: v.numpy() for k, v in state.items()})``.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax.data.arrays import load_arrays
from fedfr_jax.errors import InputError

if TYPE_CHECKING:
    from fedfr_jax.models import Backbone

# Counters that PyTorch keeps beside batch norm; nothing depends on them.
_IGNORED_SUFFIX = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class Published:
    """How the published weights of a backbone are named and what differs in them.

    Attributes:
      name: path of a variable (collection, modules, leaf) -> name of its array.
      map_side: side of the map that is flattened before the only linear layer.
      ones: arrays that a file may hold although the structure fixes them at 1.
      input_name: array of the first convolution, multiplied by ``input_scale``.
      input_scale: published input scale over ours, 1 / 127.5 per grey level.
    """

    name: Callable[[tuple[str, ...]], str]
    map_side: int = 1
    ones: tuple[str, ...] = ()
    input_name: str = ""
    input_scale: float = 1.0


def load_weights(path: str | os.PathLike[str], backbone: Backbone) -> dict[str, Any]:
    """Reads the pretrained weights of a backbone from a ``.npz`` file.

    SphereNet and IResNet take the names of their PyTorch state dicts, MobileFaceNet those
    of its MXNet original. MobileFaceNet's published input is ``(x - 127.5) / 128`` while all
    images here are ``(x / 255 - 0.5) / 0.5 = (x - 127.5) / 127.5``; the ratio 127.5 / 128 is
    multiplied into its first convolution, so that features are the published ones.

    Args:
      path: the ``.npz`` file.
      backbone: the backbone that the weights are for.

    Returns:
      ``{"params": ..., "batch_stats": ...}`` in the structure and type of ``backbone.init``.

    Raises:
      InputError: if the file cannot be read, or an array is missing, unknown, of another
        shape, not finite or not numeric; the message names file and array.
    """
    try:
        arrays = load_arrays(path)
    except InputError as error:
        raise InputError(
            f"{error}; model.weights takes plain arrays as numpy.savez writes them, "
            "and loads no pickles"
        ) from error
    return from_torch(arrays, backbone, source=os.fspath(path))


def from_torch(
    arrays: Mapping[str, np.ndarray], backbone: Backbone, source: str = "weights"
) -> dict[str, Any]:
    """Converts published arrays (see :func:`load_weights`) to the variables of a backbone.

    Args:
      arrays: name -> array. A leading ``module.`` on every name (a state dict saved from
        PyTorch's DataParallel) and ``num_batches_tracked`` counters are ignored.
      backbone: the backbone that they are for.
      source: what error messages call them, e.g. the file.

    Returns:
      ``{"params": ..., "batch_stats": ...}`` of arrays in the parameters' type.

    Raises:
      InputError: as for :func:`load_weights`.
    """
    published = _published(backbone)
    arrays = {k: v for k, v in arrays.items() if not k.endswith(_IGNORED_SUFFIX)}
    if arrays and all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    variables = jax.eval_shape(backbone.init, jax.random.key(0))
    expected = {published.name(_keys(path)) for path, _ in _leaves(variables)}
    _check_names(arrays, expected, published, backbone, source)

    def convert(path: Any, leaf: Any) -> jax.Array:
        name = published.name(_keys(path))
        array = _numeric(arrays[name], name, source, leaf.dtype)
        if name == published.input_name:
            array = array * array.dtype.type(published.input_scale)
        shape = _published_shape(leaf.shape, published.map_side)
        if array.shape != shape:
            raise InputError(
                f"{source}: array {name} has shape {array.shape}, {backbone.name} needs {shape}; "
                "check model.depth, model.widths, model.embedding and data.image_size"
            )
        return jnp.asarray(_to_ours(array, published.map_side))

    return jax.tree_util.tree_map_with_path(convert, variables)


def to_torch(variables: Mapping[str, Any], backbone: Backbone) -> dict[str, np.ndarray]:
    """The inverse of :func:`from_torch`: name -> array in the published layout.

    Also converts anything of the same structure, such as gradients, except where the
    published input scale differs (there the first convolution is divided by the ratio).

    Args:
      variables: ``{"params": ..., "batch_stats": ...}`` of ``backbone``.
      backbone: the backbone that they belong to.
    """
    published = _published(backbone)
    arrays = {}
    for path, leaf in _leaves(variables):
        name = published.name(_keys(path))
        array = _to_published(
            np.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32)), published.map_side
        )
        if name == published.input_name:
            array = array / array.dtype.type(published.input_scale)
        arrays[name] = array
    for name in published.ones:
        arrays[name] = np.ones(backbone.embedding, array.dtype)
    return arrays


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
