"""From starting weights through all rounds: what the host does around the compiled round."""
from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedfr_jax import assess, costs, engine, fedfr, workdir
from fedfr_jax.checkpoints import RoundCheckpoints, load_pytree, save_pytree
from fedfr_jax.compilations import compilations
from fedfr_jax.evaluate import append_evaluation
from fedfr_jax.heads_at_rest import CohortHeads, personal_models
from fedfr_jax.initialize import initial_server, server_shapes
from fedfr_jax.models import load_weights
from fedfr_jax.population import RowStore
from fedfr_jax.pretrain import pretrain
from fedfr_jax.progress import track
from fedfr_jax.simulation import (
    Simulation,
    compile_round,
    compile_start,
    round_key,
)
from fedfr_jax.state import CohortData, ServerState

PyTree = Any


def starting_weights(sim: Simulation) -> PyTree:
    """Variables to pretrain from: random, or those that ``model.weights`` names.

    Raises:
      InputError: the weights are missing or do not fit the model.
    """
    path = sim.config.model.weights
    variables = sim.backbone.init(jax.random.key(sim.config.seed))
    if not path:
        return variables
    if pathlib.Path(path).is_dir():
        folder = pathlib.Path(path) / "pretrained"
        folder = folder if folder.is_dir() else pathlib.Path(path)
        return load_pytree(folder / "backbone", variables)
    return load_weights(path, sim.backbone)


def pretrained_model(sim: Simulation, writer: workdir.RunWriter, folder: pathlib.Path,
                     variables: PyTree, resume: bool) -> tuple[PyTree, jax.Array | None]:
    """The backbone before the first round and its public class embeddings, if it has any.

    Trained from ``variables`` and saved in the folder, or read from there when the run is
    resumed.
    """
    config = sim.config
    finished = folder / "backbone"
    trains = config.pretrain.epochs > 0
    if resume and finished.is_dir():
        shapes = server_shapes(sim.method, sim.public.identities)
        embeddings = folder / "public_embeddings"
        return load_pytree(finished, shapes.backbone), (
            load_pytree(embeddings, shapes.public_embeddings) if trains else None)
    writer.truncate_after(-1, pretrain_epoch=0)
    embeddings = None
    if trains:
        labels = sim.split.public_labels
        with track("pretraining", config.pretrain.epochs * len(labels), "image") as bar:
            started = time.monotonic()

            def on_epoch(row):
                seconds = time.monotonic() - started
                rate = row["epoch"] * len(labels) / seconds
                writer.append(row | {"images_per_second": rate})

            variables, embeddings = pretrain(
                sim.backbone, sim.public.images, labels, config.pretrain, variables=variables,
                mesh=sim.layout.mesh, seed=config.seed, augment=config.fed.mirror,
                on_epoch=on_epoch,
                on_step=lambda n, loss: bar.update(n, images=n, loss=loss))
        save_pytree(folder / "public_embeddings", embeddings)
    save_pytree(finished, variables)
    return variables, embeddings


def round_row(sim: Simulation, round_index: int, clients: np.ndarray,
              metrics: dict[str, np.ndarray], seconds: float) -> dict[str, Any]:
    """One row of ``metrics.jsonl``: means over clients, and the hard negatives' range.

    Args:
      sim: its settings and the number of its public images are used.
      clients: (C,) numbers of the clients, -1 for an empty slot; metrics: (C,) arrays.

    Raises:
      FloatingPointError: a client's loss is not finite.
    """
    config, public = sim.config, len(sim.split.public_images)
    present = clients >= 0
    clients, metrics = clients[present], {k: v[present] for k, v in metrics.items()}
    row = {"kind": "round", "round": round_index, "clients": len(clients),
           "public_images": public, "seconds": seconds}
    if not len(clients):
        return row | {"images": 0, "images_per_second": 0.0}
    bad = np.flatnonzero(~np.isfinite(metrics["loss"]))
    if len(bad):
        raise FloatingPointError(
            f"round {round_index}: the loss of client {clients[bad[0]]} is not finite ({len(bad)} "
            "such clients); lower fed.lr. The last checkpoint is from before this round")
    hard = metrics["hard_negatives"]
    trained = int(metrics["steps"].sum()) * config.fed.batch_size
    return row | {
        **{k: float(np.mean(metrics[k])) for k in fedfr.LOSS_TERMS},
        "hard_negatives_mean": float(hard.mean()), "hard_negatives_min": int(hard.min()),
        "hard_negatives_max": int(hard.max()), "images": trained,
        "images_per_second": trained / seconds,
        "flops_per_client": float(costs.local_flops(config, sim.method, metrics, public).mean())}


@dataclasses.dataclass(frozen=True)
class RoundInputs:
    """What a round needs besides the server: read ahead while the round before runs.

    Attributes:
      assigned: (C,) client in each slot of all devices; ``mine``: of this process' devices.
      cohort: their data, on the devices.
      stored: their heads as the store has them.
    """

    assigned: np.ndarray
    mine: np.ndarray
    cohort: CohortData
    stored: tuple


def read_ahead(sim: Simulation, heads: CohortHeads, round_index: int,
               last: RoundInputs | None = None) -> RoundInputs:
    """The inputs of a round; those of the last one again where the cohort is the same."""
    assigned = sim.schedule.assigned(round_index)
    if last is not None and np.array_equal(assigned, last.assigned):
        return last
    rows = sim.schedule.rows(assigned)
    size = len(assigned) // sim.schedule.processes
    mine = assigned[jax.process_index() * size:][:size]
    return RoundInputs(assigned, mine, sim.client_images.cohort_data(rows),
                       heads.read_ahead(mine))


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions of :func:`compile_round` and :func:`compile_start`."""

    round: Callable
    start: Callable


def compile_programs(sim: Simulation) -> Programs:
    """The programs of a simulation; each compiles when it is first called."""
    return Programs(compile_round(sim), compile_start(sim))


def run_rounds(sim: Simulation, writer: workdir.RunWriter, checkpoints: RoundCheckpoints,
               store: RowStore, server: ServerState, pretrained: PyTree, *,
               until: int | None = None, programs: Programs | None = None
               ) -> tuple[ServerState, dict[str, Any]]:
    """The rounds that are left, with checkpoints and the evaluations that ``eval.every`` asks for.

    Args:
      store: the heads of this process' clients, as after ``server.round`` rounds.
      pretrained: variables before the first round, on the host.
      until: rounds done after which to stop; None: ``fed.rounds``.
      programs: from :func:`compile_programs`, where they serve several calls.

    Returns:
      (server, figures for the summary).
    """
    config, key, programs = sim.config, round_key(sim.config), programs or compile_programs(sim)
    first, rows, last = int(server.round), [], config.fed.rounds if until is None else until
    heads = CohortHeads(sim, store, programs.start,
                        engine.replicate(pretrained, sim.layout.mesh),
                        jax.random.key(config.seed + 1))
    between = _Between(sim, writer, checkpoints, store, heads, pretrained, last)
    compiled = {"first round": 0, "later rounds": 0}
    inputs = read_ahead(sim, heads, first) if first < last else None
    with track("federated rounds", last - first, "round") as bar:
        for r in range(first, last):
            between.evaluate(r, server)
            before, started = compilations(), time.monotonic()
            mine = heads.fetch(inputs.mine, inputs.stored, inputs.cohort)
            server, mine, metrics = programs.round(server, mine, sim.public, inputs.cohort, key)
            # The devices are at work; meanwhile the host writes the last round and reads the next.
            between.save()
            following = read_ahead(sim, heads, r + 1, inputs) if r + 1 < last else None
            metrics = jax.device_get(metrics)
            row = round_row(sim, r + 1, inputs.assigned, metrics, time.monotonic() - started)
            compiled["first round" if r == first else "later rounds"] += compilations() - before
            between.keep(r + 1, server, inputs, mine, following)
            writer.append(row)
            rows.append(row)
            bar.update(1, images=row["images"], loss=row.get("loss"))
            inputs = following
        if not last:
            checkpoints.save(0, jax.device_get(server))
        between.save()
    warm = rows[1:] or rows
    seconds = sum(row["seconds"] for row in warm)
    return server, {
        "compilations": compiled,
        "clients_per_round": int((sim.schedule.cohorts >= 0).sum(1).max()),
        "images_per_second": sum(r["images"] for r in warm) / seconds if warm else None}


class _Between:
    """What the host does between rounds: write heads, save checkpoints, evaluate."""

    def __init__(self, sim, writer, checkpoints, store, heads, pretrained, last):
        self._sim, self._writer, self._checkpoints, self._last = sim, writer, checkpoints, last
        self._store, self._heads, self._pretrained = store, heads, pretrained
        self._assessor = assess.make_assessor(sim) if sim.config.eval.every else None
        self._server: tuple[int, ServerState] | None = None  # to be saved

    def _is_due(self, done: int) -> bool:
        every = self._sim.config.checkpoint.every
        return done % every == 0 or done == self._last or self._evaluates_at(done)

    def _evaluates_at(self, done: int) -> bool:
        return self._assessor is not None and done % self._sim.config.eval.every == 0

    def keep(self, done: int, server, inputs: RoundInputs, heads, following) -> None:
        """Copies to the host what a later round would overwrite on the devices."""
        due = self._is_due(done)
        stays = following is not None and np.array_equal(following.mine, inputs.mine)
        self._heads.keep(inputs.mine, heads, done, to_host=due or not stays)
        if due:
            self._server = (done, jax.device_get(server))

    def save(self) -> None:
        """Writes the heads, then the checkpoint that counts on them."""
        self._heads.write()
        if self._server is None:
            return
        done, server = self._server
        self._store.flush()
        self._checkpoints.save(done, server)
        self._checkpoints.wait()
        self._store.commit(done)
        self._server = None

    def evaluate(self, done: int, server) -> None:
        """The evaluations of ``eval.every`` after ``done`` rounds."""
        if not self._evaluates_at(done):
            return
        self.save()
        if done == 0:
            models = {"pretrained": assess.assess_shared(self._assessor, self._pretrained)}
        else:
            personal = personal_models(self._sim, self._store, self._pretrained, server.backbone)
            models = {"global": assess.assess_shared(self._assessor, server.backbone),
                      "personalized": assess.assess_personalized(self._assessor, personal)}
        append_evaluation(self._writer, done, {n: assess.summarize(a) for n, a in models.items()})


def starting_server(sim: Simulation, checkpoints: RoundCheckpoints, pretrained: PyTree,
                    embeddings) -> ServerState:
    """The server as the newest checkpoint has it, or before the first round; on all devices."""
    mesh = sim.layout.mesh
    if checkpoints.latest() is not None:
        server = checkpoints.restore(server_shapes(sim.method, sim.public.identities))
    else:
        pretrained, embeddings = engine.replicate((pretrained, embeddings), mesh)
        server = initial_server(sim.method, sim.layout, pretrained, embeddings, sim.public)
    # A copy: rounds give the server's memory away, and these arrays may be the caller's.
    return engine.replicate(jax.tree.map(np.array, server), mesh)
