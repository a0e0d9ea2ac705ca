"""A run as its work directory has it: opened to be looked at, not to go on."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from fedfr_jax.algorithm.state import ServerState
from fedfr_jax.config import Config, merged, resolve, to_dict
from fedfr_jax.data.types import ImageSource
from fedfr_jax.engine import use_cpu_devices
from fedfr_jax.population.store import RowStore
from fedfr_jax.runtime import resuming, workdir
from fedfr_jax.runtime.activations import trained_variables, with_activations
from fedfr_jax.runtime.changes import check_changes
from fedfr_jax.runtime.checkpoints import RoundCheckpoints
from fedfr_jax.runtime.client_states import open_stores
from fedfr_jax.runtime.lock import WorkdirLock
from fedfr_jax.runtime.simulation import Simulation, build_simulation

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Reopened:
    """The newest complete round of a run: server and clients are of the same round.

    Attributes:
      folder: the work directory.
      config: its settings, with those that were given anew.
      sim: data, split, network.
      pretrained: variables of the trained part before the first round.
      server: the server's state.
      stores: the clients' heads, read only.
    """

    folder: pathlib.Path
    config: Config
    sim: Simulation
    pretrained: PyTree
    server: ServerState
    stores: Sequence[RowStore]


@contextlib.contextmanager
def reopen(
    folder: str | pathlib.Path, source: ImageSource | None = None, **changed: Any
) -> Iterator[Reopened]:
    """Opens a work directory; no other process may use it meanwhile.

    If the newest checkpoint is damaged, the one before is used, with a warning.

    Args:
      folder: the work directory.
      source: the run's images, if they are already open.
      **changed: settings that may differ from the run's: ``data={"root": ...}`` if it was moved.

    Raises:
      InputError: there is no run or checkpoint, or it is damaged, or the data have changed.
    """
    folder = pathlib.Path(folder).expanduser()
    earlier = workdir.read_config(folder)
    config = resolve(merged(earlier, changed))
    check_changes(folder, earlier, to_dict(config))
    use_cpu_devices(config.engine.cpu_devices)
    with contextlib.ExitStack() as files:
        files.enter_context(WorkdirLock(folder))
        sim = build_simulation(config, source)
        resuming.check_data(sim, folder)
        pretrained = resuming.load_pretrained(sim, folder)
        checkpoints = files.enter_context(RoundCheckpoints(folder))
        sim = with_activations(sim, pretrained, folder, images=False)
        pretrained = trained_variables(sim, pretrained)
        stores = [files.enter_context(store) for store in open_stores(sim, folder)]
        server = resuming.state_to_evaluate(sim, checkpoints, stores)
        yield Reopened(folder, config, sim, pretrained, server, stores)
