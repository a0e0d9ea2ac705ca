"""From initial weights through all rounds: the host's work around the compiled round."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import signal
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fedfr_jax import engine
from fedfr_jax.algorithm.initialize import initial_server, server_shapes
from fedfr_jax.algorithm.pretraining import pretrain
from fedfr_jax.algorithm.state import ServerState
from fedfr_jax.engine.compilations import compilations
from fedfr_jax.engine.once import run_once
from fedfr_jax.errors import InputError
from fedfr_jax.models.weight_file import read_weight_file
from fedfr_jax.models.weights import assumptions, weights_of
from fedfr_jax.runtime import accounting, interrupts, message_rows, workdir
from fedfr_jax.runtime.checkpoints import load_pytree, save_pytree
from fedfr_jax.runtime.course import Course, RoundInputs, Run
from fedfr_jax.runtime.parts import stored_means
from fedfr_jax.runtime.pretrained import folder_of_weights, saved_classifier
from fedfr_jax.runtime.processes import wait, worst
from fedfr_jax.runtime.programs import Programs, compile_programs, round_keys
from fedfr_jax.runtime.progress import track
from fedfr_jax.runtime.simulation import Simulation

PyTree = Any


def starting_weights(sim: Simulation) -> tuple[PyTree, jax.Array | None]:
    """Initial variables: random, or those that ``model.weights`` names.

    Returns:
      (variables, public class embeddings learned with them). The latter are None if there are
      none, or if pretraining learns them.

    Raises:
      InputError: the weights are missing or do not fit the model.
    """
    path = sim.config.model.weights
    variables = run_once(sim.network.init, jax.random.key(sim.config.seed))
    if not path:
        return variables, None
    if not pathlib.Path(path).is_dir():
        file, published = read_weight_file(path), sim.network.base or sim.network
        loaded = weights_of(file, published, path)
        _say_once(assumptions(file, published, path))
        # A projection head is not in the file; it starts as the identity.
        return {kind: variables[kind] | loaded[kind] for kind in variables}, None
    _say_once(f"weights {path}: of a run, whose images are RGB, (x - 127.5) / 127.5")
    return load_pytree(folder_of_weights(path) / "backbone", variables), (
        None if sim.config.pretrain.epochs else saved_classifier(sim)
    )


@functools.cache  # runs of one process often start from the same weights
def _say_once(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


def pretrained_model(
    sim: Simulation,
    writer: workdir.RunWriter,
    folder: pathlib.Path,
    start: tuple[PyTree, jax.Array | None],
    resume: bool,
    *,
    needed: bool = False,
) -> tuple[PyTree, jax.Array | None]:
    """The backbone before the first round and its public class embeddings, if it has any.

    It is trained and saved in the folder, or read from there when the run is resumed.

    Args:
      start: from :func:`starting_weights`.
      needed: rounds were done, so that it must be there.

    Raises:
      InputError: it is not there, or damaged.
      FloatingPointError: it diverged, or the initial weights are not finite.
    """
    config = sim.config
    finished = folder / "backbone"
    if resume and finished.is_dir():
        return _saved_model(sim, folder)
    if resume and needed:
        raise InputError(
            f"{finished} is missing, but rounds were trained from it; restore it from "
            "a copy, or start in another work directory"
        )
    writer.truncate_after(-1, pretrain_epoch=0)
    variables, learned = start
    if config.pretrain.epochs > 0:
        labels = sim.split.public_labels
        with track("pretraining", config.pretrain.epochs * len(labels), "image") as bar:
            started = time.monotonic()

            def on_epoch(row):
                seconds = time.monotonic() - started
                rate = row["epoch"] * len(labels) / seconds
                writer.append(row | {"images_per_second": rate})

            variables, learned = pretrain(
                sim.network,
                sim.public.images if sim.public_inputs is None else sim.public_inputs,
                labels,
                config.pretrain,
                variables=variables,
                mesh=sim.layout.mesh,
                seed=config.seed,
                augment=config.fed.mirror,
                on_epoch=on_epoch,
                on_step=lambda n, loss: bar.update(n, images=n, loss=loss),
            )
    check_finite(config, variables, learned)
    if learned is not None:
        save_pytree(folder / "public_embeddings", learned)
    save_pytree(finished, variables)
    return variables, learned


def _saved_model(sim: Simulation, folder: pathlib.Path) -> tuple[PyTree, jax.Array | None]:
    """Reads what :func:`pretrained_model` saved; pretraining always saves embeddings."""
    embeddings = folder / "public_embeddings"
    shapes = jax.eval_shape(sim.network.init, jax.random.key(0))
    return load_pytree(folder / "backbone", shapes), (
        load_pytree(embeddings, server_shapes(sim.spec, sim.public.identities).public_embeddings)
        if sim.config.pretrain.epochs > 0 or embeddings.is_dir()
        else None
    )


def check_finite(config, variables: PyTree, embeddings: PyTree) -> None:
    """Raises FloatingPointError if the model before the first round is not finite."""
    leaves = jax.tree.leaves(jax.device_get((variables, embeddings)))
    if not all(np.isfinite(np.asarray(x, np.float32)).all() for x in leaves):
        raise FloatingPointError(
            "the pretrained model is not finite; lower pretrain.lr"
            if config.pretrain.epochs
            else f"model.weights={config.model.weights!r} holds numbers that are not finite"
        )


def read_ahead(sim: Simulation, round_index: int, last: RoundInputs | None = None) -> RoundInputs:
    """The inputs of a round; those of the last round if the cohort is the same."""
    assigned = sim.schedule.assigned(round_index)
    if last is not None and np.array_equal(assigned, last.assigned):
        return last
    size = len(assigned) // sim.schedule.processes
    mine = assigned[jax.process_index() * size :][:size]
    anybody = (assigned >= 0).any()
    return RoundInputs(
        assigned,
        mine,
        sim.cohort_data(assigned, mine) if anybody and sim.parts_of_rounds is None else None,
    )


def go_together(runs: Sequence[Run]) -> bool:
    """Whether runs can share a program: they differ only in the seed and are equally far.

    Runs whose rounds are in parts have too little memory for it.
    Their clients then have the same images, and in every round the same ones take part.
    """

    def but_seed(run):
        return dataclasses.replace(run.sim.config, seed=0)

    first = runs[0]
    return (
        jax.process_count() == 1
        and (len(runs) == 1 or not first.sim.parts_of_rounds)
        and all(
            but_seed(run) == but_seed(first)
            and int(run.server.round) == int(first.server.round)
            and np.array_equal(run.sim.schedule.cohorts, first.sim.schedule.cohorts)
            for run in runs
        )
    )


def run_rounds(
    runs: Sequence[Run], *, until: int | None = None, programs: Programs | None = None
) -> list[tuple[ServerState, dict[str, Any]]]:
    """Runs the remaining rounds, with checkpoints and the evaluations set by ``eval.every``.

    Args:
      runs: one, or several that :func:`go_together`.
      until: number of rounds after which to stop; None: all of the run.
      programs: from :func:`compile_programs` for as many runs, to reuse them in several calls.

    Returns:
      For each run: (server, numbers for the summary).

    Raises:
      FloatingPointError: training diverged.
      Stopped: by a signal; all finished rounds are saved.
    """
    sim, programs = runs[0].sim, programs or compile_programs(runs[0].sim, len(runs))
    programs.wait()
    first = int(runs[0].server.round)
    last = sim.config.rounds if until is None else until
    courses = [Course(run, programs, last) for run in runs]
    keys = round_keys(tuple(run.sim.config.seed for run in runs), sim.layout.mesh)
    compiled = {"first round": 0, "later rounds": 0}
    inputs = read_ahead(sim, first) if first < last else None
    # The pretrained model does not change: its evaluation need not keep the first round waiting.
    pretrained = [course for course in courses if course.lacks_pretrained()]
    try:
        with track("federated rounds", last - first, "round") as bar:
            for r in range(first, last):
                due = [course for course in courses if r and course.evaluates_at(r)]
                if due and all([course.save() for course in courses]):
                    interrupts.release()
                for course in due:
                    course.evaluate(r)
                before = compilations()
                rows, inputs = _one_round(sim, programs, courses, keys, r, r + 1 < last, inputs)
                compiled["first round" if r == first else "later rounds"] += compilations() - before
                loss = {"loss": rows[0]["loss"]} if "loss" in rows[0] else {}
                about = loss | message_rows.shown(rows[0])
                bar.update(1, images=sum(row["images"] for row in rows), **about)
                while pretrained:
                    pretrained.pop().evaluate_pretrained()
            finished = [course.finish(compiled) for course in courses]
            interrupts.release()
            return finished
    finally:
        interrupts.release(stop=False)


def _one_round(
    sim: Simulation,
    programs: Programs,
    courses: Sequence[Course],
    keys,
    r: int,
    goes_on: bool,
    inputs: RoundInputs | None,
) -> tuple[list[dict[str, Any]], RoundInputs | None]:
    """Round ``r`` of all courses; returns (their records, the next round's inputs)."""
    assert inputs is not None  # read_ahead() gives them for every round of the run
    started = time.monotonic()
    results: list[Any] = []
    if sim.parts_of_rounds is not None and (inputs.assigned >= 0).any():
        [course], [key] = courses, keys  # see go_together()
        if course.save():  # before heads of this round are stored
            interrupts.release()
        results = [course.in_parts(inputs, key, r + 1)]
    elif inputs.cohort is not None:
        results = programs.round(
            [course.server for course in courses],
            [course.hand_out(inputs) for course in courses],
            sim.public,
            inputs.cohort,
            keys,
        )
        results = [
            (*result, course.finite(*result[:2]))
            for course, result in zip(courses, results, strict=True)
        ]
    # While the devices work, the host writes the last round and reads the next.
    if all([course.save() for course in courses]):
        interrupts.release()
    following = read_ahead(sim, r + 1, inputs) if goes_on else None
    accounting.spent(sim.config, sim.schedule, r + 1)  # takes a while, and is remembered
    for course in courses:
        course.read_ahead(inputs, following)
    wait([result[2:] for result in results])
    results = [(server, heads, *jax.device_get(rest)) for server, heads, *rest in results]
    seconds = (time.monotonic() - started) / len(courses)  # a run's share
    stops = bool(worst(int(interrupts.pending())))  # all processes stop after the same round
    interrupts.hold()
    if not results:
        rows = [course.pass_over(r + 1, inputs, seconds, stops=stops) for course in courses]
    else:
        rows = [
            course.keep(
                r + 1, server, heads, metrics, finite, inputs, following, seconds, stops=stops
            )
            for course, (server, heads, metrics, finite) in zip(courses, results, strict=True)
        ]
    if stops:
        for course in courses:
            course.save()
        interrupts.release()
        raise interrupts.Stopped(signal.SIGTERM)  # another process was asked to
    return rows, following


def starting_server(
    sim: Simulation, pretrained: PyTree, embeddings, saved: ServerState | None = None
) -> ServerState:
    """The server on all devices: the saved one, or the initial one."""
    mesh = sim.layout.mesh
    if saved is None:
        pretrained, embeddings = engine.replicate((pretrained, embeddings), mesh)
        if embeddings is None and sim.public_inputs is not None and len(sim.public_inputs):
            embeddings = stored_means(sim, pretrained)
        saved = initial_server(sim.spec, sim.layout, pretrained, embeddings, sim.public)
    # A copy: rounds donate the server's memory, and these arrays may be the caller's.
    return engine.replicate(jax.tree.map(np.array, saved), mesh)
