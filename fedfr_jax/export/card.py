"""``card.json``: what an exported model is, how it takes images, and where it comes from.

The file is not trusted: every entry that is used is checked, and sizes have limits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Protocol

from fedfr_jax.algorithm.transforms import TRANSFORMS
from fedfr_jax.data.alignment import template
from fedfr_jax.errors import ConfigError, DamagedError, InputError
from fedfr_jax.export.network import Architecture
from fedfr_jax.export.options import INPUTS
from fedfr_jax.export.saved import Weights
from fedfr_jax.runtime.json_file import json_text, plain, read_json

CARD, README = "card.json", "README.md"
WEIGHTS, PROGRAM, ONNX = "model.safetensors", "model.jaxexport", "model.onnx"
FILES = (WEIGHTS, PROGRAM, ONNX)
FORMAT, VERSION = "fedfr_jax model", 1
MEAN, SCALE = 127.5, 1 / 127.5  # network input: (x - MEAN) * SCALE of grey levels x
_MOST_BYTES = 1 << 24
_CHECK, _LICENSE = "check", "license"
# Inclusive limits of whole numbers.
_LIMITS = {"depth": (1, 1000), "embedding": (1, 1 << 16), "image_size": (1, 1024)}
_MOST_WIDTHS, _WIDEST = 16, 1 << 14
_SHA256 = re.compile("[0-9a-f]{64}")


class Origin(Protocol):
    """Where a model comes from: a run, or a file of weights."""

    @property
    def description(self) -> dict[str, Any]:
        """For the card."""
        ...

    @property
    def metrics(self) -> dict[str, Any]:
        """Variant -> what was measured."""
        ...


def preprocessing(image_size: int) -> dict[str, Any]:
    """How an image becomes the network's input: the same for all models of this project."""
    return {
        "channels": "RGB",
        "layout": "NHWC",
        "mean": MEAN,
        "scale": SCALE,
        "size": image_size,
        "template": template(image_size).round(4).tolist(),
    }


def card_of(origin: Origin, model: Weights, license: str = "") -> dict[str, Any]:
    """The card of a model, without its files.

    Args:
      origin: where it comes from.
      license: free text.
    """
    return plain(
        {
            "format": FORMAT,
            "version": VERSION,
            "model": {"variant": model.variant, "client": model.client},
            "architecture": dataclasses.asdict(model.architecture),
            "preprocessing": preprocessing(model.architecture.image_size),
            "training": origin.description,
            "metrics": origin.metrics.get(model.variant, {}),
            _LICENSE: license,
            "files": {},
        }
    )


def card_text(card: Mapping[str, Any]) -> str:
    """The content of ``card.json``, with its checksum."""
    return json_text({**card, _CHECK: _digest(card)})


def _digest(card: Mapping[str, Any]) -> str:
    # The licence may be filled in by hand.
    rest = {k: v for k, v in card.items() if k not in (_CHECK, _LICENSE)}
    try:
        return hashlib.sha256(
            json.dumps(rest, sort_keys=True, allow_nan=False).encode()
        ).hexdigest()
    except (ValueError, RecursionError):
        return ""


def read_card(folder: pathlib.Path) -> dict[str, Any]:
    """The checked card of a folder.

    Raises:
      InputError: it is missing, or says something that this program cannot use.
      DamagedError: it is not as it was written.
    """
    path = folder / CARD
    if path.exists() and path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{path} has {path.stat().st_size} bytes; that is no model's card")
    card = read_json(path)
    if card.get("format") != FORMAT:
        raise InputError(f"{path} is not the card of a model that fedfr_jax.export wrote")
    if card.get("version") != VERSION:
        raise InputError(
            f"{path} has version {str(card.get('version'))[:20]}, this program reads {VERSION}; "
            "install the version of fedfr_jax that wrote it"
        )
    check = card.pop(_CHECK, None)
    if not check or check != _digest(card):
        raise DamagedError(
            f"{path} is damaged or was changed by hand (only {_LICENSE!r} may be); copy or export "
            "it again"
        )
    _check_card(path, card)
    return card


def _check_card(path: pathlib.Path, card: Mapping[str, Any]) -> None:
    groups = ("model", "architecture", "preprocessing", "training", "metrics", "files")
    for name in groups:
        if not isinstance(card.get(name), dict):
            raise InputError(f"{path}: {name} is missing or is not an object; export it again")
    variant, client = card["model"].get("variant"), card["model"].get("client")
    if not (_is_text(variant) and (client is None or _is_number(client, 0, 1 << 30))):
        raise InputError(f"{path}: model needs a variant and a client's number or null")
    if not isinstance(card.get(_LICENSE), str):
        raise InputError(f"{path}: {_LICENSE} must be a text")
    architecture = architecture_of(card, path)
    if card["preprocessing"] != preprocessing(architecture.image_size):
        raise InputError(
            f"{path}: preprocessing is not that of this project's models at image_size "
            f"{architecture.image_size}; export it again"
        )
    for name, entry in card["files"].items():
        if not (
            name in FILES
            and isinstance(entry, dict)
            and isinstance(entry.get("bytes"), int)
            and isinstance(entry.get("sha256"), str)
            and _SHA256.fullmatch(entry["sha256"])
            and entry.get("images", "uint8") in INPUTS
        ):
            raise InputError(
                f"{path}: files names {name[:40]!r}, or has no size and SHA-256 of it; there may "
                f"be {', '.join(FILES)}"
            )


def architecture_of(card: Mapping[str, Any], path: pathlib.Path | str = CARD) -> Architecture:
    """The checked settings of the network.

    Raises:
      InputError: an entry is missing, unknown, of the wrong type or out of range.
    """
    found = card["architecture"]
    kinds = {field.name: str(field.type) for field in dataclasses.fields(Architecture)}
    if set(found) != set(kinds):
        other = ", ".join(sorted(set(found) ^ set(kinds)))[:200]
        raise InputError(f"{path}: architecture has, or lacks, {other}; export it again")
    for name, kind in kinds.items():
        value = found[name]
        if kind == "str" and not _is_text(value):
            raise InputError(f"{path}: architecture.{name} must be a short text")
        if kind == "int" and not _is_number(value, *_LIMITS[name]):
            low, high = _LIMITS[name]
            raise InputError(
                f"{path}: architecture.{name} is {str(value)[:40]}; it must be a whole number "
                f"from {low} to {high}"
            )
    widths = found["widths"]
    if not (
        isinstance(widths, list)
        and len(widths) <= _MOST_WIDTHS
        and all(_is_number(width, 1, _WIDEST) for width in widths)
    ):
        raise InputError(
            f"{path}: architecture.widths must be at most {_MOST_WIDTHS} whole numbers from 1 to "
            f"{_WIDEST}"
        )
    architecture = Architecture(**{**found, "widths": tuple(widths)})
    if found["transform"] not in TRANSFORMS:
        raise InputError(
            f"{path}: architecture.transform is {found['transform']!r}; there are "
            f"{', '.join(TRANSFORMS)}"
        )
    try:
        architecture.backbone("grouped")
    except ConfigError as error:
        raise InputError(f"{path}: {error}{_unregistered(error)}") from error
    return architecture


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 200


def _is_number(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _unregistered(error: ConfigError) -> str:
    hint = "; a network of your own must be registered first (fedfr_jax.register_backbone)"
    return hint if "model.name" in str(error) else ""
