"""The models of a finished or running work directory; its data are not needed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import fedfr_jax
from fedfr_jax.algorithm.initialize import head_shapes, server_shapes
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.config import Config, resolve
from fedfr_jax.data.split_file import load_split
from fedfr_jax.errors import DamagedError, InputError
from fedfr_jax.evaluation import names
from fedfr_jax.export.network import TRANSFORM, Architecture, on_host
from fedfr_jax.models import build
from fedfr_jax.models.parts import Parts, divide
from fedfr_jax.runtime import workdir
from fedfr_jax.runtime.checkpoints import RoundCheckpoints, load_pytree, saved_rounds
from fedfr_jax.runtime.client_states import models_of, saved_stores
from fedfr_jax.runtime.fingerprints import SPLIT
from fedfr_jax.runtime.json_file import json_text
from fedfr_jax.runtime.resuming import check_pretrained, state_to_read
from fedfr_jax.runtime.simulation import make_spec

PyTree = Any
_TRIES = 3  # to read a run that goes on meanwhile


@dataclasses.dataclass(frozen=True)
class Weights:
    """One model of a run.

    Attributes:
      architecture: its settings.
      arrays: name -> array, those of :meth:`Architecture.shapes`.
      client: whose it is; None: everybody's.
      variant: one of ``names.SHARED``, or with a client of ``names.OF_CLIENTS``.
    """

    architecture: Architecture
    arrays: dict[str, np.ndarray]
    client: int | None
    variant: str


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """The newest complete round of a run.

    Attributes:
      folder: the work directory.
      config: its settings.
      round: rounds done.
      clients: number of clients of the split.
    """

    folder: pathlib.Path
    config: Config
    round: int
    clients: int
    _spec: RoundSpec
    _parts: Parts | None
    _backbone: PyTree  # of the global model's trained part
    _personal: Callable[[int], tuple[PyTree, PyTree]]

    def weights(self, client: int | None = None, variant: str | None = None) -> Weights:
        """The whole network of a model, also where only its upper part trains.

        Args:
          client: whose; None: the global model.
          variant: see :class:`Weights`; None: the personalized or the global model.

        Raises:
          InputError: there is no such client or variant, or the run went on and its state of
            this round is gone.
        """
        variant = self.check(client, variant)
        spec = self._spec
        transform = spec.terms.transform if spec.uses_binary else "none"
        if client is None:
            if variant == names.PRETRAINED:
                return self._made(self._pretrained, {}, "none", client, variant)
            return self._made(self._whole(self._backbone), {}, "none", client, variant)
        own, head = self._read(client)
        if variant == names.MEAN:
            own = jax.tree.map(lambda a, b: (a + b) / 2, own, self._backbone)
        if variant == names.GLOBAL_TRANSFORM:
            own = self._backbone
        if variant in (names.MEAN, names.OWN_BACKBONE) or transform == "none":
            head, transform = {}, "none"
        return self._made(self._whole(own), head, transform, client, variant)

    def check(self, client: int | None, variant: str | None) -> str:
        """The variant's name, if there is such a model.

        Raises:
          InputError: there is none.
        """
        known = names.SHARED if client is None else names.OF_CLIENTS
        variant = known[0] if variant is None else variant
        if variant not in known:
            raise InputError(
                f"variant {variant!r}: {'without' if client is None else 'with'} a client there "
                f"are {', '.join(known)}"
            )
        is_number = isinstance(client, (int, np.integer)) and not isinstance(client, bool)
        if client is not None and not (is_number and 0 <= client < self.clients):
            raise InputError(f"client {client!r}: there are the clients 0 to {self.clients - 1}")
        transforms = self._spec.uses_binary and self._spec.terms.transform != "none"
        if variant in (names.OWN_BACKBONE, names.GLOBAL_TRANSFORM) and not transforms:
            raise InputError(
                f"variant {variant!r}: {self.config.recipe.title} has no transform; use "
                f"{names.PERSONALIZED!r} or {names.MEAN!r}"
            )
        return variant

    def _read(self, client: int) -> tuple[PyTree, PyTree]:
        """A client's own model; a running run may not have replaced it meanwhile."""
        try:
            found = jax.device_get(self._personal(client))
        except DamagedError:
            self._check_there()
            raise
        self._check_there()
        return found

    def _check_there(self) -> None:
        # A run deletes a checkpoint before it releases the clients' state of that round.
        if self.round not in saved_rounds(self.folder):
            raise InputError(
                f"{self.folder} has gone on since, and its state of round {self.round} is "
                "replaced; export again, or fewer clients at once"
            )

    @functools.cached_property
    def _pretrained(self) -> PyTree:
        """Variables of the whole network before the first round."""
        init = self.architecture().backbone("grouped").init
        example = jax.eval_shape(init, jax.random.key(0))
        found = load_pytree(self.folder / "pretrained" / "backbone", example)
        check_pretrained(self.folder, pretrained=found)
        return jax.device_get(found)

    def architecture(self, transform: str = "none") -> Architecture:
        """The settings of the whole network."""
        return Architecture.of(self.config.model, self.config.data.image_size, transform)

    def _whole(self, trained: PyTree) -> PyTree:
        if self._parts is None:
            return trained
        return self._parts.joined(self._pretrained, trained)

    def _made(
        self, variables: PyTree, head: PyTree, transform: str, client: int | None, variant: str
    ) -> Weights:
        arrays = on_host({**variables, TRANSFORM: head})
        return Weights(self.architecture(transform), arrays, client, variant)

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """The run, for the card."""
        config = workdir.read_config(self.folder)
        return {
            "name": self.folder.resolve().name,
            "method": self.config.method.name,
            "rounds": self.round,
            "seed": self.config.seed,
            "clients": self.clients,
            "data": self.config.data.source,
            "config_sha256": hashlib.sha256(json_text(config).encode()).hexdigest(),
            "fedfr_jax": fedfr_jax.__version__,
            "jax": jax.__version__,
        }

    @functools.cached_property
    def metrics(self) -> dict[str, Any]:
        """Variant -> what ``summary.json`` says of it, if it was evaluated after this round."""
        if not (self.folder / workdir.SUMMARY).exists():
            return {}
        summary = workdir.read_summary(self.folder)
        of_round = summary.get("run", {}).get("rounds") == self.round
        return summary.get("models", {}) if of_round else {}


@contextlib.contextmanager
def open_saved(folder: str | pathlib.Path) -> Iterator[SavedRun]:
    """Opens a work directory for reading; another process may be training in it.

    Raises:
      InputError: there is no run or checkpoint, or it is damaged.
    """
    folder = pathlib.Path(folder).expanduser()
    config = resolve(workdir.read_config(folder))
    with contextlib.ExitStack() as files:
        for left in reversed(range(_TRIES)):
            try:
                run = _open(folder, config, files)
                run._check_there()
                break
            except InputError:
                if not left or not saved_rounds(folder):
                    raise
        yield run


def _open(folder: pathlib.Path, config: Config, files: contextlib.ExitStack) -> SavedRun:
    spec = make_spec(config)
    parts = divide(build(config.model, config.data.image_size, "grouped"), config.fed.trainable)
    split = load_split(folder / SPLIT)
    clients = split.clients.union() if config.recipe.union else split.clients
    most, public = int(clients.identity_counts.max()), len(split.public_identities)
    heads = head_shapes(spec, most, config.population.previous, public)
    server = server_shapes(spec, public)
    checkpoints = files.enter_context(RoundCheckpoints(folder))
    if not checkpoints.rounds():
        raise InputError(
            f"{folder} holds no checkpoint: no round of the run was saved yet; wait for one, or "
            "train with --resume"
        )
    stores = [files.enter_context(s) for s in saved_stores(heads, len(clients), folder)]
    found = state_to_read(checkpoints, server, stores)
    if found is None:
        raise InputError(f"{folder} holds no checkpoint; train with --resume")
    round_index, state = found
    return SavedRun(
        folder,
        config,
        round_index,
        len(split.clients),
        spec,
        parts,
        jax.device_get(state.backbone),
        models_of(spec, stores, state.backbone),
    )
