"""The pairs of people that no client trains on: those of the split, and sets from files."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from fedfr_jax.data.degrade import degraded_pairs
from fedfr_jax.data.folds import scorable
from fedfr_jax.data.types import FederatedSplit, ImageSource, VerificationSet
from fedfr_jax.data.verification import (
    count_images,
    leave_out,
    original_labels,
    read_bin,
    set_names,
)
from fedfr_jax.settings import DataConfig


def held_out_pairs(source: ImageSource, split: FederatedSplit) -> tuple[VerificationSet, ...]:
    """The pairs of held-out people of the split, if it has any."""
    if not len(split.pairs):
        return ()
    images = source.read(split.pairs.reshape(-1))
    return (VerificationSet("held-out people", images, split.pairs_same),)


def sets_from_files(
    config: DataConfig, source: ImageSource, split: FederatedSplit
) -> tuple[VerificationSet, ...]:
    """The ``.bin`` sets of ``data.verification_sets``, without trained identities."""
    sets = []
    trained = np.concatenate([split.public_identities, split.clients.identities])
    labels = config.verification_labels or ("",) * len(config.verification_sets)
    folder = pathlib.Path(config.root)
    files = config.verification_sets
    for name, file, label_name in zip(set_names(files), files, labels, strict=True):
        pairs = dataclasses.replace(
            read_bin(
                folder / file,
                config.image_size,
                config.workers,
                max_megapixels=config.max_megapixels,
            ),
            name=name,
        )
        if label_name:
            pairs = leave_out(pairs, folder / label_name, original_labels(source, trained))
        pairs = scorable(pairs)
        images = degraded_pairs(pairs.images, config.degrade, config.seed)
        sets.append(dataclasses.replace(pairs, images=images))
    return tuple(sets)


def images_in_sets(config: DataConfig) -> tuple[int, list[str]]:
    """(images of the ``.bin`` sets whose files are there, names of the other files).

    The images are counted, not decoded.

    Raises:
      InputError: a file is not such a set.
    """
    paths = {file: pathlib.Path(config.root) / file for file in config.verification_sets}
    there = [path for path in paths.values() if path.is_file()]
    return sum(map(count_images, there)), [f for f, path in paths.items() if path not in there]
