"""``evaluation.npz``: the arrays from which a report can be drawn again."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from fedfr_jax.atomic import write_file
from fedfr_jax.data.arrays import load_arrays
from fedfr_jax.errors import InputError

EVALUATION = "evaluation.npz"
_IMAGE_KEYS = {
    "hard_negatives": ("local_image", "public_image"),
    "mistakes": ("image_a", "image_b"),
}
_OTHER_KEYS = {
    "hard_negatives": ("client", "cosine"),
    "mistakes": ("kind", "model", "client", "score", "threshold"),
}


def _name(*parts: str) -> str:
    return "/".join(quote(str(part), safe=" :@.,()=") for part in parts)


def write_evaluation(
    workdir: str | os.PathLike,
    *,
    rocs: Mapping[str, Mapping[str, tuple]],
    per_client: Mapping[str, Mapping[str, np.ndarray]],
    faces: np.ndarray | None = None,
    hard_negatives: Sequence[Mapping] = (),
    mistakes: Sequence[Mapping] = (),
) -> None:
    """Writes ``evaluation.npz``: the arrays from which the report can be drawn again.

    Args:
      workdir: the run's directory.
      rocs: protocol -> model -> (far (n,), tar (n,)).
      per_client: metric -> model -> (C,) values.
      faces: (rows, cols, S, S, 3) uint8 or None.
      hard_negatives: dicts of client, local_image, public_image (S, S, 3) uint8, cosine.
      mistakes: dicts of kind, model, client, image_a, image_b (S, S, 3) uint8, score, threshold.

    Raises:
      InputError: a value is not an array of numbers or text.
    """
    arrays: dict[str, Any] = {}
    for protocol, curves in rocs.items():
        for model, (far, tar) in curves.items():
            arrays[_name("roc", protocol, model, "far")] = np.asarray(far)
            arrays[_name("roc", protocol, model, "tar")] = np.asarray(tar)
    for metric, models in per_client.items():
        for model, values in models.items():
            arrays[_name("per_client", metric, model)] = np.asarray(values)
    if faces is not None:
        arrays["faces"] = np.asarray(faces)
    for part, examples in (("hard_negatives", hard_negatives), ("mistakes", mistakes)):
        for number, example in enumerate(examples):
            for key, value in example.items():
                arrays[_name(part, f"{number:06d}", key)] = np.asarray(value)
    for name, array in arrays.items():
        if array.dtype.kind not in "biufU":
            raise InputError(f"{name} of {EVALUATION} is not an array of numbers or text")
    write_file(pathlib.Path(workdir) / EVALUATION, lambda file: np.savez_compressed(file, **arrays))


def read_evaluation(workdir: str | os.PathLike) -> dict[str, Any]:
    """Reads ``evaluation.npz`` back: the keyword arguments of :func:`write_evaluation`.

    Raises:
      InputError: the file is missing or corrupt.
    """
    path = pathlib.Path(workdir) / EVALUATION
    if not path.exists():
        raise InputError(f"{path} does not exist: the run in {path.parent} was not evaluated")
    result: dict[str, Any] = {"rocs": {}, "per_client": {}, "faces": None}
    examples: dict[str, dict[str, dict]] = {"hard_negatives": {}, "mistakes": {}}
    try:
        for name, array in load_arrays(path).items():
            part, *keys = (unquote(item) for item in name.split("/"))
            if part == "faces":
                result["faces"] = array
            elif part == "roc":
                result["rocs"].setdefault(keys[0], {}).setdefault(keys[1], {})[keys[2]] = array
            elif part == "per_client":
                result["per_client"].setdefault(keys[0], {})[keys[1]] = array
            else:
                value = array if keys[1] in _IMAGE_KEYS[part] else array.item()
                examples[part].setdefault(keys[0], {})[keys[1]] = value
        result["rocs"] = {
            protocol: {model: _curve(found) for model, found in curves.items()}
            for protocol, curves in result["rocs"].items()
        }
        _check_shapes(result, examples)
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path} cannot be read ({error}); evaluate the run again") from error
    return result | {part: list(found.values()) for part, found in examples.items()}


def _curve(found: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(far (n,), tar (n,)); raises ValueError or KeyError if there is no such curve."""
    far, tar = found["far"], found["tar"]
    if far.ndim != 1 or far.shape != tar.shape or {far.dtype.kind, tar.dtype.kind} - set("iuf"):
        raise ValueError("a curve's rates do not belong together")
    return far, tar


def _check_shapes(result: Mapping[str, Any], examples: Mapping[str, Mapping[str, Mapping]]) -> None:
    """Raises ValueError for what a report cannot draw."""
    values = [v for models in result["per_client"].values() for v in models.values()]
    if any(v.ndim != 1 or v.dtype.kind not in "biuf" for v in values):
        raise ValueError("a metric is not one number per client")
    faces = result["faces"]
    if faces is not None and not (faces.ndim == 5 and _is_image(faces)):
        raise ValueError("faces are not images in rows and columns")
    for part, found in examples.items():
        wanted = {*_IMAGE_KEYS[part], *_OTHER_KEYS[part]}
        for example in found.values():
            if set(example) != wanted or not all(
                example[key].ndim == 3 and _is_image(example[key]) for key in _IMAGE_KEYS[part]
            ):
                raise ValueError(f"an entry of {part} is not whole")


def _is_image(array: np.ndarray) -> bool:
    return array.dtype == np.uint8 and array.shape[-1] == 3
