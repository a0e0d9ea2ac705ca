"""Writes models in any of the formats, one folder each."""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO

from fedfr_jax.atomic import write_file, write_text
from fedfr_jax.errors import InputError
from fedfr_jax.export import onnx_file, program
from fedfr_jax.export.card import (
    CARD,
    FILES,
    ONNX,
    PROGRAM,
    README,
    WEIGHTS,
    Origin,
    card_of,
    card_text,
    read_card,
)
from fedfr_jax.export.folder import read_file, weights_bytes
from fedfr_jax.export.options import FORMATS
from fedfr_jax.export.readme import readme
from fedfr_jax.export.saved import Weights
from fedfr_jax.runtime.workdir import make_folder

# format -> (file, what makes its content).
_WRITERS: dict[str, tuple[str, Callable[[Weights, str], bytes]]] = {
    "folder": (WEIGHTS, lambda model, images: weights_bytes(model.arrays)),
    "jax": (PROGRAM, program.program_bytes),
    "onnx": (ONNX, onnx_file.onnx_bytes),
}


def check_formats(formats: Sequence[str]) -> None:
    """Raises InputError for a format that does not exist, or cannot be written here."""
    if not formats:
        raise InputError(f"no format is given; use some of {','.join(FORMATS)}")
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"format {name!r}: there are {', '.join(FORMATS)}")
    if "jax" in formats:
        program.check_available()
    if "onnx" in formats:
        onnx_file.check_available()


def check_folder(folder: pathlib.Path) -> None:
    """Raises InputError for a folder that holds anything but an exported model."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder")
    ours = {CARD, *FILES} | ({README} if (folder / CARD).exists() else set())
    others = sorted(
        path.name
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name not in ours and path.suffix != ".partial"  # of a write that was killed
    )
    if others:
        raise InputError(
            f"{folder} holds {others[0]!r}, which is no part of an exported model; give a new "
            "folder"
        )


def write_model(
    origin: Origin,
    model: Weights,
    folder: str | pathlib.Path,
    *,
    formats: Iterable[str] = ("folder",),
    license: str = "",
    images: str = "uint8",
) -> bool:
    """Writes one model; another export in the folder is replaced, the same one is kept.

    A folder without its card is not complete.

    Args:
      origin: where the model is from.
      folder: made if it does not exist.
      formats: some of ``options.FORMATS``.
      license: free text for the card.
      images: type of the images that programs take, one of ``INPUTS``.

    Returns:
      Whether it was written: False if it was there.

    Raises:
      InputError: the folder holds something else, or a format cannot be written.
    """
    folder = pathlib.Path(folder).expanduser()
    check_folder(folder)
    card, wanted = card_of(origin, model, license), [_WRITERS[name] for name in formats]
    if _is_there(folder, card, {name for name, _ in wanted}, images):
        return False
    contents = {name: content(model, images) for name, content in wanted}
    make_folder(folder)
    for name in (README, CARD, *FILES):
        (folder / name).unlink(missing_ok=True)
    for name, content in contents.items():
        write_file(folder / name, functools.partial(_write, content))
        card["files"][name] = {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        if name != WEIGHTS:
            card["files"][name]["images"] = images
    write_text(folder / CARD, card_text(card))
    write_text(folder / README, readme(card))
    return True


def _is_there(folder: pathlib.Path, card: dict[str, Any], names: set[str], images: str) -> bool:
    """Whether this export was written before, undamaged."""
    try:
        there = read_card(folder)
        same = all(there[key] == card[key] for key in card if key != "files")
        programs = [entry["images"] for entry in there["files"].values() if "images" in entry]
        if not same or set(there["files"]) != names or set(programs) - {images}:
            return False
        for name in names:
            read_file(folder, name, there)
    except InputError:
        return False
    return (folder / README).exists()


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)
