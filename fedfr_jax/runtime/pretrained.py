"""Pretrained backbones that several runs start from, and the classifiers learned with them."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil

import jax
import numpy as np
from absl import logging

from fedfr_jax.algorithm.initialize import server_shapes
from fedfr_jax.config import Config, to_dict
from fedfr_jax.data.split_file import load_split
from fedfr_jax.errors import InputError
from fedfr_jax.runtime import fingerprints
from fedfr_jax.runtime.checkpoints import load_pytree
from fedfr_jax.runtime.json_file import plain
from fedfr_jax.runtime.simulation import Simulation

_DEPENDS_ON = ("seed", "data", "model", "pretrain")


def pretrained_key(config: Config) -> str:
    """A key that is the same for runs with the same pretrained backbone."""
    settings = to_dict(config)
    parts = {name: settings[name] for name in _DEPENDS_ON}
    parts |= {"clients": config.fed.num_clients, "mirror": config.fed.mirror}
    digest = hashlib.sha256(json.dumps(plain(parts), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def copy_pretrained(source: pathlib.Path, target: pathlib.Path) -> bool:
    """Copies a ``pretrained`` folder; it appears under its name only when it is complete.

    Returns:
      Whether it was copied: False if it is not complete, or the target exists.
    """
    if not (source / "backbone").is_dir() or target.exists():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    try:
        os.replace(temporary, target)
    except OSError:  # another process was faster
        shutil.rmtree(temporary)
        if not target.exists():
            raise
        return False
    return True


def folder_of_weights(path: str | os.PathLike) -> pathlib.Path:
    """The ``pretrained`` folder that ``model.weights`` names, directly or by a work directory."""
    folder = pathlib.Path(path)
    return folder / "pretrained" if (folder / "pretrained").is_dir() else folder


def saved_classifier(sim: Simulation) -> jax.Array | None:
    """(K_0, d) public class embeddings that were learned with the weights a run starts from.

    Returns:
      Those saved with the backbone in ``model.weights``, if the public people are the same: by the
      fingerprint and the split of that run, or, without these, by their number. None if there are
      none or (with a message) if they are of other people.

    Raises:
      InputError: they are of the same people, but damaged.
    """
    if not sim.config.model.weights or not sim.public.identities:
        return None
    folder = folder_of_weights(sim.config.model.weights)
    saved = folder / "public_embeddings"
    if not saved.is_dir():
        return None
    same = _same_public_people(sim, folder.parent)
    if same is not False:
        try:
            return load_pytree(
                saved, server_shapes(sim.spec, sim.public.identities).public_embeddings
            )
        except InputError:
            if same:
                raise
    logging.warning(
        "%s is not of the %d public people of this run; their class embeddings start "
        "as the means of their features",
        saved,
        sim.public.identities,
    )
    return None


def _same_public_people(sim: Simulation, run: pathlib.Path) -> bool | None:
    """Whether a run in a work directory has the same public people; None: unknown."""
    try:
        there = fingerprints.read_fingerprint(run)
        people = load_split(run / fingerprints.SPLIT).public_identities
    except InputError:
        return None
    return there.get("names") == fingerprints.fingerprint(sim)["names"] and np.array_equal(
        people, sim.split.public_identities
    )
