"""Verification sets in insightface's ``.bin`` format, read without trusting the pickle.

A ``.bin`` is a pickle of ``(encoded images, is_same)``: 2P byte strings, P booleans. Unpickling a
file runs what the file asks for, so only the few names that such a file needs are known here, and
each stands for a harmless look-alike: NumPy's own unpickling code never sees the file.
"""
from __future__ import annotations

import io
import math
import os
import pathlib
import pickle
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from fedfr_jax.data.decode import decode_images
from fedfr_jax.data.types import ImageSource, VerificationSet
from fedfr_jax.errors import InputError

_NUMBERS = frozenset({"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"})
# Everything that the unpickler raises on damaged or foreign input.
_DAMAGE = (
    pickle.UnpicklingError, EOFError, ImportError, AttributeError, LookupError, TypeError,
    ValueError, ArithmeticError, MemoryError, RecursionError, struct.error, BufferError,
)


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value


class _Dtype:
    """Look-alike of ``numpy.dtype`` for plain numbers."""

    def __init__(self, code: str | bytes, *_: Any):
        code = _text(code)
        if code not in _NUMBERS:
            raise pickle.UnpicklingError(f"arrays of type {code!r} do not belong in such a file")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(_text(state[1]))


class _Array:
    """Look-alike of ``numpy.ndarray``; also stands for the functions that make one."""

    value: np.ndarray

    def __init__(self, *_: Any):
        self.value = np.zeros(0, np.uint8)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _from_buffer(raw, dtype, shape, "F" if fortran else "C")


class _ArrayFromBuffer(_Array):
    """Look-alike of ``numpy.core.numeric._frombuffer`` (pickle protocol 5)."""

    def __init__(self, raw: bytes, dtype: _Dtype, shape: tuple, order: str):
        self.value = _from_buffer(raw, dtype, shape, _text(order))


class _Scalar(_Array):
    """Look-alike of ``numpy.core.multiarray.scalar``."""

    def __init__(self, dtype: _Dtype, raw: bytes):
        self.value = _from_buffer(raw, dtype, (), "C")


def _from_buffer(raw: bytes, dtype: _Dtype, shape: tuple, order: str) -> np.ndarray:
    flat = np.frombuffer(raw, dtype.dtype)
    if len(flat) != math.prod(shape):
        raise pickle.UnpicklingError(f"an array of shape {shape} with {len(flat)} entries")
    return flat.reshape(shape, order=order)


class _Function:
    """A look-alike that is called; its attributes cannot be set from a file."""

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


class _Encode(_Function):
    """Look-alike of ``_codecs.encode``, which old pickle protocols use for byte strings."""

    def __new__(cls, text: str, encoding: str = "latin1") -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"encoding {encoding!r} does not belong in such a file")
        return text.encode("latin1")


class _EmptyBytes(_Function):
    """Look-alike of ``bytes``, which old pickle protocols use for the empty string only."""

    def __new__(cls) -> bytes:
        return b""


_KNOWN = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _Encode,
    ("builtins", "bytes"): _EmptyBytes,
    ("__builtin__", "bytes"): _EmptyBytes,
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _Array
    _KNOWN[f"{_core}.multiarray", "scalar"] = _Scalar
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _ArrayFromBuffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which a verification set does not need; "
                "the file may be hostile"
            ) from None


def read_bin(path: str | os.PathLike, image_size: int, workers: int = 0) -> VerificationSet:
    """Reads an insightface verification file (``lfw.bin``, ``cfp_fp.bin``, ...).

    Pickles of Python 2 and 3 are read; no code in the file is run.

    Args:
      path: the ``.bin`` file; its stem names the set.
      image_size: side S of the images in pixels; others are resized.
      workers: decoding threads; 0 = one per core.

    Returns:
      The pairs, decoded.

    Raises:
      InputError: the file is missing, cut off, asks for code to be run, or is not 2P images and
        P answers.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file (setting data.verification_sets)")
    blobs, is_same = _unpickle(path)
    images = decode_images(
        blobs, image_size, workers=workers, name_of=lambda i: f"{path}: image {i} of pair {i // 2}"
    )
    return VerificationSet(name=path.stem, images=images, is_same=is_same)


def set_names(paths: Sequence[str]) -> tuple[str, ...]:
    """Names of verification sets: the files' stems, with their folders where stems repeat.

    Args:
      paths: the setting ``data.verification_sets``.

    Raises:
      InputError: a file is named twice, so that one result would replace the other.
    """
    stems = [pathlib.PurePath(path).stem for path in paths]
    names = [stem if stems.count(stem) == 1 else pathlib.PurePath(path).with_suffix("").as_posix()
             for stem, path in zip(stems, paths, strict=True)]
    twice = [path for path, name in zip(paths, names, strict=True) if names.count(name) > 1]
    if twice:
        raise InputError(f"data.verification_sets: {twice[0]} has the name of another set there; "
                         "list each file once, under names that differ without their endings")
    return tuple(names)


def _unpickle(path: pathlib.Path) -> tuple[list[bytes], np.ndarray]:
    try:
        content = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except _DAMAGE as error:
        raise InputError(f"{path}: not a verification set that can be read: {error}") from error
    if not isinstance(content, (tuple, list)) or len(content) != 2:
        raise InputError(f"{path}: expected a pickled pair (images, is_same)")
    blobs, answers = (
        item.value if isinstance(item, _Array) else item for item in content
    )
    if not isinstance(blobs, (list, tuple)) or not isinstance(answers, (list, tuple, np.ndarray)):
        raise InputError(f"{path}: expected a list of images and a list of booleans")
    if not len(answers) or len(blobs) != 2 * len(answers):
        raise InputError(
            f"{path}: {len(blobs)} images for {len(answers)} pairs; two images per pair are needed"
        )
    encoded = [_encoded(path, i, blob) for i, blob in enumerate(blobs)]
    return encoded, np.array([_answer(path, i, item) for i, item in enumerate(answers)], bool)


def _encoded(path: pathlib.Path, i: int, blob: Any) -> bytes:
    if isinstance(blob, _Array) and blob.value.dtype == np.uint8:
        return blob.value.tobytes()
    if isinstance(blob, (bytes, bytearray)):
        return bytes(blob)
    raise InputError(f"{path}: image {i} is no encoded image but {type(blob).__name__.strip('_')}")


def _answer(path: pathlib.Path, i: int, item: Any) -> bool:
    value = item.value if isinstance(item, _Array) else item
    if np.ndim(value) == 0 and isinstance(value, (bool, int, np.ndarray, np.generic)):
        number = np.asarray(value).item()
        if number in (0, 1):
            return bool(number)
    raise InputError(f"{path}: the answer for pair {i} is neither true nor false")


def leave_out(
    pairs: VerificationSet, labels_path: str | os.PathLike, identities: Sequence[int] | np.ndarray
) -> VerificationSet:
    """Drops the pairs in which either identity was trained on.

    Args:
      pairs: P verification pairs.
      labels_path: ``.npy``, (P, 2) whole numbers: the identities of each pair.
      identities: what was trained on, in the numbering of that file;
        :func:`original_labels` translates the numbering of a source.

    Returns:
      The other pairs, in their order.

    Raises:
      InputError: the file is missing or does not fit, or no pair is left.
    """
    path = pathlib.Path(labels_path)
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path}: cannot be read as an .npy array (data.verification_labels): {error}"
        ) from error
    count = len(pairs.is_same)
    good = isinstance(labels, np.ndarray) and np.issubdtype(labels.dtype, np.integer)
    if not good or labels.shape != (count, 2):
        found = f"{labels.dtype} {labels.shape}" if isinstance(labels, np.ndarray) else "an archive"
        raise InputError(
            f"{path}: expected whole numbers of shape ({count}, 2) for {pairs.name}, found {found}"
        )
    keep = np.flatnonzero(~np.isin(labels, np.asarray(identities, np.int64)).any(axis=1))
    if not len(keep):
        raise InputError(
            f"{path}: all {count} pairs of {pairs.name} show identities that are trained on; "
            "use fewer training identities or drop this verification set"
        )
    if len(keep) < count:
        logging.info("%s: %d of %d pairs are left out", pairs.name, count - len(keep), count)
    images = pairs.images[(2 * keep[:, None] + np.arange(2)).ravel()]
    return VerificationSet(name=pairs.name, images=images, is_same=pairs.is_same[keep])


def original_labels(source: ImageSource, identities: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns the (n,) int64 labels that ``identities`` of ``source`` have in its own files.

    Raises:
      InputError: the source names its identities by something else than whole numbers.
    """
    try:
        names = [int(source.identity_names[i]) for i in identities]
    except ValueError as error:
        raise InputError(
            f"{source.name}: identities have no numbers ({error}); data.verification_labels "
            "needs a source with numbered identities"
        ) from error
    return np.array(names, np.int64)
