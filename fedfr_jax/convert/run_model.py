"""The models of a run, from the files of its work directory alone: its data are not needed."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from fedfr_jax.algorithm.initialize import head_shapes, server_shapes
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.config import Config, resolve
from fedfr_jax.convert.head import Head
from fedfr_jax.data.split_file import load_split
from fedfr_jax.errors import InputError
from fedfr_jax.models import Backbone, build
from fedfr_jax.models.parts import divide
from fedfr_jax.runtime import fingerprints, workdir
from fedfr_jax.runtime.checkpoints import RoundCheckpoints, load_pytree
from fedfr_jax.runtime.client_states import head_of, saved_stores
from fedfr_jax.runtime.resuming import state_to_read
from fedfr_jax.runtime.simulation import make_spec

PyTree = Any


@dataclasses.dataclass(frozen=True)
class RunModel:
    """A model of a run.

    Attributes:
      backbone: the whole network; ``variables``: its values.
      config: the run's settings.
      rounds: done before it; 0: as pretrained.
      head: the client's own transform and classifiers; None: of the global model, or the method
        has none.
    """

    backbone: Backbone
    variables: PyTree
    config: Config
    rounds: int
    head: Head | None = None


def is_run(folder: pathlib.Path) -> bool:
    """Whether a folder is a run's work directory."""
    return (folder / workdir.CONFIG).is_file()


def model_of_run(folder: pathlib.Path, client: int | None = None) -> RunModel:
    """The newest global model of a run, or a client's own.

    Args:
      folder: the work directory; nothing is written there.
      client: whose backbone, as it was after its last local training, and head; None: the server's.

    Raises:
      InputError: there is no run or no model yet, it is damaged, or the client has none.
    """
    if not is_run(folder):
        raise InputError(f"{folder} is no work directory: it has no {workdir.CONFIG}")
    config = resolve(workdir.read_config(folder))
    network = build(config.model, config.data.image_size, "grouped")
    parts = divide(network, config.fed.trainable)
    example = jax.eval_shape(network.init, jax.random.key(0))
    rounds, variables, head = _newest(folder, config, client)
    if variables is None or parts is not None:
        pretrained = load_pytree(folder / "pretrained" / "backbone", example)
        variables = (
            pretrained
            if parts is None
            else parts.joined(
                pretrained, parts.trained(pretrained) if variables is None else variables
            )
        )
    return RunModel(network, jax.device_get(variables), config, rounds, head)


def _newest(
    folder: pathlib.Path, config: Config, client: int | None
) -> tuple[int, PyTree | None, Head | None]:
    """(round, variables of the trained part, head); (0, None, None) before the first round."""
    spec = make_spec(config)
    with contextlib.ExitStack() as files:
        checkpoints = files.enter_context(RoundCheckpoints(folder))
        if not checkpoints.rounds():
            if client is not None:
                raise InputError(f"{folder} has no round yet, so no client has a model of its own")
            return 0, None, None
        split = load_split(folder / fingerprints.SPLIT)
        stores = []
        if client is not None:
            _check_client(config, client, len(split.clients))
            most, public = int(split.clients.identity_counts.max()), len(split.public_identities)
            heads = head_shapes(spec, most, config.population.previous, public)
            opened = saved_stores(heads, len(split.clients), folder)
            stores = [files.enter_context(store) for store in opened]
        example = server_shapes(spec, len(split.public_identities))
        found = state_to_read(checkpoints, example, stores)
        assert found is not None  # there are checkpoints
        rounds, server = found
        if client is None:
            return rounds, server.backbone, None
        store = stores[client % len(stores)]
        try:
            row = head_of(store, client)
        except KeyError as error:
            raise InputError(f"{folder}: {error.args[0]}") from error
        count = int(split.clients.identity_counts[client])
        return rounds, *_own(spec, row, server.backbone, count, folder)


def _check_client(config: Config, client: int, clients: int) -> None:
    if config.recipe.union:
        raise InputError(f"{config.recipe.title} trains one model for all; leave --client out")
    if not 0 <= client < clients:
        raise InputError(f"client {client}: there are the clients 0 to {clients - 1}")


def _own(
    spec: RoundSpec, row: dict[str, Any], backbone: PyTree, identities: int, folder: pathlib.Path
) -> tuple[PyTree, Head | None]:
    """A client's (variables of the trained part, head)."""
    if row["previous"] is None:
        raise InputError(f"{folder}: clients' backbones were not kept (population.previous=off)")
    variables = jax.tree.map(lambda v, like: np.asarray(v, like.dtype), row["previous"], backbone)
    kind = spec.terms.transform
    if not spec.uses_binary or kind == "none":
        return variables, None
    weight, bias = (row[f"binary_{name}"][:identities] for name in ("weight", "bias"))
    return variables, Head(kind, row["transform"], weight, bias)
