"""Activations of the part of a network that does not train, in place of images.

They are computed once per image (and mirror), when they are first read: for all of the clients'
images if they fit on the devices, else image by image into a file that is mapped into memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedfr_jax import engine
from fedfr_jax.algorithm.features import to_input, type_of
from fedfr_jax.atomic import write_text
from fedfr_jax.models.parts import activation_bytes
from fedfr_jax.population.images import ClientImages, StoredImages, plan_client_images
from fedfr_jax.runtime.checkpoints import digest_of
from fedfr_jax.runtime.embedding import in_batches, own_mesh
from fedfr_jax.runtime.fingerprints import split_digest
from fedfr_jax.runtime.progress import track
from fedfr_jax.runtime.simulation import Simulation

PyTree = Any
FOLDER = "activations"


def with_activations(
    sim: Simulation, pretrained: PyTree, folder: pathlib.Path, *, images: bool = True
) -> Simulation:
    """The simulation with activations of the lower part as its training and public images.

    Args:
      pretrained: variables of the whole network.
      folder: of this process' files.
      images: whether rounds follow; an evaluation alone does not need them.

    Returns:
      It as it was, where everything trains.
    """
    if sim.parts is None:
        return sim
    sim = dataclasses.replace(sim, frozen=jax.device_get(pretrained))
    if not images:
        return sim
    read = activations(sim)
    if sim.public_inputs is not None:
        return _in_a_file(sim, read, folder)
    with track("activations of what stays as pretrained", None, "", keep=False):
        public = engine.replicate(read(np.asarray(sim.public.images)), sim.layout.mesh)
        return dataclasses.replace(
            sim,
            public=sim.public.replace(images=public),
            client_images=_client_images(sim, read, folder),
        )


def trained_variables(sim: Simulation, variables: PyTree) -> PyTree:
    """Those of the whole network's variables that train."""
    return variables if sim.parts is None else sim.parts.trained(variables)


def lower_part(sim: Simulation) -> Callable[[np.ndarray], np.ndarray]:
    """``images (N, S, S, 3) uint8 -> (N, ...)`` what the trained part takes: for evaluation.

    Without parts the images themselves.
    """
    if sim.parts is None:
        return lambda images: images
    lower = sim.parts.lower
    run = in_batches(sim, lambda variables, x: lower(variables, to_input(x, type_of(variables))))
    return lambda images: run(sim.frozen, images)


def remembered(sim: Simulation) -> Callable[[np.ndarray], np.ndarray]:
    """:func:`lower_part` that computes each batch of images once, for evaluating several models.

    It keeps what it computed in the host's memory, up to ``data.resident_gib``.
    """
    lower = lower_part(sim)
    if sim.parts is None:
        return lower
    left = [sim.config.data.resident_gib * 2**30]
    known: dict[bytes, np.ndarray] = {}

    def run(images):
        key = hashlib.blake2b(np.ascontiguousarray(images), digest_size=16).digest()
        if key in known:
            return known[key]
        found = lower(images)
        if found.nbytes <= left[0]:
            left[0] -= found.nbytes
            known[key] = found
        return found

    return run


def activations(sim: Simulation) -> Callable[[np.ndarray], np.ndarray]:
    """``images -> (N, V, ...)``: of each image and, where images are mirrored, its mirror."""
    lower = lower_part(sim)

    def both(images):
        views = [images, images[:, :, ::-1]] if sim.config.fed.mirror else [images]
        return np.stack([lower(view) for view in views], axis=1)

    return both


def _client_images(sim: Simulation, read, folder: pathlib.Path) -> ClientImages:
    """On the devices where they fit, else in a file."""
    data, clients = sim.config.data, sim.split.clients
    size = int(clients.sizes.sum()) * activation_bytes(sim.backbone, sim.config.fed.mirror)
    fits = size <= data.resident_gib * 2**30 and data.images in ("auto", "resident")

    def compute(numbers):
        return read(sim.source.read(numbers))

    if not fits:
        compute = ActivationFile(folder / FOLDER, _key(sim), len(sim.source.labels), compute).read
    source = dataclasses.replace(sim.source, read=compute, describe=None, render=None, check=None)
    kind = dataclasses.replace(data, images="resident" if fits else "stream")
    return plan_client_images(kind, source, clients, sim.layout.mesh).opened()


def _in_a_file(sim: Simulation, read, folder: pathlib.Path) -> Simulation:
    """Activations in a file, of public images, too: for rounds in parts."""
    count, block = len(sim.source.labels), sim.config.eval.batch_size * own_mesh(sim).size

    def compute(numbers):
        blocks = (numbers[i : i + block] for i in range(0, len(numbers), block))
        return np.concatenate([read(sim.source.read(some)) for some in blocks])

    file = ActivationFile(folder / FOLDER, _key(sim), count, compute)
    source = dataclasses.replace(sim.source, read=file.read, describe=None, render=None, check=None)
    stored, mesh = dataclasses.replace(sim.config.data, images="stream"), sim.layout.mesh
    return dataclasses.replace(
        sim,
        public_inputs=StoredImages(source, sim.split.public_images),
        client_images=plan_client_images(stored, source, sim.split.clients, mesh),
    )


def _key(sim: Simulation) -> dict[str, Any]:
    """What the activations depend on."""
    return {
        "variables": digest_of(sim.frozen),
        "layers": list(sim.parts.frozen) if sim.parts else [],
        "source": sim.source.name,
        "degrade": dataclasses.asdict(sim.config.data.degrade),
        "split": split_digest(sim.split),
        "mirror": sim.config.fed.mirror,
        "dtype": sim.config.model.dtype,
    }


class ActivationFile:
    """Activations on disk, filled in as they are asked for.

    Rows have checksums: one that is not there yet, or is damaged, is computed.

    Args:
      folder: of the files; made anew where it holds activations of something else.
      key: what they depend on, as JSON.
      count: images of the source.
      compute: (n,) image numbers -> (n, V, ...) activations.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        key: dict[str, Any],
        count: int,
        compute: Callable[[np.ndarray], np.ndarray],
    ):
        self._folder, self._key, self._count, self._compute = folder, key, count, compute
        self._files: tuple[np.memmap, np.memmap] | None = None

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """(n, V, ...) activations of (n,) image numbers."""
        numbers = np.asarray(numbers)
        if self._files is None:
            self._files = self._open(self._compute(numbers[:1]))
        rows, sums = self._files
        wanted = np.unique(numbers)
        missing = wanted[[sums[n] != _checksum(rows[n]) for n in wanted]]
        if len(missing):
            rows[missing] = self._compute(missing)
            sums[missing] = [_checksum(rows[n]) for n in missing]
        return np.array(rows[numbers])

    def _open(self, example: np.ndarray) -> tuple[np.memmap, np.memmap]:
        """(rows, their checksums), those that are there if they are of the same kind."""
        shape, dtype = (self._count, *example.shape[1:]), example.dtype
        sizes = {"rows.bin": math.prod(shape) * dtype.itemsize, "checksums.bin": 8 * self._count}
        key = self._folder / "key.json"
        text = json.dumps(self._key | {"shape": shape, "type": str(dtype)}, sort_keys=True)
        paths = {self._folder / name: size for name, size in sizes.items()}
        same = key.exists() and key.read_bytes() == text.encode()
        if not (same and all(p.exists() and p.stat().st_size == n for p, n in paths.items())):
            self._folder.mkdir(parents=True, exist_ok=True)
            key.unlink(missing_ok=True)
            for path, size in paths.items():
                with path.open("wb") as file:
                    file.truncate(size)  # sparse
            write_text(key, text)
        rows, sums = paths
        return np.memmap(rows, dtype, "r+", shape=shape), np.memmap(sums, np.uint64, "r+")


def _checksum(row: np.ndarray) -> int:
    """CRC-32 of a row, never the 0 of a row that is not there."""
    return zlib.crc32(row.tobytes()) | 1 << 32
