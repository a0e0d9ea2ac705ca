"""The results of a run: all protocols on its models, written down and shown."""

from __future__ import annotations

import collections
import platform
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedfr_jax import engine
from fedfr_jax.config import Config
from fedfr_jax.data.split_file import describe_split
from fedfr_jax.evaluation import HEADLINE_MODELS, assess, examples
from fedfr_jax.evaluation.sharing import Share
from fedfr_jax.evaluation.variants import (
    PERSONALIZED,
    SELECTED,
    Validation,
    assess_personalized,
    assess_variants,
)
from fedfr_jax.population.cohort_data import PublicData
from fedfr_jax.population.images import StoredImages
from fedfr_jax.reporting import tables
from fedfr_jax.reporting.by_time import time_to_accuracy
from fedfr_jax.reporting.headline import headline
from fedfr_jax.reporting.result_table import render
from fedfr_jax.runtime import accounting, costs, message_rows, workdir
from fedfr_jax.runtime.activations import remembered
from fedfr_jax.runtime.embedding import make_embed, make_transform, own_mesh
from fedfr_jax.runtime.processes import gather_bytes, together
from fedfr_jax.runtime.progress import track
from fedfr_jax.runtime.remarks import first_remark
from fedfr_jax.runtime.simulation import Simulation

PyTree = Any
_IMPOSTORS = 512  # public images, at most, that a client chooses its model with


def make_assessor(sim: Simulation) -> assess.Assessor:
    """What the models of a simulation are evaluated on; nothing is compiled before it is used."""

    lower = remembered(sim)

    def training_images(number):
        read = sim.client_images.read if sim.parts is None else sim.source.read
        return read(sim.split.clients[number].train_images)

    def gallery(number):
        client = sim.split.clients[number]
        found = sim.client_images.read(client.train_images)
        # Activations are there after rounds; where the run is only evaluated, images are.
        inputs = lower(found) if found.dtype == np.uint8 else found[:, 0]
        return inputs, client.train_labels

    return assess.Assessor(
        sim.config.eval,
        sim.held_out,
        sim.generic,
        training_images,
        gallery,
        lower,
        make_embed(sim),
        make_transform(sim),
        min(sim.config.eval.batch_size * own_mesh(sim).size, 4096),
        Share(jax.process_index(), jax.process_count(), gather_bytes)
        if jax.process_count() > 1
        else Share(),
    )


def evaluate_models(
    sim: Simulation,
    assessor: assess.Assessor,
    pretrained: PyTree,
    backbone: PyTree,
    personal: assess.PersonalModels,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All protocols on the pretrained, the global and the personalized models.

    All processes of a run call this together, and get the same.

    Args:
      assessor: from :func:`make_assessor`.
      pretrained, backbone: variables before the first and after the last round.
      personal: the clients' personalized models.

    Returns:
      (models as in ``summary.json``, arguments of ``write_evaluation``).
    """
    chosen: list[str] = []
    mine = len(assessor.share.positions(sim.held_out.numbers))
    with track("evaluation", 3 * mine, "client") as bar:
        results = {
            "pretrained": assess.assess_shared(assessor, pretrained, bar.update),
            "global": assess.assess_shared(assessor, backbone, bar.update),
        }
        if sim.config.eval.variants and sim.config.recipe.trains and not sim.config.recipe.union:
            found, chosen = assess_variants(
                assessor, personal, backbone, bar.update, make_validation(sim)
            )
            results |= found
        else:
            results[PERSONALIZED] = assess_personalized(assessor, personal, bar.update)
    rocs, per_client = assess.curves(results)
    summaries = {name: assess.summarize(a) for name, a in results.items()}
    for name in results.keys() - {"pretrained", "global"}:
        assess.add_losers(summaries[name], results[name], results["global"])
    if chosen:
        summaries[SELECTED]["chosen"] = dict(collections.Counter(chosen))
    count, public = sim.config.eval.examples, public_photographs(sim)
    uses_hard = sim.config.fed.public_data == "hard"
    parts = {
        "rocs": rocs,
        "per_client": per_client,
        "faces": examples.identity_sheet(public),
        "hard_negatives": examples.hard_negative_examples(assessor, backbone, public.images, count)
        if uses_hard
        else [],
        "mistakes": examples.mistake_examples(assessor, personal, results["personalized"], count),
    }
    return summaries, parts


def make_validation(sim: Simulation) -> Validation | None:
    """What clients choose their models on, if the split sets images aside for it."""
    clients = sim.split.clients
    if not clients.validation_images:
        return None

    def images(client: int) -> tuple[np.ndarray, np.ndarray]:
        numbers, labels = clients.validation(np.array([client]))
        return sim.source.read(numbers), labels

    public = sim.split.public_images
    some = public[np.linspace(0, len(public) - 1, min(len(public), _IMPOSTORS)).astype(int)]
    return Validation(images, sim.source.read(some))


def public_photographs(sim: Simulation) -> PublicData:
    """The public images themselves, where rounds take their activations; perhaps as stored."""
    if sim.public_inputs is not None:
        return sim.public.replace(images=StoredImages(sim.source, sim.split.public_images))
    if sim.parts is None:
        return sim.public.replace(images=engine.addressable(sim.public.images))
    return sim.public.replace(images=sim.source.read(sim.split.public_images))


def append_evaluation(writer: workdir.RunWriter, round_index: int, models: dict[str, Any]) -> None:
    """Adds the models' metrics to ``metrics.jsonl``, unless they are there already."""
    there = {
        (row.get("round"), row.get("model"))
        for row in workdir.read_metrics(writer.workdir)
        if row["kind"] == "evaluation"
    }
    for model, result in models.items():
        if (round_index, model) not in there:
            writer.append(
                {
                    "kind": "evaluation",
                    "round": round_index,
                    "model": model,
                    **assess.flat_metrics(result),
                }
            )


def describe_run(config: Config, name: str, rounds_done: int) -> dict[str, Any]:
    """What was run and on what, for the summary."""
    device = jax.devices()[0]
    kind = (
        platform.processor() or platform.machine()
        if device.platform == "cpu"
        else (device.device_kind)
    )
    return {
        "name": f"Run {name}",
        "method": config.recipe.title,
        "seed": config.seed,
        "clients": config.fed.num_clients,
        "rounds": rounds_done,
        "device": f"{len(jax.devices())} x {device.platform} ({kind})"
        + (f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""),
        "jax": jax.__version__,
    }


def notes(
    rows: list[dict[str, Any]], sim: Simulation | None = None, done: int = 0
) -> dict[str, Any]:
    """What a run's rows tell beside its results, for the summary.

    Args:
      rows: of ``metrics.jsonl``.
      sim: the simulation, for :func:`about_messages`; done: rounds done.

    Returns:
      ``changes``: per change of settings when the run was resumed the ``round`` after which it
      holds, and ``settings``: name -> [old, new]. ``remark``: see
      :mod:`fedfr_jax.runtime.remarks`, where there is one.
    """
    changed = [
        {"round": row["round"], "settings": row["settings"]}
        for row in rows
        if row.get("kind") == "change"
    ]
    text = first_remark(rows)
    about = {} if sim is None else about_messages(sim, done, rows)
    return {"changes": changed} | ({"remark": text} if text else {}) | about


def about_messages(sim: Simulation, done: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Privacy, hostile and lost clients of a run, for the summary; {} where there are none.

    Args:
      done: rounds done.
      rows: of ``metrics.jsonl``.
    """
    found: dict[str, Any] = {}
    if privacy := accounting.describe(sim.config, sim.schedule, done):
        found["privacy"] = privacy
    if sim.config.fed.aggregator != "mean":
        found["aggregator"] = sim.config.fed.aggregator
    if sim.spec.message.hostile_clients:
        found["hostile"] = {
            "attack": sim.config.hostile.attack,
            "strength": sim.config.hostile.strength,
            "clients": list(sim.spec.message.hostile_clients),
        }
    return found | message_rows.in_all(rows)


def describe_costs(sim: Simulation, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client's round costs on average, for the summary.

    Args:
      rows: of ``metrics.jsonl``.
    """
    found = [row["flops_per_client"] for row in rows if "flops_per_client" in row]
    identities = float(sim.schedule.clients.identity_counts.mean())
    return costs.communication(sim.spec, sim.public.identities, identities, sim.config.rounds) | {
        "flops": float(np.mean(found)) if found else 0.0
    }


def write_results(
    sim: Simulation,
    writer: workdir.RunWriter,
    run: dict[str, Any],
    assessor: assess.Assessor,
    pretrained: PyTree,
    backbone: PyTree,
    personal: assess.PersonalModels,
    *,
    show: bool = True,
) -> dict[str, Any]:
    """Evaluates, writes ``summary.json``, ``evaluation.npz`` and ``report.html``, prints tables.

    Args:
      run: the ``run`` part of the summary.
      assessor, pretrained, backbone, personal: as for :func:`evaluate_models`.
      show: whether to print.

    All processes of a run call this together; the first one writes.

    Returns:
      The summary.
    """
    models, parts = evaluate_models(sim, assessor, pretrained, backbone, personal)
    summary: dict[str, Any] = {
        "run": run,
        "split": describe_split(sim.split, sim.source.name),
        "evaluated": {"clients": len(sim.held_out.numbers), "of": len(sim.split.clients)},
        "costs": describe_costs(sim, workdir.read_metrics(writer.workdir)),
        "models": models,
    }
    summary["headline"] = headline(summary, parts["per_client"])
    first = jax.process_index() == 0
    # Nobody ends before everything is written.
    together(lambda: _write(sim, writer, summary, parts, show) if first else None)
    return summary


def _write(
    sim: Simulation,
    writer: workdir.RunWriter,
    summary: dict[str, Any],
    parts: dict[str, Any],
    show: bool,
) -> None:
    """Writes the results of a run, and prints them where they are to be shown."""
    models = summary["models"]
    append_evaluation(
        writer,
        summary["run"]["rounds"],
        {name: models[name] for name in HEADLINE_MODELS if name in models},
    )
    rows = workdir.read_metrics(writer.workdir)  # with those of this evaluation
    if times := time_to_accuracy(rows, sim.config.simulated_time.levels):
        summary["time_to_accuracy"] = times
    writer.write_summary(summary)
    writer.write_evaluation(**parts)
    writer.flush()
    from fedfr_jax.reporting import html  # noqa: PLC0415 (matplotlib takes a second)

    html.write_report(writer.workdir / "report.html", html.load_report_data(writer.workdir))
    if show:
        render(tables.closing_tables(summary))
        print(*summary["headline"], "", sep="\n")
        print(f"report: {writer.workdir / 'report.html'}")


def make_round_evaluation(
    writer: workdir.RunWriter, make: Callable[[], assess.Assessor], pretrained: PyTree
) -> Callable[..., None]:
    """The evaluation between rounds that ``eval.every`` asks for.

    Args:
      make: the assessor, asked for when it is needed.

    Returns:
      ``(rounds done, backbone, personal models)``, which adds rows to ``metrics.jsonl``; for
      0 rounds, of the pretrained model alone, and without personal models.
    """

    def evaluate(done: int, backbone: PyTree, personal: assess.PersonalModels | None) -> None:
        assessor = make()
        if personal is None:
            models = {"pretrained": assess.assess_shared(assessor, pretrained)}
        else:
            models = {
                "global": assess.assess_shared(assessor, backbone),
                PERSONALIZED: assess_personalized(assessor, personal),
            }
        if jax.process_index() == 0:
            append_evaluation(writer, done, {n: assess.summarize(a) for n, a in models.items()})

    return evaluate
