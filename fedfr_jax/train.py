"""Trains: pretraining, federated rounds, evaluation, report.

    python -m fedfr_jax.train --config=configs/quickstart.py --workdir=runs/x \\
        --config.fed.num_clients=64
    python -m fedfr_jax.train --config=configs/quickstart.py --workdir=runs/x --resume
"""
from __future__ import annotations

import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from fedfr_jax import assess, engine, fedfr, workdir
from fedfr_jax.checkpoints import RoundCheckpoints, load_pytree, save_pytree
from fedfr_jax.cli import reports_input_errors
from fedfr_jax.compilations import compilations
from fedfr_jax.config import Config, resolve, to_dict
from fedfr_jax.data.split import save_split
from fedfr_jax.evaluate import append_evaluation, describe_run, write_results
from fedfr_jax.initialize import initial_state, state_shapes
from fedfr_jax.models import load_weights
from fedfr_jax.pretrain import pretrain
from fedfr_jax.progress import track
from fedfr_jax.simulation import (
    Simulation,
    build_simulation,
    compile_round,
    round_key,
    use_cpu_devices,
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


def pretrained_model(sim: Simulation, writer: workdir.RunWriter, variables: PyTree,
                     resume: bool) -> tuple[PyTree, jax.Array | None]:
    """The backbone before the first round and its public class embeddings, if it has any.

    Trained from ``variables`` and saved in the work directory, or read from there when the
    run is resumed.
    """
    folder, config = writer.workdir / "pretrained", sim.config
    finished = folder / "backbone"
    trains = config.pretrain.epochs > 0
    if resume and finished.is_dir():
        shapes = state_shapes(sim.method, sim.layout, sim.data)[0]
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
                sim.backbone, sim.data.images, labels, config.pretrain, variables=variables,
                mesh=sim.layout.mesh, seed=config.seed, augment=config.fed.mirror,
                on_epoch=on_epoch,
                on_step=lambda n, loss: bar.update(n, images=n, loss=loss))
        save_pytree(folder / "public_embeddings", embeddings)
    save_pytree(finished, variables)
    return variables, embeddings


def round_row(config: Config, round_index: int, metrics: dict[str, np.ndarray], public: int,
              seconds: float) -> dict[str, Any]:
    """One row of ``metrics.jsonl``: means over clients, and the hard negatives' range.

    Raises:
      FloatingPointError: a client's loss is not finite.
    """
    bad = np.flatnonzero(~np.isfinite(metrics["loss"]))
    if len(bad):
        raise FloatingPointError(
            f"round {round_index}: the loss of client {bad[0]} is not finite ({len(bad)} such "
            "clients); lower fed.lr. The last checkpoint is from before this round")
    hard = metrics["hard_negatives"]
    trained = int(metrics["steps"].sum()) * config.fed.batch_size
    return {"kind": "round", "round": round_index,
            **{k: float(np.mean(metrics[k])) for k in fedfr.LOSS_TERMS},
            "hard_negatives_mean": float(hard.mean()), "hard_negatives_min": int(hard.min()),
            "hard_negatives_max": int(hard.max()), "public_images": public,
            "images": trained, "seconds": seconds, "images_per_second": trained / seconds}


def run_rounds(sim: Simulation, writer: workdir.RunWriter, checkpoints: RoundCheckpoints,
               server, heads, pretrained: PyTree) -> tuple[Any, Any, dict[str, Any]]:
    """All rounds that are left, with checkpoints and the evaluations that ``eval.every`` asks for.

    Returns:
      (server, heads, figures for the summary).
    """
    config, step, key = sim.config, compile_round(sim), round_key(sim.config)
    first, rows = int(server.round), []
    assessor = assess.make_assessor(sim) if config.eval.every else None
    compiled = {"first round": 0, "later rounds": 0}
    with track("federated rounds", config.fed.rounds - first, "round") as bar:
        for r in range(first, config.fed.rounds):
            if assessor and r % config.eval.every == 0:
                _evaluate_between(assessor, writer, r, server, heads, pretrained)
            before, started = compilations(), time.monotonic()
            server, heads, metrics = step(server, heads, sim.data, key)
            metrics = jax.device_get(metrics)
            row = round_row(config, r + 1, metrics, len(sim.split.public_images),
                            time.monotonic() - started)
            compiled["first round" if r == first else "later rounds"] += compilations() - before
            checkpoints.save(r + 1, (server, heads), force=r + 1 == config.fed.rounds)
            writer.append(row)
            rows.append(row)
            bar.update(1, images=row["images"], loss=row["loss"])
    warm = rows[1:] or rows
    seconds = sum(row["seconds"] for row in warm)
    return server, heads, {
        "compilations": compiled,
        "images_per_second": sum(r["images"] for r in warm) / seconds if warm else None}


def _evaluate_between(assessor, writer, round_index, server, heads, pretrained) -> None:
    if round_index == 0:
        models = {"pretrained": assess.assess_shared(assessor, pretrained)}
    else:
        models = {"global": assess.assess_shared(assessor, server.backbone),
                  "personalized": assess.assess_personalized(assessor, heads)}
    append_evaluation(writer, round_index, {n: assess.summarize(a) for n, a in models.items()})


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

    sim = build_simulation(config)
    weights = starting_weights(sim)
    with workdir.open_run(folder, to_dict(config), resume) as writer, RoundCheckpoints(
            folder, every=config.checkpoint.every, keep=config.checkpoint.keep) as checkpoints:
        save_split(folder / "split.npz", sim.split)
        lap("data")
        pretrained, embeddings = pretrained_model(sim, writer, weights, resume)
        pretrained, embeddings = engine.replicate((pretrained, embeddings), sim.layout.mesh)
        lap("pretraining")
        if checkpoints.latest() is not None:
            server, heads = checkpoints.restore(state_shapes(sim.method, sim.layout, sim.data))
            writer.truncate_after(int(server.round))
        else:
            writer.truncate_after(0)
            server, heads = initial_state(sim.method, sim.layout, pretrained, embeddings,
                                          sim.data, jax.random.key(config.seed + 1))
        # The round gives its inputs' memory to its outputs: the pretrained backbone needs a copy.
        pretrained = jax.device_get(pretrained)
        server, heads = engine.replicate((server, heads), sim.layout.mesh)
        server, heads, figures = run_rounds(sim, writer, checkpoints, server, heads, pretrained)
        lap("rounds")
        run = describe_run(config, folder.resolve().name, int(server.round))
        return write_results(sim, writer, run | figures | {"seconds": seconds}, pretrained,
                             server.backbone, heads)


_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Settings, such as configs/quickstart.py; --config.a.b=x changes one.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; settings are flags")
    with reports_input_errors():
        logging.set_verbosity(logging.WARNING)  # Orbax tells of every file at INFO
        config = resolve(_CONFIG.value)
        use_cpu_devices(config.engine.cpu_devices)
        train(config, flags.FLAGS.workdir, resume=flags.FLAGS.resume)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Where everything is written.", required=True)
    flags.DEFINE_bool("resume", False, "Go on from the newest checkpoint in the work directory.")
    flags.mark_flag_as_required("config")
    app.run(main)
