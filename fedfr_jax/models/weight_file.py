"""Files of published arrays and what is recorded in them: ``.npz`` and ``.safetensors``.

The arrays have their published names, layouts, types and values. Beside them stand two JSON texts,
``preprocessing`` (:class:`fedfr_jax.models.preprocessing.Preprocessing`) and ``model``
(:class:`Structure`): in the metadata of a safetensors file, or as the entries ``__preprocessing__``
and ``__model__`` of an ``.npz``. A file without them is used with the defaults of its network.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedfr_jax.atomic import write_file
from fedfr_jax.data.arrays import load_arrays
from fedfr_jax.data.safetensors_file import load_safetensors, save_safetensors
from fedfr_jax.errors import InputError
from fedfr_jax.models.preprocessing import Preprocessing
from fedfr_jax.settings import ModelConfig

PREPROCESSING, MODEL = "preprocessing", "model"
_ENTRIES = {f"__{key}__": key for key in (PREPROCESSING, MODEL)}  # of an .npz
_LONGEST = 10_000  # characters of a JSON text
_LARGEST_EPS = 1.0


@dataclasses.dataclass(frozen=True)
class Structure:
    """The network that arrays belong to.

    Attributes:
      name, depth, widths, embedding: as in the ``model`` settings.
      eps: added to variances by its batch norm; None: as the network here has it.

    Raises:
      InputError: a value is of the wrong type or out of range.
    """

    name: str
    depth: int
    widths: tuple[int, ...]
    embedding: int
    eps: float | None = None

    def __post_init__(self) -> None:
        numbers = (self.depth, self.embedding, *self.widths)
        if not isinstance(self.name, str) or not all(
            isinstance(n, int) and not isinstance(n, bool) and 0 < n < 1 << 20 for n in numbers
        ):
            raise InputError("what is recorded about the network cannot be used")
        if self.eps is not None and not (
            isinstance(self.eps, float) and 0 <= self.eps <= _LARGEST_EPS
        ):
            raise InputError(f"the epsilon of batch norm is {self.eps!r}, not 0 to {_LARGEST_EPS}")

    def config(self) -> ModelConfig:
        """The settings that build it."""
        return ModelConfig(
            name=self.name, depth=self.depth, widths=self.widths, embedding=self.embedding
        )

    def flags(self) -> str:
        """The command-line flags that choose it."""
        default, found = ModelConfig(), [f"--config.model.name={self.name}"]
        for name in ("depth", "widths", "embedding"):
            if (value := getattr(self, name)) != getattr(default, name):
                text = str(value).replace(" ", "")
                found.append(
                    f"--config.model.{name}={text!r}"
                    if "(" in text
                    else f"--config.model.{name}={text}"
                )
        return " ".join(found)

    def to_dict(self) -> dict[str, Any]:
        """The values by name, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Structure:
        """The inverse of :meth:`to_dict`.

        Raises:
          InputError: names are missing or unknown, or a value cannot be used.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if (
            not isinstance(values, Mapping)
            or not names - {"eps"} <= set(values) <= names
            or not isinstance(values["widths"], list | tuple)
        ):
            raise InputError("what is recorded about the network cannot be used")
        return cls(**{**values, "widths": tuple(values["widths"])})


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """What a file of weights holds.

    Attributes:
      arrays: published name -> array, as published.
      preprocessing: what the network expects; None: not recorded.
      structure: the network; None: not recorded.
    """

    arrays: Mapping[str, np.ndarray]
    preprocessing: Preprocessing | None = None
    structure: Structure | None = None


def read_weight_file(path: str | os.PathLike[str]) -> WeightFile:
    """Reads an ``.npz`` or ``.safetensors`` file.

    Raises:
      InputError: it is missing, damaged, of another kind, or what is recorded in it cannot be used.
    """
    path = pathlib.Path(path)
    kind = path.suffix.lower()
    if kind in (".pth", ".pt", ".ckpt", ".bin"):
        raise InputError(
            f"{path}: PyTorch's files are converted first: "
            f"python -m fedfr_jax.convert {path} {path.with_suffix('.safetensors')}"
        )
    if kind == ".safetensors":
        arrays, texts = load_safetensors(path)
    else:
        try:
            arrays = load_arrays(path)
        except InputError as error:
            raise InputError(
                f"{error}; weights are .safetensors, or .npz of plain arrays as numpy.savez "
                "writes them; no pickles are loaded"
            ) from error
        texts = {
            key: str(arrays[entry][()])
            for entry, key in _ENTRIES.items()
            if entry in arrays and arrays[entry].shape == () and arrays[entry].dtype.kind == "U"
        }
        arrays = {name: array for name, array in arrays.items() if name not in _ENTRIES}
    return WeightFile(arrays, *_recorded(texts, path))


def _recorded(
    texts: Mapping[str, str], path: pathlib.Path
) -> tuple[Preprocessing | None, Structure | None]:
    """What the JSON texts of a file say.

    Raises:
      InputError: they cannot be used; the message names the file.
    """
    try:
        found = {key: _parsed(texts[key]) for key in (PREPROCESSING, MODEL) if key in texts}
        return (
            Preprocessing.from_dict(found[PREPROCESSING]) if PREPROCESSING in found else None,
            Structure.from_dict(found[MODEL]) if MODEL in found else None,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def recorded_beside(path: pathlib.Path) -> tuple[Preprocessing | None, Structure | None]:
    """What ``<path>.json`` says, where a PyTorch file has one.

    Raises:
      InputError: it cannot be used.
    """
    beside = sidecar(path)
    if not beside.is_file():
        return None, None
    try:
        if beside.stat().st_size > 2 * _LONGEST:
            raise InputError(f"{beside}: too long")
        whole = _parsed(beside.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{beside}: cannot be read: {error}") from error
    except InputError as error:
        raise InputError(f"{beside}: {error}") from error
    if not isinstance(whole, Mapping):
        raise InputError(f"{beside}: it holds no dictionary")
    return _recorded({key: json.dumps(value) for key, value in whole.items()}, beside)


def sidecar(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file beside a PyTorch file that records what it expects."""
    path = pathlib.Path(path)
    return path.with_name(path.name + ".json")


def _parsed(text: str) -> Any:
    if len(text) > _LONGEST:
        raise InputError("what is recorded in it is too long")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"what is recorded in it is no JSON: {error}") from error


def write_weight_file(path: str | os.PathLike[str], content: WeightFile) -> None:
    """Writes an ``.npz`` or ``.safetensors`` file, all of it or nothing.

    Raises:
      InputError: the name ends in neither.
    """
    path = pathlib.Path(path)
    texts = json_texts(content)
    if path.suffix.lower() == ".safetensors":
        save_safetensors(path, content.arrays, texts)
    elif path.suffix.lower() == ".npz":
        entries: dict[str, Any] = {f"__{key}__": np.array(text) for key, text in texts.items()}
        entries |= content.arrays
        write_file(path, lambda file: np.savez(file, **entries))
    else:
        raise InputError(f"{path}: weights are written as .safetensors, .npz or .pth")


def json_texts(content: WeightFile) -> dict[str, str]:
    """The JSON texts that stand beside the arrays."""
    parts = {PREPROCESSING: content.preprocessing, MODEL: content.structure}
    return {key: json.dumps(part.to_dict()) for key, part in parts.items() if part is not None}


def largest_side(inputs: int, channels: int) -> int:
    """Side of the square map with so many channels that flattens to ``inputs``; 0: none does."""
    side = math.isqrt(inputs // channels) if channels > 0 else 0
    return side if side * side * channels == inputs else 0
