"""The data at the start of a run, so that a resumed run or an evaluation uses the same.

``fingerprint.json`` in the work directory holds digests of the identities, the split, the schedule
and availability of clients, and the pretrained model.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedfr_jax.atomic import write_text
from fedfr_jax.data.split_file import load_split, split_arrays
from fedfr_jax.data.types import FederatedSplit, ImageSource
from fedfr_jax.errors import DamagedError, InputError
from fedfr_jax.runtime.simulation import Simulation

NAME, SPLIT = "fingerprint.json", "split.npz"
_WHAT = {
    "identities": "the number of people",
    "images": "the number of images",
    "names": "people's names or their order",
    "labels": "how many images people have, or whose",
    "split": "who trains on whom",
    "schedule": "population.schedule",
    "availability": "population.availability",
    "speeds": "simulated_time.speeds",
    "bandwidths": "simulated_time.bandwidths",
    "pretrained": "the pretrained model",
    "classifier": "the public class embeddings learned with it",
}


def fingerprint(sim: Simulation) -> dict[str, Any]:
    """Digests of the data and the schedule; images themselves may be replaced."""
    population, time = sim.config.population, sim.config.simulated_time
    return {
        "identities": sim.source.num_identities,
        "images": len(sim.source.labels),
        "names": _names(sim.source),
        "labels": _array(sim.source.labels),
        "split": split_digest(sim.split),
        "schedule": _file(population.schedule),
        "availability": _file(population.availability),
        "speeds": _file(time.speeds),
        "bandwidths": _file(time.bandwidths),
    }


def split_digest(split: FederatedSplit) -> str:
    """SHA-256 of the split."""
    found = hashlib.sha256()
    for name, array in sorted(split_arrays(split).items()):
        found.update(f"{name} {array.shape}".encode())
        found.update(np.ascontiguousarray(array, np.int64).data)
    return found.hexdigest()


def write_fingerprint(folder: pathlib.Path, found: Mapping[str, Any]) -> None:
    """Writes ``fingerprint.json``, all of it or nothing."""
    write_text(folder / NAME, json.dumps(dict(found) | {"check": _check(found)}, indent=2) + "\n")


def read_fingerprint(folder: pathlib.Path) -> dict[str, Any]:
    """Reads ``fingerprint.json``.

    Raises:
      DamagedError: it is missing, or not as it was written.
    """
    path = folder / NAME
    try:
        found = json.loads(path.read_bytes())
        check, now = found.pop("check"), _check(found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path} is missing or damaged; restore it from a copy") from error
    if check != now:
        raise DamagedError(f"{path} is damaged; restore it from a copy")
    return found


def compare(folder: pathlib.Path, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises an error if the data differ from those at the start of the run.

    Args:
      folder: of the run, for the message.
      earlier: from :func:`read_fingerprint`; now: from :func:`fingerprint`.

    Raises:
      InputError: something differs.
    """
    changed = [key for key in now if key in earlier and earlier[key] != now[key]]
    if not changed:
        return
    counts = [
        f"{earlier[key]:,} {key} then, {now[key]:,} now"
        for key in ("identities", "images")
        if key in changed
    ]
    raise InputError(
        f"the run in {folder} was begun with other data: changed are "
        f"{', '.join(_WHAT[key] for key in changed)}{''.join(f' ({c})' for c in counts)}. The "
        "clients' state would belong to other people; restore the data (data.root may be another "
        "folder), or start in another --workdir"
    )


def check_split(folder: pathlib.Path, split: FederatedSplit) -> str:
    """Compares the split with the one that the run has saved.

    Returns:
      "", or the problem with the file if the fingerprint still confirms the split.

    Raises:
      InputError: the file holds another split.
    """
    path = folder / SPLIT
    try:
        saved = split_arrays(load_split(path))
    except InputError as error:
        return str(error)
    for name, array in split_arrays(split).items():
        if name not in saved or not np.array_equal(saved[name], array):
            raise InputError(
                f"{path} differs from the data in {name}: the file is damaged, or "
                "from another run; restore it, or delete it to have it made again"
            )
    return ""


def _check(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(content), sort_keys=True).encode()).hexdigest()


def _names(source: ImageSource) -> str:
    found, names = hashlib.sha256(), iter(source.identity_names)
    while some := list(itertools.islice(names, 10_000)):
        found.update("\0".join(map(str, some)).encode("utf-8", "surrogateescape") + b"\0")
    return found.hexdigest()


def _array(array: np.ndarray) -> str:
    found = hashlib.sha256()
    for start in range(0, len(array), 1 << 20):
        found.update(np.ascontiguousarray(array[start : start + (1 << 20)], np.int64).data)
    return found.hexdigest()


def _file(path: str | os.PathLike) -> str:
    if not path:
        return ""
    with pathlib.Path(path).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
