"""PyTorch's files, without running what is in them. Needs the extra ``torch``."""

from __future__ import annotations

import os
import pathlib
import zipfile
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from fedfr_jax.atomic import write_file
from fedfr_jax.errors import InputError

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
# As for archives of arrays: bytes that are always allowed, and growth when unpacked.
_FREE_BYTES, _MOST_GROWTH = 1 << 26, 20
_MOST_ARRAYS = 100_000
# Keys under which training programs keep a state dict, in the order of preference.
_NESTED = (
    "state_dict_backbone",  # arcface_torch's checkpoints
    "state_dict",  # Lightning's, AdaFace's
    "backbone",
    "model_state_dict",
    "model",
    "net",
    "module",
)
_DEEPEST = 4


def _torch() -> ModuleType:
    try:
        import torch  # noqa: PLC0415 - optional, and slow to import
    except ImportError as error:
        raise InputError(
            "PyTorch is needed for .pth files and is not installed: pip install fedfr_jax[torch]"
        ) from error
    return torch


def load_torch(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads a state dict, also from within a checkpoint of a training program.

    Only ``torch.load(weights_only=True)`` sees the file, which runs no code of it.

    Returns:
      (name -> array in the type of the file, bfloat16 as float32; names of what was left out).

    Raises:
      InputError: PyTorch is missing; the file is missing, damaged, wants to run code, or holds no
        state dict.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    torch = _torch()
    _check_growth(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types for damaged files
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(
            f"{path}: cannot be read as a file of PyTorch's with plain tensors: {lines[0][:200]}"
        ) from error
    return _state_dict(torch, content, os.fspath(path))


def _check_growth(path: pathlib.Path) -> None:
    """Refuses archives that are far larger unpacked; PyTorch's are not compressed."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"{path}: a damaged file of PyTorch's: {error}") from error
    if size > _FREE_BYTES + _MOST_GROWTH * path.stat().st_size:
        raise InputError(f"{path}: it would be {size} bytes unpacked; the file may be hostile")


def _state_dict(
    torch: ModuleType, content: Any, source: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    ignored: list[str] = []
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            raise InputError(
                f"{source} holds {type(content).__name__} and no state dict; save "
                "model.state_dict() with torch.save"
            )
        inner = next((k for k in _NESTED if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        ignored += [f"{k}" for k in content if k != inner]
        content = content[inner]
    tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
    ignored += [str(k)[:80] for k in content if k not in tensors]
    if not tensors or len(tensors) > _MOST_ARRAYS or not all(isinstance(k, str) for k in tensors):
        kinds = sorted({type(v).__name__ for v in content.values()})[:3]
        raise InputError(
            f"{source} holds no tensors by name, but {', '.join(kinds) or 'nothing'}; save "
            "model.state_dict() with torch.save"
        )
    return {k: _array(torch, v, k, source) for k, v in tensors.items()}, tuple(ignored)


def _array(torch: ModuleType, tensor: Any, name: str, source: str) -> np.ndarray:
    where = f"{source}: tensor {name[:80]}"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise InputError(f"{where} is sparse, quantized or without values; save it as it trains")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(f"{where} announces more values than the file holds")
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    try:
        return np.array(tensor.numpy())
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{where} has type {tensor.dtype}, which cannot be used") from error


def save_torch(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict that ``load_state_dict`` takes, all of it or nothing.

    Raises:
      InputError: PyTorch is missing.
    """
    torch = _torch()
    state = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    write_file(path, lambda file: torch.save(state, file))
