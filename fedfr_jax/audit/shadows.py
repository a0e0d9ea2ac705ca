"""Shadow models: the run's own local training, from its own start, on random halves of people.

The shadow models are clients of one compiled round, side by side as the run's clients are. What a
client trains is what an attacker can train at home: no public data, no contrastive term (a client
has none in its first round), no steps of the message pipeline.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax import engine
from fedfr_jax.algorithm.initialize import initial_heads, initial_server
from fedfr_jax.algorithm.plain import place
from fedfr_jax.algorithm.round import run_round
from fedfr_jax.algorithm.spec import MessageSpec, RoundSpec, epochs_of_round
from fedfr_jax.audit.candidates import Candidates
from fedfr_jax.audit.opened import TrainedRun
from fedfr_jax.audit.plan import Plan
from fedfr_jax.population.cohort_data import CohortData
from fedfr_jax.runtime.activations import activations
from fedfr_jax.runtime.progress import track

PyTree = Any
_GROUP_BYTES = 1 << 30  # of the models that are trained at once


@dataclasses.dataclass(frozen=True)
class Halves:
    """What the shadow models train on.

    Attributes:
      people: (S, P) bool: half of the models have the person.
      images: (S, n) bool: of these people half of the images, at least one.
    """

    people: np.ndarray
    images: np.ndarray


def draw_halves(candidates: Candidates, shadows: int, seed: int) -> Halves:
    """Draws what each shadow model trains on; every person is in exactly half of them."""
    rng = np.random.default_rng([seed, 2])
    order = np.argsort(rng.random((shadows, candidates.people)), axis=0)
    people = order < shadows // 2
    draws = rng.random((shadows, len(candidates.numbers)))
    images = np.zeros(draws.shape, bool)
    for person in range(candidates.people):
        own = np.flatnonzero(candidates.person == person)
        rank = np.argsort(np.argsort(draws[:, own], axis=1), axis=1)
        images[:, own] = people[:, [person]] & (rank < max(1, len(own) // 2))
    return Halves(people, images)


def epochs_of_a_client(spec: RoundSpec, rounds: int, share: float) -> int:
    """Passes over its images that a client of the run has made, on average; at least 1.

    Args:
      rounds: done; share: of the clients in a round.
    """
    epochs = [int(epochs_of_round(spec, jnp.int32(r))[0]) for r in range(rounds)]
    return max(1, round(share * sum(epochs)))


def shadow_spec(spec: RoundSpec, epochs: int, least_images: int) -> RoundSpec:
    """The run's local training, without all that concerns more than one client."""
    terms = dataclasses.replace(spec.terms, contrastive_weight=0.0)
    recipe = dataclasses.replace(
        spec.recipe,
        terms=lambda options: terms,
        private=None,
        heads_turn=None,
        extra_rounds=0,
        epochs=None,
        averages=None,
        copy_penalty=None,
        server_embeddings=None,
        union=False,
        isolated=False,
        trains=True,
    )
    fed = dataclasses.replace(
        spec.fed,
        public_data="off",
        local_epochs=(epochs,),
        lr_decay_epochs=(epochs,),
        batch_size=min(spec.fed.batch_size, least_images),
        aggregator="mean",
        bucketing=0,
        on_bad_update="stop",
        quarantine_norm=0.0,
    )
    return dataclasses.replace(spec, recipe=recipe, fed=fed, message=MessageSpec())


def train_shadows(
    run: TrainedRun, candidates: Candidates, halves: Halves, plan: Plan
) -> tuple[Iterator[PyTree], int]:
    """Trains shadow models, one group after the other.

    Returns:
      (the variables of each, in order; the epochs that they are trained for).
    """
    config, layout = run.sim.config, run.sim.layout
    share = (config.population.cohort or config.fed.num_clients) / config.fed.num_clients
    epochs = plan.shadow_epochs or epochs_of_a_client(run.sim.spec, run.round, share)
    spec = shadow_spec(run.sim.spec, epochs, int(halves.images.sum(1).min()))
    images = run.sim.source.read(candidates.numbers)
    if run.sim.parts is not None:
        images = activations(run.sim)(images)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(run.pretrained))
    devices = layout.mesh.size
    # Two copies: the models of a group, and those in training.
    group = max(devices, min(len(halves.images), int(_GROUP_BYTES / (2 * size))))
    group = -(-group // devices) * devices
    layout = dataclasses.replace(layout, lanes=min(layout.lanes, group // devices))
    key = jax.random.fold_in(jax.random.key(plan.seed), 11)
    trained = _compiled(spec, layout, run, int(halves.people.sum(1).max()), key)

    def models() -> Iterator[PyTree]:
        with track("shadow models", len(halves.images), "model") as bar:
            for first in range(0, len(halves.images), group):
                members = np.arange(first, first + group)
                cohort = _cohort(images, candidates, halves, members, devices)
                found = jax.device_get(trained(place(cohort, layout)))
                for at in range(min(group, len(halves.images) - first)):
                    yield jax.tree.map(lambda x, at=at: x[at], found)
                    bar.update(1)

    return models(), epochs


def _compiled(spec, layout, run: TrainedRun, most: int, key) -> Callable[[CohortData], PyTree]:
    """``cohort -> the variables of each slot after training``."""
    public = engine.replicate(run.sim.public, layout.mesh)
    pretrained = engine.replicate(run.pretrained, layout.mesh)
    embeddings = jnp.zeros((public.identities, spec.backbone.embedding))
    server = initial_server(spec, layout, pretrained, embeddings, public)

    @functools.partial(jax.jit)
    def train(server, public, cohort):
        heads = initial_heads(
            spec, layout, server.backbone, public, cohort, key, most_identities=most
        )
        return run_round(spec, layout, server, heads, public, cohort, key)[1].previous

    return lambda cohort: train(server, public, cohort)


def _cohort(
    images: np.ndarray, candidates: Candidates, halves: Halves, members: np.ndarray, devices: int
) -> CohortData:
    """The shadow models of a group as a cohort; each device has all images."""
    count, most = len(images), int(halves.images.sum(1).max())
    rows, labels = (np.zeros((len(members), most), np.int32) for _ in range(2))
    sizes, identities = (np.zeros(len(members), np.int32) for _ in range(2))
    there = members < len(halves.images)
    for slot in np.flatnonzero(there):
        chosen = np.flatnonzero(halves.images[members[slot]])
        own = np.flatnonzero(halves.people[members[slot]])
        rows[slot, : len(chosen)] = chosen
        labels[slot, : len(chosen)] = np.searchsorted(own, candidates.person[chosen])
        sizes[slot], identities[slot] = len(chosen), len(own)
    return CohortData(
        images=images,
        table_rows=np.tile(np.arange(count, dtype=np.int32), devices),
        used=np.full(devices, count, np.int32),
        rows=rows,
        labels=labels,
        sizes=sizes,
        identities=identities,
        clients=np.where(there, members, -1).astype(np.int32),
    )
