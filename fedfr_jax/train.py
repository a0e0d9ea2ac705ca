"""Trains: pretraining, federated rounds, evaluation, report.

    python -m fedfr_jax.train --config=configs/quickstart.py --workdir=runs/x \\
        --config.fed.num_clients=64
    python -m fedfr_jax.train --config=configs/quickstart.py --workdir=runs/x --resume
"""
from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from fedfr_jax import assess, costs, engine, fedfr, workdir
from fedfr_jax.checkpoints import RoundCheckpoints, load_pytree, save_pytree
from fedfr_jax.cli import (
    define_distributed_flags,
    folder_of_process,
    join_processes,
    reports_input_errors,
)
from fedfr_jax.compilations import compilations
from fedfr_jax.config import Config, ConfigError, resolve, to_dict
from fedfr_jax.data.split import save_split
from fedfr_jax.evaluate import append_evaluation, describe_run, write_results
from fedfr_jax.heads_at_rest import CohortHeads, open_store, personal_models
from fedfr_jax.initialize import initial_server, server_shapes
from fedfr_jax.models import load_weights
from fedfr_jax.plan import keep_settled
from fedfr_jax.population import RowStore
from fedfr_jax.pretrain import pretrain
from fedfr_jax.progress import track
from fedfr_jax.simulation import (
    Simulation,
    build_simulation,
    compile_round,
    compile_start,
    round_key,
    use_cpu_devices,
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


def run_rounds(sim: Simulation, writer: workdir.RunWriter, checkpoints: RoundCheckpoints,
               store: RowStore, server: ServerState, pretrained: PyTree
               ) -> tuple[ServerState, dict[str, Any]]:
    """All rounds that are left, with checkpoints and the evaluations that ``eval.every`` asks for.

    Args:
      store: the heads of this process' clients, as after ``server.round`` rounds.
      pretrained: variables before the first round, on the host.

    Returns:
      (server, figures for the summary).
    """
    config, step, key = sim.config, compile_round(sim), round_key(sim.config)
    first, rows = int(server.round), []
    heads = CohortHeads(sim, store, compile_start(sim),
                        engine.replicate(pretrained, sim.layout.mesh),
                        jax.random.key(config.seed + 1))
    between = _Between(sim, writer, checkpoints, store, heads, pretrained)
    compiled = {"first round": 0, "later rounds": 0}
    inputs = read_ahead(sim, heads, first) if first < config.fed.rounds else None
    with track("federated rounds", config.fed.rounds - first, "round") as bar:
        for r in range(first, config.fed.rounds):
            between.evaluate(r, server)
            before, started = compilations(), time.monotonic()
            mine = heads.fetch(inputs.mine, inputs.stored, inputs.cohort)
            server, mine, metrics = step(server, mine, sim.public, inputs.cohort, key)
            # The devices are at work; meanwhile the host writes the last round and reads the next.
            between.save()
            following = read_ahead(sim, heads, r + 1, inputs) if r + 1 < config.fed.rounds else None
            metrics = jax.device_get(metrics)
            row = round_row(sim, r + 1, inputs.assigned, metrics, time.monotonic() - started)
            compiled["first round" if r == first else "later rounds"] += compilations() - before
            between.keep(r + 1, server, inputs, mine, following)
            writer.append(row)
            rows.append(row)
            bar.update(1, images=row["images"], loss=row.get("loss"))
            inputs = following
        if not config.fed.rounds:
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

    def __init__(self, sim, writer, checkpoints, store, heads, pretrained):
        self._sim, self._writer, self._checkpoints = sim, writer, checkpoints
        self._store, self._heads, self._pretrained = store, heads, pretrained
        self._assessor = assess.make_assessor(sim) if sim.config.eval.every else None
        self._server: tuple[int, ServerState] | None = None  # to be saved

    def _is_due(self, done: int) -> bool:
        every, last = self._sim.config.checkpoint.every, self._sim.config.fed.rounds
        return done % every == 0 or done == last or self._evaluates_at(done)

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


def train(config: Config, folder: str | pathlib.Path, *, resume: bool = False) -> dict[str, Any]:
    """A whole run: pretraining, rounds, evaluation, report.

    Args:
      config: from :func:`fedfr_jax.config.resolve`.
      folder: the work directory.
      resume: go on from the newest checkpoint in it.

    Returns:
      What ``summary.json`` holds.

    Raises:
      InputError: bad settings or data, before any long work.
      FloatingPointError: training diverged.
    """
    folder = pathlib.Path(folder)
    clock = [time.monotonic()]
    seconds: dict[str, float] = {}

    def lap(phase):
        clock.append(time.monotonic())
        seconds[phase] = clock[-1] - clock[-2]

    if config.eval.every and jax.process_count() > 1:
        raise ConfigError(f"eval.every is {config.eval.every}, but with several processes there "
                          "is no evaluation between rounds; set it to 0")
    if resume and (folder / workdir.CONFIG).exists():
        config = keep_settled(config, workdir.read_config(folder))
    sim = build_simulation(config)
    config = sim.config
    weights = starting_weights(sim)
    with workdir.open_run(folder_of_process(folder), to_dict(config), resume) as writer, \
            RoundCheckpoints(folder, keep=config.checkpoint.keep) as checkpoints, \
            open_store(sim, folder) as store:
        save_split(writer.workdir / "split.npz", sim.split)
        lap("data")
        pretrained, embeddings = pretrained_model(sim, writer, folder / "pretrained", weights,
                                                  resume)
        lap("pretraining")
        server = starting_server(sim, checkpoints, pretrained, embeddings)
        writer.truncate_after(int(server.round))
        store.rewind(int(server.round))
        pretrained = jax.device_get(pretrained)
        server, figures = run_rounds(sim, writer, checkpoints, store, server, pretrained)
        lap("rounds")
        run = describe_run(config, folder.resolve().name, int(server.round))
        run |= figures | {"seconds": seconds}
        if jax.process_count() > 1:  # a process has its own clients' heads only
            writer.write_summary({"run": run})
            print(f"trained; evaluate with: python -m fedfr_jax.evaluate --workdir={folder}")
            return {"run": run}
        return write_results(sim, writer, run, pretrained, server.backbone,
                             personal_models(sim, store, pretrained, server.backbone))


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


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; settings are flags")
    with reports_input_errors():
        logging.set_verbosity(logging.WARNING)  # Orbax tells of every file at INFO
        config = resolve(flags.FLAGS.config)
        use_cpu_devices(config.engine.cpu_devices)
        join_processes()
        train(config, flags.FLAGS.workdir, resume=flags.FLAGS.resume)


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", None, "Settings, such as configs/quickstart.py; --config.a.b=x changes one.")
    flags.DEFINE_string("workdir", None, "Where everything is written.", required=True)
    flags.DEFINE_bool("resume", False, "Go on from the newest checkpoint in the work directory.")
    flags.mark_flag_as_required("config")
    define_distributed_flags()
    app.run(main)
