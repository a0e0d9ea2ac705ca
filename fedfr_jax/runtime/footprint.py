"""The memory of a run by part, from sizes that follow from the settings.

Each part has the phases in which it exists; the peak is that of the phase in which the sum is
largest. Sizes of arrays are exact. Working memory of compiled programs comes from the compiler
(:mod:`fedfr_jax.runtime.step_memory`), and the rest of it from the shapes of the round's largest
temporary arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from fedfr_jax.algorithm.hard_negatives import BLOCK
from fedfr_jax.algorithm.initialize import head_shapes, server_shapes
from fedfr_jax.algorithm.local_state import initial_state
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.config import Config
from fedfr_jax.models import build
from fedfr_jax.models.parts import activation_bytes, is_divided
from fedfr_jax.population.parts import capacity_for
from fedfr_jax.population.row_layout import RowLayout
from fedfr_jax.runtime.counts import Counts
from fedfr_jax.runtime.step_memory import StepMemory

PyTree = Any
TABLES = "labels, split, schedule"
READING, PRETRAINING, ROUNDS, EVALUATION = "reading", "pretraining", "rounds", "evaluation"
PHASES = (READING, PRETRAINING, ROUNDS, EVALUATION)
# Of a client's pool of own and public images, for each image: labels, order, mirrors and the
# numbers that they are sorted by.
_POOL_ENTRY = 52
_DRAWS = 12  # bytes of each entry of the pool, where only some of them are there


@dataclasses.dataclass(frozen=True)
class Part:
    """Memory that something takes.

    Attributes:
      name: what it is.
      device: bytes on each device; ``host``: of each process, beside that of its devices.
      phases: in which it exists.
      setting: that it follows from most.
      returned: pages of files, which the system takes back when memory is short.
    """

    name: str
    device: float
    host: float
    phases: tuple[str, ...]
    setting: str
    returned: bool = False


@dataclasses.dataclass(frozen=True)
class Units:
    """Bytes of one of each, and working memory.

    Attributes:
      image: of uint8; ``input``: what is trained on, an image or its activations and its mirror's.
      feature: a vector of the embedding's length.
      network: variables of the whole backbone; ``backbone``: of the part that trains.
      server: state of the server with its optimizer's.
      head: a client's state without ``previous``, its previous backbone; ``stored``: its row in
        the store.
      trained: all tensors of a client in training.
      divided: only a part of the network trains; ``splittable``: its gradient can be taken over
        parts of a mini-batch.
      rearranged: size of the copy of an image table in which rows can be looked up, as a share of
        the table; 0 where none is made.
      step: from the compiler; None: unknown.
    """

    image: int
    input: int
    feature: int
    network: int
    backbone: int
    server: int
    head: int
    previous: int
    stored: int
    trained: int
    divided: bool
    splittable: bool
    rearranged: float
    step: StepMemory | None


def bytes_of(tree: PyTree) -> int:
    """Bytes of all arrays of a pytree, or of their shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def units_of(
    config: Config,
    spec: RoundSpec,
    public_identities: int,
    most_identities: int,
    step: StepMemory | None = None,
    backend: str = "",
) -> Units:
    """Sizes that do not depend on how many images, clients and devices there are.

    Args:
      step: from the compiler; ``backend``: of the devices.
    """
    image = config.data.image_size**2 * 3
    divided = is_divided(config.model, config.data.image_size, config.fed.trainable)
    network = build(config.model, config.data.image_size, "grouped")
    server = server_shapes(spec, public_identities)
    head = head_shapes(spec, most_identities, config.population.previous, public_identities)
    full = head_shapes(spec, most_identities, "full", public_identities)
    state = jax.eval_shape(lambda s, h: initial_state(spec, s, h), server, full)
    return Units(
        image=image,
        input=activation_bytes(spec.backbone, config.fed.mirror) if divided else image,
        feature=spec.backbone.embedding * head.class_embeddings.dtype.itemsize,
        network=bytes_of(jax.eval_shape(network.init, jax.random.key(0))),
        backbone=bytes_of(server.backbone),
        server=bytes_of(server),
        head=bytes_of(head.replace(previous=None)),
        previous=bytes_of(head.previous),
        stored=RowLayout.of(head).size,
        trained=bytes_of(state.trained),
        divided=divided,
        splittable=config.model.batch_norm == "frozen"
        or not jax.tree.leaves(server.backbone["batch_stats"]),
        rearranged=_rearranged(config.data.image_size) if backend == "tpu" else 0.0,
        step=step,
    )


def _rearranged(side: int) -> float:
    """Found with the compiler for a TPU v5e: rows of 128 numbers, of which ``side`` are used."""
    return -(-side // 128) * 128 / side


def memory_parts(config: Config, kind: str, counts: Counts, units: Units, shared: bool) -> list:
    """All parts of a run's memory, largest first.

    Args:
      config: with a settled layout.
      kind: where training images are: resident | stream | render.
      counts, units: how much of everything, and how large.
      shared: the devices are those of a CPU, and have their memory in the host's.
    """
    parts = [
        *image_parts(config, kind, counts, units, shared),
        *_state_parts(config, counts, units),
        *_working_parts(config, counts, units),
        Part(TABLES, 0, counts.tables, PHASES, "fed.num_clients"),
        # Features as the network gives them, and of length 1.
        Part(
            "features of held-out images",
            0,
            counts.probes
            * (2 * units.feature + units.divided * units.input / (1 + config.fed.mirror)),
            (EVALUATION,),
            "eval.clients",
        ),
    ]
    batch = config.eval.batch_size * counts.local_devices * units.image
    parts.append(Part("images in the evaluation", 0, batch, (EVALUATION,), "eval.batch_size"))
    parts = [part for part in parts if part.device or part.host]
    return sorted(parts, key=lambda p: -(p.device + p.host))


def image_parts(
    config: Config, kind: str, counts: Counts, units: Units, shared: bool
) -> list[Part]:
    """Images and, where only a part of the network trains, activations in their place."""
    n = counts
    copies = n.local_devices if shared else 0  # in the host's memory
    before, after = (READING, PRETRAINING), (ROUNDS, EVALUATION)
    public, training = n.public_images * units.image, n.training_images * units.image
    own_public = "data.split.public_identities"
    parts = [
        Part("held-out images", 0, n.probes * units.image, PHASES, "eval.clients"),
    ]
    if config.engine.part:
        return parts + _images_in_parts(config, kind, n, units)
    if not units.divided:
        parts += [
            Part("public images", public, 0, PHASES, own_public),
            *_client_images(kind, n, training, n.capacity * units.image, PHASES),
        ]
        table = training if kind == "resident" else 0
    else:
        public_inputs = n.public_images * units.input
        parts += [
            Part("public images", public, 0, before, own_public),
            Part("activations, public images", public_inputs, 0, after, own_public),
        ]
        parts += _activations(config, kind, n, units)
        # Both views of the images, and the array that they are put into.
        parts.append(Part("activations on their way", 0, public_inputs, (ROUNDS,), own_public))
        table = 0
    if units.rearranged and not units.divided:
        parts.append(
            Part(
                "image tables, rearranged",
                units.rearranged * (public + table),
                0,
                (PRETRAINING, ROUNDS),
                own_public,
            )
        )
    # One after the other: the public images, then the clients' table.
    passing = max(public - copies * table, table)
    parts.append(Part("images on their way", 0, passing, (READING,), "data.images"))
    return parts


def kept_public(config: Config, n: Counts) -> int:
    """Public images for which there is room with a part of the clients.

    How many they keep is known only when the run has begun: as many as they have of their own.
    """
    if config.fed.public_data != "hard":
        return 0
    clients = min(config.engine.part, n.slots) * n.devices
    return capacity_for(min(clients * n.most_images, n.public_images), n.public_images)


def _images_in_parts(config: Config, kind: str, n: Counts, units: Units) -> list[Part]:
    """Images (or activations) of the clients that are on the devices, and of those that follow."""
    size = units.input
    table = n.training_images * size if kind == "resident" and not units.divided else 0
    own, kept = n.part_capacity * size, kept_public(config, n) * size
    # While a block of public images is computed or trained on, the next ones are read.
    block = 2.0 * config.engine.feature_batch * size * (config.fed.public_data == "hard")
    batch = 9.0 * config.pretrain.batch_size * units.image / n.devices
    batch *= config.pretrain.epochs > 0
    own_public, local = "data.split.public_identities", n.local_devices
    parts = [
        Part("kept public images of a part", kept, kept, (ROUNDS,), "fed.hard_threshold"),
        Part("blocks of public images", block, block * local, (ROUNDS,), "engine.feature_batch"),
        Part("batches of public images", batch, batch * local, (PRETRAINING,), own_public),
    ]
    if table:
        parts.append(Part("training images, all clients'", table, 0, PHASES, "data.images"))
        parts.append(Part("images on their way", 0, table, (READING,), "data.images"))
    else:
        host = 2 * own * local if kind == "stream" or units.divided else 0
        parts.append(Part("training images of two parts", 2 * own, host, (ROUNDS,), "engine.part"))
    if units.rearranged and not units.divided:
        copied = units.rearranged * (kept + (table or own))
        parts.append(Part("image tables, rearranged", copied, 0, (ROUNDS,), "fed.hard_threshold"))
    return parts


def _client_images(kind, n: Counts, table: float, cohort: float, phases) -> list[Part]:
    setting, ahead = "data.images", 1 if n.one_cohort else 2
    if kind == "resident":
        return [Part("training images, all clients'", table, 0, phases, setting)]
    name = f"training images of {'the' if ahead == 1 else 'two'} cohort{'s' * (ahead > 1)}"
    # Those that were read, and those in the order of the devices.
    host = 2 * cohort * n.local_devices if kind == "stream" else 0
    return [Part(name, ahead * cohort, host, (ROUNDS,), setting)]


def activations_fit(config: Config, counts: Counts, units: Units) -> bool:
    """Whether activations of all clients' images are kept on the devices, not in a file."""
    size = counts.training_images * units.input
    return size <= config.data.resident_gib * 2**30 and config.data.images in ("auto", "resident")


def _activations(config: Config, kind: str, n: Counts, units: Units) -> list[Part]:
    if activations_fit(config, n, units):
        size = n.training_images * units.input
        return [
            Part("activations, training images", size, 0, (ROUNDS, EVALUATION), "data.images"),
            Part("activations on their way", 0, size, (ROUNDS,), "data.images"),
        ]
    return _client_images("stream", n, 0, n.capacity * units.input, (ROUNDS,))


def _state_parts(config: Config, n: Counts, units: Units) -> list[Part]:
    """Models and the clients' state."""
    # Those of the last round and of the next one on the host; in parts, those of two parts.
    part = min(config.engine.part, n.slots)
    on_device, on_host = (2 * part, 2 * part) if part else (n.slots, n.slots * (2 - n.one_cohort))
    setting = "engine.part" if part else "population.cohort"
    on_host *= n.local_devices
    late = (ROUNDS, EVALUATION)
    return [
        # The state, the pretrained backbone, and the sums: in parts, that of the part, too.
        Part("server's state", units.server + units.backbone, 0, late, "model"),
        Part("sums of what clients send", (1 + (part > 0)) * units.server, 0, (ROUNDS,), "model"),
        Part(
            "models kept on the host",
            0,
            units.server + units.backbone + units.divided * units.network,
            late,
            "model",
        ),
        Part(
            "heads of the cohort",
            on_device * units.head,
            on_host * units.head,
            late,
            setting,
        ),
        Part(
            "previous backbones",
            on_device * units.previous,
            on_host * units.previous,
            late,
            "population.previous",
        ),
        Part(
            "pages of the store",
            0,
            records_of(config, n) * units.stored / n.hosts,
            late,
            "population.previous",
            returned=True,
        ),
    ]


def records_of(config: Config, counts: Counts) -> int:
    """Rows in the store at most: newest ones, and those of rounds that a run can go back to."""
    cohort = counts.slots * counts.devices
    older = min(config.checkpoint.keep, max(0, config.rounds - 1))
    return counts.touched + older * min(cohort, counts.touched)


def _working_parts(config: Config, n: Counts, units: Units) -> list[Part]:
    """Temporary arrays of the compiled programs."""
    spec_uses_public = config.fed.public_data != "off"
    hard = config.fed.public_data == "hard"
    lanes = min(config.engine.lanes, n.slots) or 1
    everything = n.most_images + spec_uses_public * n.public_images
    pool = n.most_images + kept_public(config, n) if config.engine.part else everything
    lists = lanes * (pool * _POOL_ENTRY + (config.engine.part > 0) * everything * _DRAWS)
    terms = config.recipe.terms(config.options)
    views = 2 if config.fed.mirror else 1
    parts, own_public = [], "data.split.public_identities"
    tables = 0.0
    if terms.contrastive_weight > 0 and config.engine.cache_features:
        # Side by side, a lane that is done keeps its own: old and new are both there.
        tables = lanes * (1 + (lanes > 1)) * views * pool * units.feature
        parts.append(
            Part("tables of directions, per lane", tables, 0, (ROUNDS,), "engine.cache_features")
        )
    parts.append(Part("lists of images, per lane", lists, 0, (ROUNDS,), "engine.lanes"))
    # Parameters and velocity; side by side also the new ones.
    state = lanes * 2 * (1 + (lanes > 1)) * units.trained
    parts.append(Part("clients in training", state, 0, (ROUNDS,), "engine.lanes"))
    step = lanes * max(units.step.step, units.step.forward) if units.step else 0.0
    parts.append(Part("activations and gradients", step, 0, (ROUNDS,), "engine.gradient_batch"))
    if hard:
        kept = (min(config.engine.part, n.slots) or n.slots) * n.public_images
        parts.append(Part("which public images are hard", kept, 0, (ROUNDS,), "population.cohort"))
        # Features of public and own images; a block of cosines.
        found = n.public_images * units.feature
        if config.engine.part:
            parts.append(Part("features of public images", found, 0, (ROUNDS,), own_public))
        search = n.part_capacity * units.feature + (0.0 if config.engine.part else found)
        search += min(BLOCK, n.public_images) * (5.0 * n.most_images + 2 * units.feature)
        search += units.step.forward if units.step else 0
        # In parts the next one's search may be laid out while a part trains.
        more = search - (0 if config.engine.part else tables + state + step + lists)
        if more > 0:
            name = "hard-negative search, beside it"
            parts.append(Part(name, more, 0, (ROUNDS,), own_public))
        if config.eval.examples:  # as the network gives them, and of length 1
            name = "public features, for the report"
            parts.append(Part(name, 0, 2 * found, (EVALUATION,), "eval.examples"))
    if config.pretrain.epochs:
        state = 2 * (units.network + n.public_identities * units.feature)
        step = units.step.pretraining if units.step else 0.0
        parts += [
            Part("pretraining: model", state, 0, (PRETRAINING,), "model"),
            Part("pretraining: step", step, 0, (PRETRAINING,), "pretrain.batch_size"),
        ]
    return parts


def peaks(parts: Sequence[Part], *, returned: bool = False) -> dict[str, tuple[float, float]]:
    """{phase: (bytes on each device, bytes on each host beside its devices')}.

    Args:
      returned: count pages of files, too.
    """
    counted = [part for part in parts if returned or not part.returned]
    return {
        phase: (
            sum(p.device for p in counted if phase in p.phases),
            sum(p.host for p in counted if phase in p.phases),
        )
        for phase in PHASES
    }
