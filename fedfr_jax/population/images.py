"""Where the clients' training images are: on the devices, streamed there, or rendered there."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedfr_jax import engine
from fedfr_jax.data.batches import equal_batches
from fedfr_jax.data.types import Clients, ImageSource
from fedfr_jax.errors import InputError
from fedfr_jax.population.cohort_data import CohortData
from fedfr_jax.population.feed import CohortRows
from fedfr_jax.settings import DataConfig


@dataclasses.dataclass(frozen=True)
class StoredImages:
    """Images of a source, read whenever they are indexed: like an array, without its memory.

    Attributes:
      source: the data set.
      numbers: (N,) int image numbers.
    """

    source: ImageSource
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, at) -> np.ndarray:
        """(n, S, S, 3) uint8 images at a slice or (n,) positions, or the one at a number."""
        if np.ndim(self.numbers[at]):
            return self.source.read(self.numbers[at])
        return self.source.read(self.numbers[at][None])[0]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the array."""
        return len(self), self.source.image_size, self.source.image_size, 3


@dataclasses.dataclass(frozen=True)
class ClientImages:
    """Turns a cohort's image numbers into the input data of a round.

    Attributes:
      source: the data set.
      mesh: the devices.
      kind: resident | stream | render.
      numbers: (T,) ascending image numbers of the resident table, or None.
      table: (T, S, S, 3) uint8 on every device, or activations (T, V, ...); None before
        :meth:`opened`, and without a resident table.
    """

    source: ImageSource
    mesh: Mesh
    kind: str
    numbers: Any = None
    table: Any = None

    def opened(self) -> ClientImages:
        """With the table on the devices, where it is resident."""
        if self.kind == "resident":
            table = engine.replicate(self.source.read(self.numbers), self.mesh)
            return dataclasses.replace(self, table=table)
        return self

    def cohort_data(self, rows: CohortRows) -> CohortData:
        """Puts a cohort's data on the devices; each process its own clients'."""
        mine = _rows_of_process(rows)
        if self.kind == "resident":
            images = self.table
        elif self.kind == "stream":
            images = engine.spread(_read_used(self.source, mine), self.mesh)
        else:
            images = _render(self.source, self.mesh, mine)
        return engine.spread(self._lists(mine), self.mesh).replace(images=images)

    def cohort_shapes(self, rows: CohortRows) -> CohortData:
        """Shapes, types and shardings of :meth:`cohort_data`, known before images are read."""
        size, resident = self.source.image_size, self.kind == "resident"
        count = len(self.numbers if resident else rows.numbers)
        images = jax.ShapeDtypeStruct((count, size, size, 3), np.uint8)
        lists = engine.placed_shapes(self._lists(rows), self.mesh, divided=True)
        return lists.replace(images=engine.placed_shapes(images, self.mesh, divided=not resident))

    def _lists(self, rows: CohortRows) -> CohortData:
        """A cohort without its images, on the host."""
        table_rows = None
        if self.kind == "resident":
            table_rows = np.searchsorted(self.numbers, rows.numbers).astype(np.int32)
        return CohortData(
            images=None,
            table_rows=table_rows,
            used=rows.used,
            rows=rows.rows,
            labels=rows.labels,
            sizes=rows.sizes,
            identities=rows.identities,
            clients=rows.clients,
        )

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """(n, S, S, 3) uint8 training images of clients, on the host."""
        if self.kind == "resident":
            return _rows(self.table.addressable_data(0), np.searchsorted(self.numbers, numbers))
        return self.source.read(numbers)


def _rows(table: jax.Array, places: np.ndarray) -> np.ndarray:
    """Some rows of a table on a device, fetched in blocks of one size: one program for any number.

    Args:
      table: (T, ...); places: (n,).
    """
    block = 256
    out = np.empty((len(places), *table.shape[1:]), table.dtype)
    for i, (count, some) in enumerate(equal_batches(places, block)):
        out[i * block : i * block + count] = np.asarray(_taken(table, some))[:count]
    return out


@jax.jit
def _taken(table, places):
    return jnp.take(table, places, axis=0, mode="clip")


def _rows_of_process(rows: CohortRows) -> CohortRows:
    """The part that belongs to this process' devices."""
    processes, me = jax.process_count(), jax.process_index()

    def part(x):
        size = len(x) // processes
        return x[me * size : (me + 1) * size]

    return CohortRows(**{f.name: part(getattr(rows, f.name)) for f in dataclasses.fields(rows)})


def _read_used(source: ImageSource, rows: CohortRows) -> np.ndarray:
    """The devices' lists of images; unused entries stay black and are not read."""
    capacity = len(rows.numbers) // len(rows.used)
    used = (np.arange(capacity) < rows.used[:, None]).reshape(-1)
    read = source.read(rows.numbers[used] if used.any() else rows.numbers[:1])
    images = np.zeros((len(used), *read.shape[1:]), read.dtype)
    images[used] = read if used.any() else 0
    return images


def _render(source: ImageSource, mesh: Mesh, rows: CohortRows):
    assert source.describe is not None  # checked by plan_client_images()
    described = engine.spread((source.describe(rows.numbers), rows.used), mesh)
    return _compiled_render(source.render, mesh)(*described)


@functools.cache  # one program per source and mesh: later rounds compile nothing
def _compiled_render(render, mesh):
    block = 64  # images rendered at once on a device; bounds the working memory

    def on_one_device(unused, device):
        arrays, used = device
        positions = jnp.arange(len(jax.tree.leaves(arrays)[0]))
        return engine.loop_blocks(
            lambda p: render(**jax.tree.map(lambda x: x[p], arrays)),
            positions,
            used[0],
            block=block,
        )

    return jax.jit(
        lambda arrays, used: engine.on_each_device(on_one_device, (), (arrays, used), mesh=mesh)
    )


def training_bytes(clients: Clients, image_size: int) -> int:
    """Bytes of all clients' training images."""
    return int(clients.sizes.sum()) * image_size**2 * 3


def choose_kind(config: DataConfig, source: ImageSource, clients: Clients) -> str:
    """Resolves ``data.images`` = auto."""
    if config.images != "auto":
        return config.images
    if training_bytes(clients, source.image_size) <= config.resident_gib * 2**30:
        return "resident"
    return "render" if source.render is not None else "stream"


def plan_client_images(
    config: DataConfig, source: ImageSource, clients: Clients, mesh: Mesh
) -> ClientImages:
    """The clients' images as ``data.images`` says, to be opened; nothing is read.

    Raises:
      InputError: the source cannot be rendered.
    """
    kind = choose_kind(config, source, clients)
    if kind == "render" and source.render is None:
        raise InputError(
            f"data.images is 'render', but {source.name} cannot be rendered; "
            "use 'resident' or 'stream'"
        )
    numbers = None
    if kind == "resident":
        numbers = np.unique(clients.training(np.arange(len(clients)))[0])
    return ClientImages(source, mesh, kind, numbers)
