"""fedfr_jax as a competitor: the only benchmark module that uses engine, round and state.

All other modules use only the arrays of :mod:`benchmarks.problem`, so a change of the
library's interfaces affects only this file.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.batches import KEY
from benchmarks.plain_jax import arrays_of, variables_of
from benchmarks.problem import Built, Case, Workload, part, previous_weights
from fedfr_jax import engine
from fedfr_jax.algorithm.plain import compile_round, place
from fedfr_jax.algorithm.state import Heads, ServerState
from fedfr_jax.config import Config, method_config
from fedfr_jax.engine.layout import Layout
from fedfr_jax.methods import METHODS
from fedfr_jax.population.cohort_data import CohortData, PublicData
from fedfr_jax.population.packing import pack_clients, pack_public
from fedfr_jax.runtime import simulation
from fedfr_jax.runtime.autotune import settle
from fedfr_jax.settings import DataConfig, EngineConfig, FedConfig, ModelConfig, SplitConfig


def config_of(case: Case, dtype: str, settings: EngineConfig) -> Config:
    """The settings of a case."""
    fed = FedConfig(
        num_clients=case.clients,
        batch_size=case.batch,
        lr=case.lr,
        local_epochs=(case.epochs,),
        lr_decay_epochs=(case.decay_epoch,),
        public_data="all" if case.public else "off",
    )
    model = {} if case.model != "spherenet" else dict(depth=case.depth, widths=case.widths)
    terms = {
        name: 0.0
        for name, on in (("contrastive_weight", case.contrastive), ("binary_weight", case.binary))
        if not on
    }
    return Config(
        model=ModelConfig(name=case.model, embedding=case.embedding, dtype=dtype, **model),
        fed=fed,
        method=dataclasses.replace(
            method_config(), fedfr=dataclasses.replace(METHODS["fedfr"].options(), **terms)
        ),
        engine=settings,
        data=DataConfig(
            image_size=case.size, split=SplitConfig(identities_per_client=(case.identities,) * 2)
        ),
    )


def data_of(case: Case, problem, devices: int) -> tuple[PublicData, CohortData]:
    """The images of a case, for a mesh of that many devices."""
    images, labels = problem["images"], problem["client/image_labels"]
    clients = [
        (images[rows], own) for rows, own in zip(problem["client/image_rows"], labels, strict=True)
    ]
    public = pack_public(images[: case.public], problem["public_labels"])
    cohort = pack_clients(clients, devices)
    # Labels are drawn at random, so the last identities may have no images.
    identities = np.where(cohort.clients >= 0, case.identities, 0).astype(np.int32)
    return (
        public.replace(identities=case.identities if case.public else 0),
        cohort.replace(identities=identities),
    )


def _place(case: Case, problem, layout: Layout):
    """((server, heads), public, cohort) on the devices, and the client in each slot."""
    mesh = layout.mesh
    public, cohort = data_of(case, problem, mesh.size)
    server, heads = _state(case, problem)
    heads = jax.tree.map(lambda x: x[np.maximum(cohort.clients, 0)], heads)
    state = engine.replicate(server, mesh), engine.spread(heads, mesh)
    return state, engine.replicate(public, mesh), place(cohort, layout), cohort.clients


def _state(case: Case, problem) -> tuple[ServerState, Heads]:
    backbone = variables_of(case, part(problem, "backbone/"))
    previous = [variables_of(case, previous_weights(problem, i)) for i in range(case.clients)]
    head = part(problem, "client/")
    heads = Heads(
        class_embeddings=head["class_embeddings"],
        transform={"weight": head["transform_weight"], "bias": head["transform_bias"]},
        binary_weight=head["binary_weight"],
        binary_bias=head["binary_bias"],
        previous=jax.tree.map(lambda *x: np.stack(x), *previous),
        has_trained=np.ones(case.clients, bool),
    )
    return ServerState(np.int32(0), backbone, problem["public_embeddings"]), heads


def build(
    case: Case,
    problem,
    *,
    dtype: str = "float32",
    conv: str = "auto",
    lanes: int = 0,
    devices: int = 0,
    cache_features: bool = True,
    unroll: bool = False,
) -> Built:
    """The compiled round; by default with the layout that a run would choose.

    Every ``run`` continues from the state of the previous one, with donated buffers, as in a
    simulation; so only the first one has the batches of the problem.

    Args:
      dtype: compute type.
      conv, lanes, devices: forced layout; "auto" and 0 leave the choice to the library.
      cache_features: False computes frozen features in every step, as published.
      unroll: lanes as copies.
    """
    engine.use_cpu_devices(devices)
    settings = EngineConfig(
        lanes=lanes, conv=conv, cache_features=cache_features, unroll_lanes=unroll
    )
    config = settle(config_of(case, dtype, settings), report=lambda line: None)
    layout = simulation.make_layout(config)
    spec = simulation.make_spec(config)
    step = compile_round(spec, layout)
    state, public, cohort, slots = _place(case, problem, layout)
    slot_of = np.array([np.flatnonzero(slots == client)[0] for client in range(case.clients)])
    state = list(state)
    key = engine.replicate(jax.random.key(KEY), layout.mesh)

    def run():
        state[:] = jax.block_until_ready(step(*state, public, cohort, key)[:2])

    def update():
        server, heads = jax.device_get(state)
        heads = jax.tree.map(lambda x: x[slot_of], heads)
        found = {f"backbone/{k}": v for k, v in arrays_of(case, server.backbone).items()}
        found["client/class_embeddings"] = heads.class_embeddings
        if case.binary:
            found |= {
                "client/transform_weight": heads.transform["weight"],
                "client/transform_bias": heads.transform["bias"],
                "client/binary_weight": heads.binary_weight,
                "client/binary_bias": heads.binary_bias,
            }
        return found | ({"public_embeddings": server.public_embeddings} if case.public else {})

    return Built(
        run,
        update,
        case.trained_images,
        _units(case, cache_features),
        f"{layout.mesh.size} device(s), {layout.lanes} lane(s)",
    )


def _units(case: Case, cache_features: bool) -> float:
    """Work per trained image in forward passes: frozen features are computed once per round."""
    if not case.contrastive:
        return 3.0
    if not cache_features:
        return 5.0
    # A view of an image is needed unless every epoch uses the other view.
    views = 2 * (1 - 0.5**case.epochs)
    images = case.clients * (case.images + case.public)
    return 3.0 + 2 * views * images / case.trained_images


def for_each_client(update, shared, clients, count: int, lanes: int = 1):
    """Runs ``update(repeat, shared, client) -> (model, kept)`` on the engine.

    Returns:
      A function without arguments: (average model, kept of all clients).
    """
    devices = min(count, len(jax.devices()))
    mesh = engine.make_mesh(jax.devices()[:devices])
    padding = -count % devices
    taken = np.arange(count + padding) < count
    clients = jax.tree.map(
        lambda x: np.concatenate([x, np.repeat(np.asarray(x)[:1], padding, 0)]), clients
    )
    shared = engine.replicate(shared, mesh)
    clients, taken = engine.spread((clients, taken), mesh)

    def one(lane, shared, device, client, state):
        model, kept = update(lane.repeat, shared, client)
        return model, jnp.float32(1), state, kept

    @jax.jit
    def step(shared, clients, taken):
        average, _, _, kept = engine.for_each_client(
            one, shared, (), clients, (), taken.astype(int), taken, mesh=mesh, lanes=lanes
        )
        return average, jax.tree.map(lambda x: x[:count], kept)

    return lambda: step(shared, clients, taken)


def build_workload(workload: Workload, problem, *, lanes: int = 1, devices: int = 0) -> Built:
    """Workload A or B on the engine, with the convolutions that suit so many lanes."""
    from benchmarks import workloads  # noqa: PLC0415  (it imports the JAX part of the benchmarks)

    engine.use_cpu_devices(devices)
    return workloads.built(
        workload,
        for_each_client(
            workloads.client_update(workload, engine.default_strategy(lanes)),
            workloads.model_of(problem),
            workloads.clients_of(problem),
            workload.clients,
            lanes,
        ),
        note=f"{len(jax.devices())} device(s), {lanes} lane(s)",
    )
