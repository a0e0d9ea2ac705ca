"""Writes models of a run in any of the formats, one folder each."""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO

from fedfr_jax.atomic import write_file, write_text
from fedfr_jax.errors import InputError
from fedfr_jax.export.card import CARD, FILES, ONNX, PROGRAM, README, WEIGHTS, card_of, card_text
from fedfr_jax.export.folder import weights_bytes
from fedfr_jax.export.onnx_file import check_available, onnx_bytes
from fedfr_jax.export.program import program_bytes
from fedfr_jax.export.readme import readme
from fedfr_jax.export.saved import SavedRun, Weights
from fedfr_jax.runtime.workdir import make_folder

# format -> (file, what makes its content).
FORMATS: dict[str, tuple[str, Callable[[Weights, str], bytes]]] = {
    "folder": (WEIGHTS, lambda model, images: weights_bytes(model.arrays)),
    "jax": (PROGRAM, program_bytes),
    "onnx": (ONNX, onnx_bytes),
}
INPUTS = ("uint8", "float32")


def check_formats(formats: Sequence[str]) -> None:
    """Raises InputError for a format that does not exist, or cannot be written here."""
    if not formats:
        raise InputError(f"no format is given; use some of {','.join(FORMATS)}")
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"format {name!r}: there are {', '.join(FORMATS)}")
    if "onnx" in formats:
        check_available()


def check_folder(folder: pathlib.Path) -> None:
    """Raises InputError for a folder that holds anything but an exported model."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder")
    others = [p.name for p in folder.glob("*")] if folder.is_dir() else []
    if others and not set(others) <= {CARD, README, *FILES}:
        raise InputError(
            f"{folder} holds {sorted(set(others) - {CARD, README, *FILES})[0]!r}, which is no part "
            "of an exported model; give a new folder"
        )


def write_model(
    run: SavedRun,
    model: Weights,
    folder: str | pathlib.Path,
    *,
    formats: Iterable[str] = ("folder",),
    license: str = "",
    images: str = "uint8",
) -> dict[str, Any]:
    """Writes one model; an earlier export in the folder is replaced.

    The card comes last: a folder without it is not complete.

    Args:
      run: where the model is from.
      folder: made if it does not exist.
      formats: some of ``FORMATS``.
      license: free text for the card.
      images: type of the images that programs take, one of ``INPUTS``.

    Returns:
      The card.

    Raises:
      InputError: the folder holds something else, or a format cannot be written.
    """
    folder = pathlib.Path(folder).expanduser()
    check_folder(folder)
    make_folder(folder)
    contents = {FORMATS[name][0]: FORMATS[name][1](model, images) for name in formats}
    card = card_of(run, model, license)
    for name in (CARD, README, *FILES):
        (folder / name).unlink(missing_ok=True)
    for name, content in contents.items():
        write_file(folder / name, functools.partial(_write, content))
        card["files"][name] = {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        if name != WEIGHTS:
            card["files"][name]["images"] = images
    write_text(folder / README, readme(card))
    write_text(folder / CARD, card_text(card))
    return card


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)
