"""A trained run, opened to be audited: its data, its models, its clients' state."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from fedfr_jax.algorithm.state import Heads, ServerState
from fedfr_jax.data.types import ImageSource
from fedfr_jax.evaluation.streaming import unit_rows
from fedfr_jax.population.store import RowStore
from fedfr_jax.runtime.activations import lower_part
from fedfr_jax.runtime.client_states import personal_models
from fedfr_jax.runtime.embedding import make_embed, make_personal_embed
from fedfr_jax.runtime.reopened import reopen
from fedfr_jax.runtime.simulation import Simulation

PyTree = Any


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The newest complete round of a run.

    Attributes:
      folder: the work directory.
      sim: data, split, network, settings.
      pretrained: variables of the trained part before the first round.
      server: the server's state.
      personal: ``client number -> (variables, transform)`` of its personalized model.
      stores: the clients' heads, read only.
    """

    folder: pathlib.Path
    sim: Simulation
    pretrained: PyTree
    server: ServerState
    personal: Callable[[int], tuple[PyTree, PyTree]]
    stores: Sequence[RowStore]

    @property
    def round(self) -> int:
        """Rounds done."""
        return int(self.server.round)

    @functools.cached_property
    def lower(self) -> Callable[[np.ndarray], np.ndarray]:
        """Images to the input of the trained part, each batch computed anew."""
        return lower_part(self.sim)

    @functools.cached_property
    def _embed(self):
        return make_embed(self.sim)

    @functools.cached_property
    def _personal_embed(self):
        return make_personal_embed(self.sim)

    def features(self, variables: PyTree, inputs: np.ndarray) -> np.ndarray:
        """(n, d) unit features of inputs, as :attr:`lower` makes them, under a shared model."""
        return unit_rows(self._embed(variables, inputs), "features")

    def personal_features(self, client: int, inputs: np.ndarray) -> np.ndarray:
        """(n, d) unit features under a client's personalized model."""
        return unit_rows(self._personal_embed(self.personal(client), inputs), "features")

    def raw_features(self, client: int, inputs: np.ndarray) -> np.ndarray:
        """(n, d) features under a client's own backbone, without its transform."""
        return self._embed(self.personal(client)[0], inputs)

    def touched(self) -> np.ndarray:
        """Ascending numbers of the clients that have a head of their own."""
        found = [store.touched() for store in self.stores]
        return np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def head(self, client: int) -> Heads:
        """A client's private state, without a leading axis; see :meth:`touched`."""
        store = self.stores[client % len(self.stores)]
        return jax.tree.map(lambda x: np.asarray(x[0]), store.read(np.array([client])))


@contextlib.contextmanager
def open_trained(
    folder: str | pathlib.Path, *, source: ImageSource | None = None, **changed: Any
) -> Iterator[TrainedRun]:
    """Opens a work directory for an audit; no other process may use it meanwhile.

    Args:
      folder: the work directory.
      source: the run's images, if they are already open.
      **changed: settings that may differ from the run's: ``data={"root": ...}`` if it was moved.

    Raises:
      InputError: there is no run or checkpoint, it is damaged, or the data have changed.
    """
    with reopen(folder, source, **changed) as run:
        server = jax.device_get(run.server)
        yield TrainedRun(
            run.folder,
            run.sim,
            jax.device_get(run.pretrained),
            server,
            personal_models(run.sim, run.stores, server.backbone),
            run.stores,
        )
