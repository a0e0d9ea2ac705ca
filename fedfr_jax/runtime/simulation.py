"""A simulation put together from its settings: data, split, model, compiled round.

A thin shell: everything it calls is a pure function of arrays, usable without it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from fedfr_jax import data as data_sources
from fedfr_jax import engine
from fedfr_jax.algorithm.hostile import hostile_clients
from fedfr_jax.algorithm.spec import MessageSpec, RoundSpec
from fedfr_jax.config import Config
from fedfr_jax.config.batch_norm_checks import check_batch_norm
from fedfr_jax.data.attributes import features_of
from fedfr_jax.data.degrade import degraded
from fedfr_jax.data.held_out import HeldOut, evaluated_clients, read_held_out
from fedfr_jax.data.split import make_split
from fedfr_jax.data.types import Clients, FederatedSplit, ImageSource, VerificationSet
from fedfr_jax.data.verification_sets import held_out_pairs, sets_from_files
from fedfr_jax.engine.convolutions import default_strategy
from fedfr_jax.engine.layout import Layout
from fedfr_jax.errors import ConfigError, InputError
from fedfr_jax.models import Backbone, build
from fedfr_jax.models.parts import Parts, divide, trained_part
from fedfr_jax.population.cohort_data import CohortData, PublicData
from fedfr_jax.population.images import (
    ClientImages,
    StoredImages,
    choose_kind,
    plan_client_images,
)
from fedfr_jax.population.pace import ClientPace, client_pace
from fedfr_jax.population.parts import CohortParts, Part, make_parts
from fedfr_jax.population.schedule import Schedule, make_schedule
from fedfr_jax.runtime import accounting, costs, memory
from fedfr_jax.runtime.autotune import settle
from fedfr_jax.runtime.compilation_cache import use_compilation_cache
from fedfr_jax.runtime.layouts import cohort_size, most_lanes
from fedfr_jax.runtime.progress import track

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Simulation:
    """Everything that does not change from round to round.

    Attributes:
      config: the settings.
      source: where images come from; ``split``: which client holds which images.
      public: the public images, on every device; without images in parts, and before they are read.
      public_inputs: where rounds run in parts: the public images (or activations), as stored.
      parts_of_rounds: then, which clients are on the devices at a time.
      client_images: where the clients' training images are.
      schedule: the cohorts of all rounds; ``schedule.clients`` are the training clients, which in
        some methods are not those of the split.
      file_sets: pairs of people that are not used for training, from files.
      network: the whole network, where its weights are shared (pretraining, evaluation).
      parts: where ``fed.trainable`` divides it; None: everything trains.
      spec: what a client does; its network may compute convolutions otherwise.
      frozen: the pretrained variables of the whole network, below which nothing trains; None
        without parts, and before :func:`fedfr_jax.runtime.activations.with_activations`.
      layout: devices and lanes.
      pace: how fast the clients are; None where rounds have no simulated duration.
    """

    config: Config
    source: ImageSource
    split: FederatedSplit
    public: PublicData
    client_images: ClientImages
    schedule: Schedule
    file_sets: tuple[VerificationSet, ...]
    network: Backbone
    parts: Parts | None
    spec: RoundSpec
    layout: Layout
    frozen: PyTree = None
    pace: ClientPace | None = None
    public_inputs: StoredImages | None = None
    parts_of_rounds: CohortParts | None = None

    @property
    def backbone(self) -> Backbone:
        """The part of the network that trains, where its weights are shared."""
        return self.network if self.parts is None else self.parts.upper

    @functools.cached_property
    def held_out(self) -> HeldOut:
        """Images of the evaluated clients' identities that are not used for training.

        Read when they are first asked for, so that the first round need not wait.
        """
        with track("reading test images", None, "", keep=False):
            return read_held_out(self.source, self.split, _evaluated(self.config, self.split))

    @functools.cached_property
    def generic(self) -> tuple[VerificationSet, ...]:
        """Pairs of people that are not used for training; those of the split as ``held_out``."""
        with track("reading pairs of held-out people", None, "", keep=False):
            return held_out_pairs(self.source, self.split) + self.file_sets

    def cohort_data(self, assigned: np.ndarray, mine: np.ndarray) -> CohortData:
        """The data of a round's clients on the devices.

        Args:
          assigned: (C,) client in each slot of all devices; ``mine``: of this process' devices.
        """
        return self._with_pace(self.client_images.cohort_data(self.schedule.rows(assigned)), mine)

    def cohort_shapes(self, assigned: np.ndarray) -> CohortData:
        """Shapes, types and shardings of :meth:`cohort_data`, in one process."""
        cohort = self.client_images.cohort_shapes(self.schedule.rows(assigned))
        if self.pace is None:
            return cohort
        pace = engine.placed_shapes(self.pace.of(assigned), self.layout.mesh, divided=True)
        return cohort.replace(pace=pace)

    def part_data(self, part: Part) -> CohortData:
        """The data of a part of a round's clients on the devices."""
        assert self.parts_of_rounds is not None  # engine.part is set
        rows = self.parts_of_rounds.rows(part)
        return self._with_pace(self.client_images.cohort_data(rows), part.clients)

    def _with_pace(self, cohort: CohortData, mine: np.ndarray) -> CohortData:
        if self.pace is None:
            return cohort
        return cohort.replace(pace=engine.spread(self.pace.of(mine), self.layout.mesh))


def make_layout(config: Config) -> Layout:
    """Devices and lanes for these settings; lanes never exceed a cohort."""
    clients, settings = cohort_size(config), config.engine
    devices = jax.devices() if jax.process_count() > 1 else jax.devices()[:clients]
    counts = collections.Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        raise InputError(
            f"the processes have different numbers of devices ({dict(counts)}, by process); start "
            "all of them with the same number"
        )
    mesh = engine.make_mesh(devices)
    return Layout(
        mesh,
        min(settings.lanes, most_lanes(config, mesh.size)),
        settings.feature_batch,
        settings.gradient_batch,
        settings.cache_features,
        settings.unroll_lanes,
    )


def make_spec(config: Config) -> RoundSpec:
    """What a client does; its network is the part that trains."""
    network = build(config.model, config.data.image_size, config.engine.conv)
    return spec_of(config, trained_part(network, config.fed.trainable))


def spec_of(config: Config, backbone: Backbone) -> RoundSpec:
    """The method that ``config.method`` names, on this network.

    Raises:
      InputError: the method needs something that the network does not have.
    """
    message = MessageSpec(
        config.privacy,
        config.hostile,
        hostile_clients(config.hostile, config.fed.num_clients),
        config.population.late_dropout,
        config.population.cohort or config.fed.num_clients,
        config.simulated_time.deadline,
        config.simulated_time.first,
    )
    spec = RoundSpec(backbone, config.fed, config.loss, config.recipe, config.options, message)
    variables = jax.eval_shape(backbone.init, jax.random.key(0))
    spec.private(variables)
    _check_turns(spec)
    if jax.tree.leaves(variables["batch_stats"]):
        check_batch_norm(config)
    return spec


def _check_turns(spec: RoundSpec) -> None:
    """If head and body are trained in turns, each must be trained in every round."""
    turn = spec.recipe.heads_turn
    if turn is None:
        return
    for epochs in sorted(set(spec.fed.local_epochs)):
        turns = {bool(turn(spec.options, epoch, epochs)) for epoch in range(epochs)}
        if turns != {True, False}:
            raise ConfigError(
                f"fed.local_epochs has {epochs}, but with {spec.recipe.title} head and body take "
                f"turns, and the {'body' if turns == {True} else 'head'} would not be trained in "
                "such a round; give more epochs, or change the settings of method.name"
            )


def _warn_of_single_identities(config: Config, clients: Clients) -> None:
    """Warns of clients with one class: a softmax over one class trains nothing."""
    alone = int((clients.identity_counts == 1).sum())
    if (
        alone
        and config.fed.public_data == "off"
        and config.recipe.trains
        and not config.recipe.terms(config.options).positive_margin
    ):
        logging.warning(
            "%d of %d clients have a single identity and no public images: a softmax over one "
            "class is 0, so that they learn nothing from it. Set fed.public_data, "
            "method.name=fedface, or data.split.identities_per_client",
            alone,
            len(clients),
        )


def split_of(config: Config, source: ImageSource) -> FederatedSplit:
    """Who has which images; raises InputError where the data cannot be split as asked."""
    return make_split(
        source.labels,
        config.fed.num_clients,
        config.data.split,
        config.data.seed,
        min_client_images=config.fed.least_images,
        features=features_of(source, config.data.split, track),
    )


def build_simulation(
    config: Config,
    source: ImageSource | None = None,
    planned: Callable[[Simulation], None] | None = None,
) -> Simulation:
    """Opens the data, splits it, settles the plan, builds the model and reads the images.

    Args:
      config: from :func:`fedfr_jax.config.resolve`; automatic settings are decided here.
      source: the image source of ``config.data``, if it is already open.
      planned: called with the simulation before its images are read, which may take long.

    Raises:
      ConfigError, InputError: a setting or a file does not fit, before any long work.
    """
    sim = _plan(config, source)
    if planned is not None:
        planned(sim)
    with track("reading images", None, "", keep=False):
        return read_images(sim)


def _plan(config: Config, source: ImageSource | None) -> Simulation:
    """All but the images."""
    memory.check_plan(config)
    use_compilation_cache(config.engine.compilation_cache)
    if source is None:
        with track("opening the data", None, "", keep=False):
            source = data_sources.open_source(config.data)
    split = split_of(config, source)
    source = degraded(source, config.data.degrade, config.data.seed, split.clients)
    _check_public_images(config, split)
    file_sets = sets_from_files(config.data, source, split)
    config = settle(config)
    layout = make_layout(config)
    clients = split.clients.union() if config.recipe.union else split.clients
    _warn_of_single_identities(config, clients)
    schedule = make_schedule(
        config.population, config.rounds, config.seed, clients, layout.mesh.size
    )
    config = accounting.settled(config, schedule)
    accounting.spent(config, schedule, 1)  # fails now where a package is missing
    spec = make_spec(config)
    network = build(config.model, config.data.image_size, default_strategy())
    parts = divide(network, config.fed.trainable)
    pace = _pace(config, spec, split)
    kind = choose_kind(config.data, source, split.clients)
    memory.check_images(config, source.labels, split, kind, schedule, spec)
    memory.say_messages(config, spec, schedule, len(split.public_identities))
    public = PublicData(None, split.public_labels.astype(np.int32), len(split.public_identities))
    # Where the network is divided, activations replace the clients' images before the first round.
    images = config.data if parts is None else dataclasses.replace(config.data, images="stream")
    client_images = plan_client_images(images, source, split.clients, layout.mesh)
    return Simulation(
        config,
        source,
        split,
        public,
        client_images,
        schedule,
        file_sets,
        network,
        parts,
        spec,
        layout,
        pace=pace,
        public_inputs=StoredImages(source, split.public_images) if config.engine.part else None,
        parts_of_rounds=make_parts(schedule, config.engine.part) if config.engine.part else None,
    )


def _pace(config: Config, spec: RoundSpec, split: FederatedSplit) -> ClientPace | None:
    identities = float(split.clients.identity_counts.mean())
    sent = costs.message_bytes(spec, len(split.public_identities), identities)
    return client_pace(config.simulated_time, len(split.clients), sent)


def read_images(sim: Simulation) -> Simulation:
    """With the images of the public people and of the clients; those read later are checked."""
    _check_stored_images(sim)
    public = sim.public
    if sim.public_inputs is None:
        public = public.replace(images=sim.source.read(sim.split.public_images))
    # The host's copy is released before the clients' images are read.
    public = engine.replicate(public, sim.layout.mesh)
    return dataclasses.replace(sim, public=public, client_images=sim.client_images.opened())


def _check_stored_images(sim: Simulation) -> None:
    """Raises InputError for a damaged image, or it would show in the middle of the run."""
    source, split = sim.source, sim.split
    if source.check is None:
        return
    tested, _ = split.clients.verification(_evaluated(sim.config, split))
    numbers = [split.pairs.reshape(-1), tested]
    if sim.public_inputs is not None:
        numbers.append(split.public_images)
    if sim.client_images.kind == "stream":
        numbers.append(split.clients.union()[0].train_images)
    source.check(np.unique(np.concatenate(numbers)))


def _evaluated(config: Config, split: FederatedSplit) -> np.ndarray:
    return evaluated_clients(len(split.clients), config.eval.clients, config.data.seed)


def _check_public_images(config: Config, split: FederatedSplit) -> None:
    """Pretraining, and rounds with public data, need public images."""
    uses_public = config.fed.public_data != "off"
    if not len(split.public_images) and (uses_public or config.pretrain.epochs):
        raise ConfigError(
            "data.split leaves no public identities, but fed.public_data="
            f"{config.fed.public_data!r} and pretrain.epochs="
            f"{config.pretrain.epochs} need them"
        )
