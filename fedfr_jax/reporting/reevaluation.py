"""Evaluates a run again, from its work directory."""

from __future__ import annotations

import pathlib
from typing import Any

from absl import logging

from fedfr_jax.errors import DamagedError
from fedfr_jax.reporting.results import describe_run, make_assessor, notes, write_results
from fedfr_jax.runtime import workdir
from fedfr_jax.runtime.client_states import personal_models
from fedfr_jax.runtime.reopened import reopen


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
    with reopen(folder, **changed) as opened:
        folder, sim, server = opened.folder, opened.sim, opened.server
        run = describe_run(opened.config, folder.resolve().name, int(server.round))
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
        with workdir.RunWriter(folder) as writer:
            return write_results(
                sim,
                writer,
                run,
                make_assessor(sim),
                opened.pretrained,
                server.backbone,
                personal_models(sim, opened.stores, server.backbone),
            )
