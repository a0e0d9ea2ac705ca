"""A client's DFC transform and binary classifiers: FedFR's ``bce_module.pth`` and ours.

The authors' module has ``weight`` (K, d) and ``bias`` (K,), the binary classifiers, and
``converter``: of a linear transform ``converter.0.weight`` (d, d) and ``.bias``; of the deeper one
``converter.br1.0``, ``br1.2`` to ``br4.2`` (four branches of two layers) and ``concat_fc``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from fedfr_jax.errors import InputError

_BRANCHES = range(1, 5)


@dataclasses.dataclass(frozen=True)
class Head:
    """What a client keeps to itself, for its K identities.

    Attributes:
      kind: of the transform, "linear" or "bottleneck"; a key of ``TRANSFORMS``.
      transform: its arrays by name, as :mod:`fedfr_jax.algorithm.transforms` has them.
      binary_weight: (K, d) one-vs-all classifiers.
      binary_bias: (K,).
    """

    kind: str
    transform: Mapping[str, np.ndarray]
    binary_weight: np.ndarray
    binary_bias: np.ndarray


def is_head(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether arrays are those of a ``bce_module``."""
    return {"weight", "bias"} <= set(arrays) and any(n.startswith("converter.") for n in arrays)


def head_from_torch(arrays: Mapping[str, np.ndarray], source: str) -> Head:
    """Arrays of a ``bce_module`` in our layout.

    Raises:
      InputError: an array is missing, unknown, of another shape or not finite.
    """
    weight = np.asarray(arrays.get("weight"))
    if weight.ndim != 2:
        raise InputError(f"{source}: array weight has shape {weight.shape}, not (identities, d)")
    identities, d = weight.shape
    kind = "linear" if "converter.0.weight" in arrays else "bottleneck"
    shapes = {"weight": (identities, d), "bias": (identities,)} | _shapes(kind, d)
    if set(arrays) != set(shapes):
        names = ", ".join(sorted(set(arrays) ^ set(shapes))[:3])
        raise InputError(f"{source}: {names} missing or unknown for FedFR's bce_module")
    for name, shape in shapes.items():
        array = np.asarray(arrays[name])
        if array.shape != shape or array.dtype.kind != "f":
            raise InputError(
                f"{source}: array {name} is {array.dtype} {array.shape}, not numbers of {shape}"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{source}: array {name} holds infinite or undefined values")
    transform = (
        {"weight": arrays["converter.0.weight"], "bias": arrays["converter.0.bias"]}
        if kind == "linear"
        else {
            "down": _stacked(arrays, "0.weight").transpose(0, 2, 1),
            "down_bias": _stacked(arrays, "0.bias"),
            "mid": _stacked(arrays, "2.weight").transpose(0, 2, 1),
            "mid_bias": _stacked(arrays, "2.bias"),
            "up": arrays["converter.concat_fc.weight"].T,
            "up_bias": arrays["converter.concat_fc.bias"],
        }
    )
    return Head(kind, transform, arrays["weight"], arrays["bias"])


def head_to_torch(head: Head) -> dict[str, np.ndarray]:
    """The inverse of :func:`head_from_torch`."""
    t = {name: np.asarray(array) for name, array in head.transform.items()}
    arrays = {"weight": np.asarray(head.binary_weight), "bias": np.asarray(head.binary_bias)}
    if head.kind == "linear":
        return arrays | {"converter.0.weight": t["weight"], "converter.0.bias": t["bias"]}
    for k in _BRANCHES:
        arrays |= {
            f"converter.br{k}.0.weight": t["down"][k - 1].T,
            f"converter.br{k}.0.bias": t["down_bias"][k - 1],
            f"converter.br{k}.2.weight": t["mid"][k - 1].T,
            f"converter.br{k}.2.bias": t["mid_bias"][k - 1],
        }
    return arrays | {
        "converter.concat_fc.weight": t["up"].T,
        "converter.concat_fc.bias": t["up_bias"],
    }


def _shapes(kind: str, d: int) -> dict[str, tuple[int, ...]]:
    if kind == "linear":
        return {"converter.0.weight": (d, d), "converter.0.bias": (d,)}
    width = d // len(_BRANCHES)
    found: dict[str, tuple[int, ...]] = {
        "converter.concat_fc.weight": (d, width * len(_BRANCHES)),
        "converter.concat_fc.bias": (d,),
    }
    for k in _BRANCHES:
        found |= {
            f"converter.br{k}.0.weight": (width, d),
            f"converter.br{k}.0.bias": (width,),
            f"converter.br{k}.2.weight": (width, width),
            f"converter.br{k}.2.bias": (width,),
        }
    return found


def _stacked(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return np.stack([arrays[f"converter.br{k}.{name}"] for k in _BRANCHES])
