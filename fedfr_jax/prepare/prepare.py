"""A whole preparation, from a source to a folder that says what it holds."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from fedfr_jax.config import Config
from fedfr_jax.data.arrays import load_array
from fedfr_jax.data.prepared import MANIFEST, SPLIT, files_of, read_manifest, verify
from fedfr_jax.data.split_file import save_split
from fedfr_jax.data.types import ImageSource
from fedfr_jax.errors import DamagedError
from fedfr_jax.prepare.finish import (
    described,
    finish,
    kept_images,
    split_note,
    split_of_labels,
)
from fedfr_jax.prepare.plan import Plan, begin, refusal
from fedfr_jax.prepare.shards import write_shards
from fedfr_jax.runtime.json_file import plain, write_json
from fedfr_jax.runtime.lock import WorkdirLock


def prepare(
    source: ImageSource,
    out: str | os.PathLike,
    config: Config | None = None,
    *,
    container: str = "array_record",
    pixels: str = "original",
    unreadable: str = "leave_out",
    shard_images: int = 8192,
    workers: int = 0,
    max_megapixels: float = 50.0,
) -> dict[str, Any]:
    """Writes all images of a source into a folder, with labels, names, checksums and the split.

    A preparation that was stopped is continued by the same call: shards that are whole are kept.

    Args:
      source: any source; ``data.source=prepared`` then gives its images, person after person.
      out: a folder that is new, empty, or holds the beginning of the same preparation.
      config: settings of which the split is made and saved; None: no split.
      container, pixels, unreadable, shard_images, workers, max_megapixels: see
        :class:`fedfr_jax.prepare.plan.Plan`.

    Returns:
      The manifest.

    Raises:
      InputError: the folder holds something else, images cannot be read or not be split as asked.
    """
    plan = Plan(
        source,
        pathlib.Path(out).expanduser(),
        container,
        pixels,
        unreadable,
        shard_images,
        workers,
        max_megapixels,
    )
    if (plan.out / MANIFEST).exists():
        return _complete(plan, config)
    if config is not None:  # what cannot be split is said before long work
        split_of_labels(plan.source.labels, config)
    begin(plan)
    with WorkdirLock(plan.out):
        notes = write_shards(plan)
        manifest = finish(plan, notes, kept_images(plan, notes), config)
    return manifest


def _complete(plan: Plan, config: Config | None) -> dict[str, Any]:
    """The manifest of a folder that is complete, if it is of this plan."""
    manifest = read_manifest(plan.out)
    found = manifest.get("plan")
    found = found if isinstance(found, dict) else {}
    for name, value in plan.identity.items():
        if found.get(name) != value:
            raise refusal(plan.out, name, found.get(name), plan.identity)
    return manifest if config is None else _split_again(plan, manifest, config)


def _split_again(plan: Plan, manifest: dict[str, Any], config: Config) -> dict[str, Any]:
    """The same images with the split that the configuration asks for now."""
    labels = load_array(plan.out / "labels.npy")
    split = split_of_labels(labels, config)
    note = split_note(plan, split, config)
    if plain(note) == manifest.get("split"):
        return manifest
    save_split(plan.out / SPLIT, split)
    others = [file for file in manifest["files"] if file["name"] != SPLIT]
    manifest = {**manifest, "split": note, "files": [*others, described(plan.out / SPLIT)]}
    write_json(plan.out / MANIFEST, manifest)
    return manifest


def verify_folder(folder: str | os.PathLike) -> list[str]:
    """Compares every file of a prepared folder with its checksum.

    Returns:
      One line per damaged file.
    """
    folder = pathlib.Path(folder)
    shards, others = files_of(folder, read_manifest(folder))
    found = []
    for file in (*shards, *others):
        try:
            verify(folder, file)
        except DamagedError as error:
            found.append(str(error))
    return found
