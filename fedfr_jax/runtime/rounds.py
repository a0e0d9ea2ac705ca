"""From starting weights through all rounds: what the host does around the compiled round."""
from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fedfr_jax import engine
from fedfr_jax.algorithm.initialize import initial_server, server_shapes
from fedfr_jax.algorithm.local_state import LOSS_TERMS
from fedfr_jax.algorithm.pretraining import pretrain
from fedfr_jax.algorithm.state import Heads, ServerState
from fedfr_jax.engine.compilations import compilations
from fedfr_jax.models import load_weights
from fedfr_jax.population.cohort_data import CohortData
from fedfr_jax.population.store import RowStore
from fedfr_jax.runtime import costs, workdir
from fedfr_jax.runtime.checkpoints import RoundCheckpoints, load_pytree, save_pytree
from fedfr_jax.runtime.client_states import CohortHeads, personal_models
from fedfr_jax.runtime.progress import track
from fedfr_jax.runtime.simulation import (
    Simulation,
    compile_rounds,
    compile_start,
    round_key,
)

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
        shapes = server_shapes(sim.spec, sim.public.identities)
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
        **{k: float(np.mean(metrics[k])) for k in LOSS_TERMS},
        "hard_negatives_mean": float(hard.mean()), "hard_negatives_min": int(hard.min()),
        "hard_negatives_max": int(hard.max()), "images": trained,
        "images_per_second": trained / seconds,
        "flops_per_client": float(costs.local_flops(config, sim.spec, metrics, public).mean())}


@dataclasses.dataclass(frozen=True)
class RoundInputs:
    """Who takes part in a round: read ahead while the round before runs.

    Attributes:
      assigned: (C,) client in each slot of all devices; ``mine``: of this process' devices.
      cohort: their data, on the devices.
    """

    assigned: np.ndarray
    mine: np.ndarray
    cohort: CohortData


def read_ahead(sim: Simulation, round_index: int, last: RoundInputs | None = None) -> RoundInputs:
    """The inputs of a round; those of the last one again where the cohort is the same."""
    assigned = sim.schedule.assigned(round_index)
    if last is not None and np.array_equal(assigned, last.assigned):
        return last
    rows = sim.schedule.rows(assigned)
    size = len(assigned) // sim.schedule.processes
    mine = assigned[jax.process_index() * size:][:size]
    return RoundInputs(assigned, mine, sim.client_images.cohort_data(rows))


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions of :func:`compile_rounds` and :func:`compile_start`."""

    round: Callable
    start: Callable


def compile_programs(sim: Simulation, seeds: int = 1) -> Programs:
    """The programs of so many runs side by side; each compiles when it is first called."""
    return Programs(compile_rounds(sim, seeds), compile_start(sim))


@dataclasses.dataclass(frozen=True)
class Run:
    """What the rounds of one run need and move on.

    Attributes:
      sim: the simulation.
      writer, checkpoints: of its work directory.
      store: the heads of this process' clients, as after ``server.round`` rounds.
      server: the state, on the devices; its memory is given away.
      pretrained: variables before the first round, on the host.
      evaluate: ``(rounds done, backbone, personal models)``, called every ``eval.every``
        rounds; None: there is no evaluation between rounds.
    """

    sim: Simulation
    writer: workdir.RunWriter
    checkpoints: RoundCheckpoints
    store: RowStore
    server: ServerState
    pretrained: PyTree
    evaluate: Callable[..., None] | None = None


def go_together(runs: Sequence[Run]) -> bool:
    """Whether runs can go side by side: they differ in nothing but the seed, and are equally far.

    Their clients then have the same images, and in every round the same ones take part.
    """
    def but_seed(run):
        return dataclasses.replace(run.sim.config, seed=0)

    first = runs[0]
    return jax.process_count() == 1 and all(
        but_seed(run) == but_seed(first) and int(run.server.round) == int(first.server.round)
        and np.array_equal(run.sim.schedule.cohorts, first.sim.schedule.cohorts) for run in runs)


def run_rounds(runs: Sequence[Run], *, until: int | None = None, programs: Programs | None = None
               ) -> list[tuple[ServerState, dict[str, Any]]]:
    """The rounds that are left, with checkpoints and the evaluations that ``eval.every`` asks for.

    Args:
      runs: one, or several that :func:`go_together`.
      until: rounds done after which to stop; None: ``fed.rounds``.
      programs: from :func:`compile_programs` for as many runs, where they serve several calls.

    Returns:
      For each run: (server, figures for the summary).

    Raises:
      FloatingPointError: training diverged.
    """
    sim, programs = runs[0].sim, programs or compile_programs(runs[0].sim, len(runs))
    first = int(runs[0].server.round)
    last = sim.config.fed.rounds if until is None else until
    courses = [_Course(run, programs.start, last) for run in runs]
    keys = engine.replicate([round_key(run.sim.config) for run in runs], sim.layout.mesh)
    compiled = {"first round": 0, "later rounds": 0}
    inputs = read_ahead(sim, first) if first < last else None
    with track("federated rounds", last - first, "round") as bar:
        for r in range(first, last):
            for course in courses:
                course.evaluate(r)
            before, started = compilations(), time.monotonic()
            results = programs.round([course.server for course in courses],
                                     [course.fetch(inputs) for course in courses],
                                     sim.public, inputs.cohort, keys)
            # The devices are at work; meanwhile the host writes the last round and reads the next.
            for course in courses:
                course.save()
            following = read_ahead(sim, r + 1, inputs) if r + 1 < last else None
            for course in courses:
                course.read_ahead(inputs, following)
            results = [(*state, jax.device_get(metrics)) for *state, metrics in results]
            seconds = (time.monotonic() - started) / len(runs)  # a run's share
            compiled["first round" if r == first else "later rounds"] += compilations() - before
            rows = [course.keep(r + 1, *result, inputs, following, seconds)
                    for course, result in zip(courses, results, strict=True)]
            bar.update(1, images=sum(row["images"] for row in rows), loss=rows[0].get("loss"))
            inputs = following
        return [course.finish(compiled) for course in courses]


class _Course:
    """One run through its rounds, and what the host does between them."""

    def __init__(self, run: Run, start: Callable, last: int):
        self.server = run.server
        self._run, self._last, self._rows = run, last, []
        self._heads = CohortHeads(run.sim, run.store, start,
                                  engine.replicate(run.pretrained, run.sim.layout.mesh),
                                  jax.random.key(run.sim.config.seed + 1))
        self._stored: tuple | None = None
        self._unsaved: tuple[int, ServerState] | None = None

    def fetch(self, inputs: RoundInputs) -> Heads:
        """The heads of a round, on the devices."""
        return self._heads.fetch(inputs.mine, self._stored, inputs.cohort)

    def read_ahead(self, inputs: RoundInputs, following: RoundInputs | None) -> None:
        """Reads the next round's heads, unless they are on the devices already."""
        if following is not None and following is not inputs:
            self._stored = self._heads.read_ahead(following.mine)

    def _is_due(self, done: int) -> bool:
        every = self._run.sim.config.checkpoint.every
        return done % every == 0 or done == self._last or self._evaluates_at(done)

    def _evaluates_at(self, done: int) -> bool:
        return self._run.evaluate is not None and done % self._run.sim.config.eval.every == 0

    def keep(self, done: int, server: ServerState, heads: Heads, metrics, inputs: RoundInputs,
             following: RoundInputs | None, seconds: float) -> dict[str, Any]:
        """Takes a round's results; copies to the host what a later round would overwrite.

        Returns:
          The row of ``metrics.jsonl``.
        """
        row = round_row(self._run.sim, done, inputs.assigned, metrics, seconds)
        self.server = server
        due = self._is_due(done)
        stays = following is inputs  # the same cohort again, see read_ahead()
        self._heads.keep(inputs.mine, heads, done, to_host=due or not stays)
        if due:
            self._unsaved = (done, jax.device_get(server))
        self._run.writer.append(row)
        self._rows.append(row)
        return row

    def save(self) -> None:
        """Writes the heads, then the checkpoint that counts on them."""
        self._heads.write()
        if self._unsaved is None:
            return
        done, server = self._unsaved
        self._run.store.flush()
        self._run.checkpoints.save(done, server)
        self._run.checkpoints.wait()
        self._run.store.commit(done)
        self._unsaved = None

    def evaluate(self, done: int) -> None:
        """The evaluations of ``eval.every`` after ``done`` rounds."""
        if not self._evaluates_at(done):
            return
        self.save()
        run, backbone = self._run, self.server.backbone
        run.evaluate(done, backbone, personal_models(run.sim, run.store, backbone))

    def finish(self, compiled: dict[str, int]) -> tuple[ServerState, dict[str, Any]]:
        """Saves what is left; returns (server, figures for the summary)."""
        if not self._last:
            self._run.checkpoints.save(0, jax.device_get(self.server))
        self.save()
        warm = self._rows[1:] or self._rows
        seconds = sum(row["seconds"] for row in warm)
        return self.server, {
            "compilations": compiled,
            "clients_per_round": int((self._run.sim.schedule.cohorts >= 0).sum(1).max()),
            "images_per_second": sum(r["images"] for r in warm) / seconds if warm else None}


def starting_server(sim: Simulation, checkpoints: RoundCheckpoints, pretrained: PyTree,
                    embeddings) -> ServerState:
    """The server as the newest checkpoint has it, or before the first round; on all devices."""
    mesh = sim.layout.mesh
    if checkpoints.latest() is not None:
        server = checkpoints.restore(server_shapes(sim.spec, sim.public.identities))
    else:
        pretrained, embeddings = engine.replicate((pretrained, embeddings), mesh)
        server = initial_server(sim.spec, sim.layout, pretrained, embeddings, sim.public)
    # A copy: rounds give the server's memory away, and these arrays may be the caller's.
    return engine.replicate(jax.tree.map(np.array, server), mesh)
