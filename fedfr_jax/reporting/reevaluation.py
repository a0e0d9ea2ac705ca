"""Evaluates a run again, from its work directory."""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any

from absl import logging

from fedfr_jax.config import merged, resolve, to_dict
from fedfr_jax.engine import use_cpu_devices
from fedfr_jax.errors import DamagedError
from fedfr_jax.reporting.results import describe_run, make_assessor, notes, write_results
from fedfr_jax.runtime import resuming, workdir
from fedfr_jax.runtime.activations import trained_variables, with_activations
from fedfr_jax.runtime.changes import check_changes
from fedfr_jax.runtime.checkpoints import RoundCheckpoints
from fedfr_jax.runtime.client_states import open_stores, personal_models
from fedfr_jax.runtime.lock import WorkdirLock
from fedfr_jax.runtime.simulation import build_simulation


def evaluate(folder: str | pathlib.Path, **changed: Any) -> dict[str, Any]:
    """Evaluates the newest checkpoint of a work directory; returns the summary.

    Server and clients are of the same round. If the newest is damaged, the one before is used,
    with a warning.

    Args:
      folder: the work directory.
      **changed: settings that may differ from the run's: ``data={"root": ...}`` if it was moved.

    Raises:
      InputError: there is no run or checkpoint, or it is damaged, or the data have changed.
    """
    folder = pathlib.Path(folder).expanduser()
    earlier = workdir.read_config(folder)
    config = resolve(merged(earlier, changed))
    check_changes(folder, earlier, to_dict(config))
    use_cpu_devices(config.engine.cpu_devices)
    with contextlib.ExitStack() as files:
        files.enter_context(WorkdirLock(folder))
        sim = build_simulation(config)
        resuming.check_data(sim, folder)
        pretrained = resuming.load_pretrained(sim, folder)
        checkpoints = files.enter_context(RoundCheckpoints(folder))
        sim = with_activations(sim, pretrained, folder, images=False)
        pretrained = trained_variables(sim, pretrained)
        stores = [files.enter_context(store) for store in open_stores(sim, folder)]
        server = resuming.state_to_evaluate(sim, checkpoints, stores)
        run = describe_run(config, folder.resolve().name, int(server.round))
        if (folder / workdir.SUMMARY).exists():
            try:
                run = workdir.read_summary(folder).get("run", {}) | run
            except DamagedError as error:  # all results but the times can be computed again
                logging.warning(
                    "%s is not used: times and rates of the training are lost (%s)",
                    folder / workdir.SUMMARY,
                    error,
                )
        run |= notes(workdir.read_metrics(folder), sim, run["rounds"])
        writer = files.enter_context(workdir.RunWriter(folder))
        return write_results(
            sim,
            writer,
            run,
            make_assessor(sim),
            pretrained,
            server.backbone,
            personal_models(sim, stores, server.backbone),
        )
