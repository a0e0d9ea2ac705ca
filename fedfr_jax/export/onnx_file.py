"""A model as ``model.onnx``, for onnxruntime and whatever else reads ONNX.

jax2onnx converts the function; the result is compared with it before anything is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import export

from fedfr_jax.errors import InputError
from fedfr_jax.export.network import nested
from fedfr_jax.export.program import unit_features
from fedfr_jax.export.saved import Weights

TOLERANCE = 1e-4  # of the entries of unit features, and of norms as a share of the largest
OPSET = 18  # Read by onnxruntime 1.14 and newer; nothing here needs a newer one.
_MOST_BYTES = 1 << 31  # of a protobuf
_NEEDED = ("jax2onnx", "onnx", "onnxruntime")
_CHECKED = (1, 3)  # images per batch


def check_available() -> None:
    """Raises InputError where the converter is not installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"format 'onnx' needs {', '.join(missing)}: pip install 'fedfr_jax[onnx]'")


def onnx_bytes(model: Weights, images: str) -> bytes:
    """The content of ``model.onnx``: ``images (n, S, S, 3) -> features (n, d), norms (n,)``.

    It computes in float32, whatever ``model.dtype`` is.

    Args:
      images: type of the images that it takes, "uint8" or "float32".

    Raises:
      InputError: the converter is missing, fails, or its result differs from the model.
    """
    check_available()
    from jax2onnx import to_onnx  # noqa: PLC0415 - optional

    single = _in_float32(model)
    run, size = unit_features(single, "grouped"), single.architecture.image_size
    (count,) = export.symbolic_shape("n")
    like = jax.ShapeDtypeStruct((count, size, size, 3), np.dtype(images))
    try:
        with _quietly("onnx_ir"):
            proto: Any = to_onnx(
                run,
                [like],
                model_name="fedfr_jax",
                opset=OPSET,
                input_names=["images"],
                output_names=["features", "norms"],
            )
        content = proto.SerializeToString()
    except Exception as error:  # whatever the converter or protobuf raises
        raise InputError(
            f"jax2onnx cannot convert this {single.architecture.name} "
            f"({type(error).__name__}: {str(error)[:300]}); use the formats folder and jax"
        ) from error
    if len(content) >= _MOST_BYTES:
        raise InputError(
            f"the ONNX file would have {len(content)} bytes; ONNX allows {_MOST_BYTES}"
        )
    check_same(content, single, images)
    return content


def _in_float32(model: Weights) -> Weights:
    return dataclasses.replace(
        model,
        architecture=dataclasses.replace(model.architecture, dtype="float32"),
        arrays={name: array.astype(np.float32) for name, array in model.arrays.items()},
    )


def check_same(content: bytes, model: Weights, images: str) -> None:
    """Compares an ONNX file, run by onnxruntime, with the model on noise images.

    Raises:
      InputError: it cannot be run, or a feature differs by more than ``TOLERANCE``.
    """
    import onnxruntime  # noqa: PLC0415 - optional

    size = model.architecture.image_size
    some = np.random.default_rng(0).integers(0, 256, (max(_CHECKED), size, size, 3), np.uint8)
    raw = np.asarray(jax.jit(model.architecture.function())(nested(model.arrays), some))
    norms = np.linalg.norm(raw, axis=1)
    wanted = raw / np.maximum(norms, 1e-12)[:, None]
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        for n in _CHECKED:
            found, length = session.run(["features", "norms"], {"images": some[:n].astype(images)})
            _compare(found, wanted[:n], 1.0)
            _compare(length, norms[:n], float(norms.max()))
    except InputError:
        raise
    except Exception as error:  # onnxruntime has many types
        raise InputError(
            f"onnxruntime cannot run what jax2onnx wrote ({str(error)[:300]}); nothing is kept"
        ) from error


def _compare(found: np.ndarray, wanted: np.ndarray, scale: float) -> None:
    if found.shape != wanted.shape:
        raise InputError(
            f"the ONNX file returns shape {found.shape}, not {wanted.shape}; nothing is kept"
        )
    most = float(np.abs(found - wanted).max()) / scale
    if not most <= TOLERANCE:  # also NaN
        raise InputError(
            f"the ONNX file differs from the model by {most:.1e}, more than {TOLERANCE:g}; nothing "
            "is kept. Please report it with the settings of the network"
        )


@contextlib.contextmanager
def _quietly(name: str) -> Iterator[None]:
    """The converter warns of intermediate values that it has no type for, which is harmless."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
