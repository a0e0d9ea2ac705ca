"""Reads NumPy's files without trusting their headers."""

from __future__ import annotations

import io
import math
import os
import pathlib
import re
import struct
import typing
import zipfile
import zlib

import numpy as np

from fedfr_jax.errors import InputError

_FREE_BYTES = 1 << 26  # always allowed for an archive, for any size on the disk
_MOST_GROWTH = 20  # times that an archive may grow when it is unpacked
_LENGTHS = {1: "<H", 2: "<I", 3: "<I"}  # of the header, by the format's version
# NumPy passes the header to Python's parser, which a hostile file can crash.
_HEADER = re.compile(
    r"\{'descr': '(?P<type>[<>|=][biufcSU]\d{1,9})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>[\d, ]*)\),? *\}\s*"
)
_MOST_DIMENSIONS = 32
# The errors that Python's zipfile module is known to raise, and those raised here.
_DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def load_array(path: str | os.PathLike, *, in_memory: bool = True) -> np.ndarray:
    """Reads an ``.npy`` file of plain numbers or strings.

    Args:
      in_memory: False leaves the content on the disk; it is read when it is used.

    Raises:
      InputError: the file is missing, damaged, holds Python objects, or is shorter than its
        header says.
    """
    try:
        return _parse(
            bytearray(pathlib.Path(path).read_bytes())
            if in_memory
            else np.memmap(path, np.uint8, "r")
        )
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except _DAMAGE as error:
        raise InputError(f"{path}: cannot be read as an .npy array: {_short(error)}") from error


def load_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads an ``.npz`` file of plain numbers or strings: name -> array.

    Raises:
      InputError: as :func:`load_array`, or the archive is encrypted or far larger unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if size > _FREE_BYTES + _MOST_GROWTH * os.path.getsize(path):
                raise ValueError(f"it would be {size} bytes unpacked")
            return {
                member.filename.removesuffix(".npy"): _parse(_unpack(archive, member))
                for member in members
            }
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except _DAMAGE as error:
        raise InputError(f"{path}: cannot be read as an .npz archive: {_short(error)}") from error


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytearray:
    data, filled = bytearray(member.file_size), 0
    with typing.cast(io.BufferedIOBase, archive.open(member)) as file, memoryview(data) as view:
        while filled < len(data) and (count := file.readinto(view[filled : filled + (1 << 22)])):
            filled += count
    if filled < len(data):
        raise ValueError(f"{member.filename} is cut off")
    return data


def _parse(data: bytearray | np.memmap) -> np.ndarray:
    """The array in an ``.npy`` file's bytes, without a copy."""
    magic = bytes(data[:6])
    if magic[:2] == b"PK":
        raise ValueError("it is an archive of arrays (.npz)")
    if magic != b"\x93NUMPY" or len(data) < 12 or data[6] not in _LENGTHS:
        raise ValueError("it does not begin as such a file does")
    form = _LENGTHS[data[6]]
    start = 8 + struct.calcsize(form)
    end = start + struct.unpack_from(form, bytes(data[8:start]))[0]
    header = _HEADER.fullmatch(bytes(data[start:end]).decode("utf-8"))
    if not header:
        raise ValueError(
            f"its header is damaged or says other than plain numbers and texts: "
            f"{bytes(data[start : min(end, start + 80)])!r}"
        )
    dtype = np.dtype(header["type"])
    shape = tuple(int(n[:20]) for n in header["shape"].replace(" ", "").split(",") if n)
    if (
        len(shape) > _MOST_DIMENSIONS
        or not dtype.itemsize
        or (math.prod(shape) * dtype.itemsize != len(data) - end)
    ):
        raise ValueError(f"its header announces the shape {shape[:9]}, which its bytes do not fit")
    flat = np.frombuffer(data, dtype, offset=end) if len(data) > end else np.zeros(0, dtype)
    return flat.reshape(shape, order="F" if header["fortran"] == "True" else "C")
