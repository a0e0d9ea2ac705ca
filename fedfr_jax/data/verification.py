"""Verification sets in insightface's ``.bin`` format, read without trusting the pickle.

A ``.bin`` is a pickle of ``(encoded images, is_same)``: 2P byte strings, P booleans. Python's and
NumPy's own unpickling code never see the file, see :mod:`fedfr_jax.data.pickled`.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from fedfr_jax.data.arrays import load_array
from fedfr_jax.data.decode import MAX_MEGAPIXELS, decode_images
from fedfr_jax.data.pickled import Array, PickleError, loads
from fedfr_jax.data.types import ImageSource, VerificationSet
from fedfr_jax.errors import InputError

# Limits for decoded images, in bytes and per byte of the file: a file can refer to one image many
# times.
_FREE_BYTES, _MOST_GROWTH = 1 << 28, 1000


def read_bin(
    path: str | os.PathLike,
    image_size: int,
    workers: int = 0,
    *,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> VerificationSet:
    """Reads an insightface verification file (``lfw.bin``, ``cfp_fp.bin``, ...).

    Pickles of Python 2 and 3 are read; no code in the file is run.

    Args:
      path: the ``.bin`` file; its stem names the set.
      image_size: side S of the images in pixels; others are resized.
      workers: decoding threads; 0 = one per core.
      max_megapixels: larger images are refused before they are decoded.

    Returns:
      The pairs, decoded.

    Raises:
      InputError: the file is missing, cut off, asks for code to be run, or does not hold 2P images
        and P labels.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file (setting data.verification_sets)")
    blobs, is_same = _unpickle(path)
    wanted = len(blobs) * image_size**2 * 3
    if wanted > _FREE_BYTES + _MOST_GROWTH * path.stat().st_size:
        raise InputError(
            f"{path}: {len(blobs)} images in {path.stat().st_size} bytes would take "
            f"{wanted / 1e9:.1f} GB; the file may be hostile"
        )
    first: dict[int, int] = {}  # position of the first use of a byte string, by its id
    for i, blob in enumerate(blobs):
        first.setdefault(id(blob), i)
    used = list(first.values())
    images = decode_images(
        [blobs[i] for i in used],
        image_size,
        workers=workers,
        max_megapixels=max_megapixels,
        name_of=lambda i: f"{path}: image {used[i]} of pair {used[i] // 2}",
    )
    if len(used) < len(blobs):
        images = images[np.searchsorted(used, [first[id(blob)] for blob in blobs])]
    return VerificationSet(name=path.stem, images=images, is_same=is_same)


def count_images(path: str | os.PathLike) -> int:
    """Images of an insightface verification file, without decoding them.

    Raises:
      InputError: as for :func:`read_bin`.
    """
    return len(_unpickle(pathlib.Path(path))[0])


def set_names(paths: Sequence[str]) -> tuple[str, ...]:
    """Names of verification sets: the files' stems, with their folders if stems repeat.

    Args:
      paths: the setting ``data.verification_sets``.

    Raises:
      InputError: a file is named twice, so that one result would replace the other.
    """
    stems = [pathlib.PurePath(path).stem for path in paths]
    names = [
        stem if stems.count(stem) == 1 else pathlib.PurePath(path).with_suffix("").as_posix()
        for stem, path in zip(stems, paths, strict=True)
    ]
    twice = [path for path, name in zip(paths, names, strict=True) if names.count(name) > 1]
    if twice:
        raise InputError(
            f"data.verification_sets: {twice[0]} has the same name as another set; "
            "list each file once, with names that differ even without their endings"
        )
    return tuple(names)


def _unpickle(path: pathlib.Path) -> tuple[list[bytes], np.ndarray]:
    try:
        content = loads(path.read_bytes())
    except PickleError as error:
        raise InputError(f"{path}: not a verification set that can be read: {error}") from error
    if not isinstance(content, (tuple, list)) or len(content) != 2:
        raise InputError(f"{path}: expected a pickled pair (images, is_same)")
    blobs, answers = (item.value if isinstance(item, Array) else item for item in content)
    if not isinstance(blobs, (list, tuple)) or not isinstance(answers, (list, tuple, np.ndarray)):
        raise InputError(f"{path}: expected a list of images and a list of booleans")
    answers = np.atleast_1d(answers) if isinstance(answers, np.ndarray) else answers
    if not len(answers) or len(blobs) != 2 * len(answers):
        raise InputError(
            f"{path}: {len(blobs)} images for {len(answers)} pairs; two images per pair are needed"
        )
    arrays = {
        id(blob): blob.value.tobytes()
        for blob in blobs
        if isinstance(blob, Array) and blob.value.dtype == np.uint8
    }
    encoded = []
    for i, blob in enumerate(arrays.get(id(blob), blob) for blob in blobs):
        if not isinstance(blob, bytes):
            raise InputError(f"{path}: image {i} is no encoded image but {type(blob).__name__}")
        encoded.append(blob)
    return encoded, np.array([_answer(path, i, item) for i, item in enumerate(answers)], bool)


def _answer(path: pathlib.Path, i: int, item: Any) -> bool:
    value = item.value if isinstance(item, Array) else item
    if isinstance(value, (bool, int, np.generic)) or (
        isinstance(value, np.ndarray) and value.ndim == 0
    ):
        number = np.asarray(value).item() if isinstance(value, np.ndarray) else value
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
      identities: training identities, in the numbering of that file;
        :func:`original_labels` translates the numbering of a source.

    Returns:
      The other pairs, in their order.

    Raises:
      InputError: the file is missing or does not fit, or no pair is left.
    """
    path = pathlib.Path(labels_path)
    try:
        labels = load_array(path)
    except InputError as error:
        raise InputError(f"{error} (data.verification_labels)") from error
    count = len(pairs.is_same)
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (count, 2):
        raise InputError(
            f"{path}: expected whole numbers of shape ({count}, 2) for {pairs.name}, "
            f"found {labels.dtype} {labels.shape}"
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
      InputError: the identities of the source are not named by whole numbers.
    """
    try:
        names = [int(source.identity_names[i]) for i in identities]
    except ValueError as error:
        raise InputError(
            f"{source.name}: identities have no numbers ({error}); data.verification_labels "
            "needs a source with numbered identities"
        ) from error
    return np.array(names, np.int64)
