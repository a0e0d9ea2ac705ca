"""A model as a JAX program that needs no code of this project: ``model.jaxexport``.

The program is StableHLO with the weights inside, for any number of images, and for CPU, CUDA and
TPU in one file. ``jax.export.deserialize`` opens it.
"""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from fedfr_jax.errors import DamagedError, InputError
from fedfr_jax.export.card import PROGRAM, preprocessing
from fedfr_jax.export.network import nested
from fedfr_jax.export.saved import Weights

PLATFORMS = ("cpu", "cuda", "tpu")
_ALLOWED = "custom_call @shape_assertion("  # that the number of images is positive


def check_available() -> None:
    """Raises InputError where JAX cannot write or read programs."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("programs of jax.export need flatbuffers: pip install 'fedfr_jax[export]'")


def unit_features(model: Weights, conv: str) -> Callable:
    """``images (N, S, S, 3) in 0 to 255 -> (features (N, d) of length one, norms (N,))``.

    Args:
      model: whose weights become constants of the function.
      conv: convolution strategy; "grouped" and "patches" take any N.
    """
    apply, weights = model.architecture.function(conv), nested(model.arrays)

    def run(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = apply(weights, images).astype(jnp.float32)
        norms = jnp.sqrt(jnp.sum(found * found, axis=-1))
        return found / jnp.maximum(norms, 1e-12)[:, None], norms

    return run


def program_bytes(model: Weights, images: str) -> bytes:
    """The content of ``model.jaxexport``.

    Args:
      images: type of the images that it takes, "uint8" or "float32".

    Raises:
      InputError: the network cannot be traced for any number of images.
    """
    check_available()
    size = model.architecture.image_size
    (count,) = export.symbolic_shape("n")
    run = unit_features(model, _strategy(model))
    named = jax.jit(lambda images: dict(zip(("features", "norms"), run(images), strict=True)))
    like = jax.ShapeDtypeStruct((count, size, size, 3), np.dtype(images))
    try:
        return bytes(export.export(named, platforms=PLATFORMS)(like).serialize())
    except Exception as error:  # whatever tracing a network of the user's own raises
        raise InputError(
            f"{model.architecture.name} cannot be exported as a program for any number of images "
            f"({_first_line(error)}); in a network of your own take the number from x.shape[0], "
            "not from len(x), or use the format folder"
        ) from error


def _strategy(model: Weights) -> str:
    """Plain operations of all platforms.

    A depthwise convolution as a sum of shifted products is four times as fast on a CPU as one
    with a group per channel (a MobileFaceNet at 112 pixels, jax 0.10).
    """
    depthwise = any(a.ndim == 4 and a.shape[2] == 1 < a.shape[3] for a in model.arrays.values())
    return "patches" if depthwise else "grouped"


def open_program(
    path: pathlib.Path, content: bytes
) -> tuple[int, int, Callable[[np.ndarray], np.ndarray]]:
    """Opens the content of a ``.jaxexport`` file.

    Returns:
      (image size, size of a feature, ``images uint8 -> (B, d)`` features, not normalized).

    Raises:
      DamagedError: it cannot be read.
      InputError: it is another program, asks for code outside of itself, or is not for this
        machine's platform; or flatbuffers is missing.
    """
    check_available()
    try:
        program = export.deserialize(bytearray(content))
        text = program.mlir_module()
    except Exception as error:  # flatbuffers and MLIR raise many types for damaged files
        raise DamagedError(
            f"{path} cannot be read as a program of jax.export: it is damaged, or a newer JAX than "
            f"{jax.__version__} wrote it ({_first_line(error)})"
        ) from error
    if text.count("custom_call") != text.count(_ALLOWED):
        raise InputError(
            f"{path} calls code outside of itself, which no model of this project does; it is not "
            "opened"
        )
    size, embedding, dtype = _shapes(path, program)
    if jax.default_backend() not in [_backend(name) for name in program.platforms]:
        raise InputError(
            f"{path} is a program for {', '.join(program.platforms)}, not for this machine's "
            f"{jax.default_backend()}"
        )
    run = jax.jit(program.call)

    def features(images: np.ndarray) -> np.ndarray:
        found = jax.device_get(run(np.asarray(images, dtype)))
        return np.asarray(found["features"]) * np.asarray(found["norms"])[:, None]

    return size, embedding, features


def _backend(platform: str) -> str:
    return "gpu" if platform in ("cuda", "rocm") else platform


def _shapes(path: pathlib.Path, program: export.Exported) -> tuple[int, int, np.dtype]:
    """(image size, size of a feature, type of the images), if it is a face model."""
    images = program.in_avals
    outputs = jax.tree_util.tree_unflatten(program.out_tree, program.out_avals)
    if (
        len(images) == 1
        and len(images[0].shape) == 4
        and images[0].shape[1:3] == images[0].shape[2:0:-1]
        and images[0].shape[3] == 3
        and images[0].dtype in (np.uint8, np.float32)
        and isinstance(outputs, dict)
        and set(outputs) == {"features", "norms"}
        and len(outputs["features"].shape) == 2
    ):
        embedding = outputs["features"].shape[1]
        if isinstance(images[0].shape[1], int) and isinstance(embedding, int):
            return images[0].shape[1], embedding, np.dtype(images[0].dtype)
    raise InputError(
        f"{path} is a program of jax.export, but not a face model: it must take images (n, S, S, "
        "3) and return features and norms"
    )


def card_of_program(size: int, embedding: int) -> dict[str, Any]:
    """What is known of a program without a card."""
    return {
        "model": {"variant": "unknown", "client": None},
        "architecture": {"name": "unknown", "embedding": embedding, "image_size": size},
        "preprocessing": preprocessing(size),
        "training": {},
        "metrics": {},
        "license": "",
        "files": {PROGRAM: {}},
    }


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
