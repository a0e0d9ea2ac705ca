"""Runs the parts of an audit and writes what they found into the work directory."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fedfr_jax.atomic import write_text
from fedfr_jax.audit.opened import TrainedRun, open_trained
from fedfr_jax.audit.plan import PARTS, Plan
from fedfr_jax.data.types import ImageSource
from fedfr_jax.reporting.audit_section import (
    AuditData,
    audit_plots,
    audit_tables,
    load_audit,
    summary_table,
    write_audit,
)
from fedfr_jax.reporting.result_table import markdown
from fedfr_jax.runtime import workdir
from fedfr_jax.runtime.evaluation_file import EVALUATION

MARKDOWN = "audit.md"
EVERYTHING = Plan()
# part -> (facts for audit.json, ROC curves, pictures)
_Found = tuple[dict[str, Any], dict[str, tuple], dict[str, np.ndarray]]


def _membership(run: TrainedRun, plan: Plan) -> _Found:
    from fedfr_jax.audit.membership import audit_membership  # noqa: PLC0415 - parts are independent

    return *audit_membership(run, plan), {}


def _inversion(run: TrainedRun, plan: Plan) -> _Found:
    from fedfr_jax.audit.reconstruction import audit_inversion  # noqa: PLC0415

    facts, pictures = audit_inversion(run, plan)
    return facts, {}, pictures


def _leakage(run: TrainedRun, plan: Plan) -> _Found:
    from fedfr_jax.audit.leakage import audit_leakage  # noqa: PLC0415

    return audit_leakage(run, plan), {}, {}


def _canary(run: TrainedRun, plan: Plan) -> _Found:
    from fedfr_jax.audit.canary import audit_canary  # noqa: PLC0415

    return audit_canary(run, plan), {}, {}


_AUDITS: dict[str, Callable[[TrainedRun, Plan], _Found]] = {
    "membership": _membership,
    "inversion": _inversion,
    "leakage": _leakage,
    "canary": _canary,
}


def audit(
    folder: str | pathlib.Path,
    plan: Plan = EVERYTHING,
    *,
    source: ImageSource | None = None,
    **changed: Any,
) -> dict[str, Any]:
    """Audits the newest round of a run and writes the results into its work directory.

    After each part ``audit.json`` is written, so that an interrupted audit keeps the parts that are
    done. Parts that are not asked for stay if they are of the same round.

    Args:
      folder: the work directory.
      plan: what to do, and how much of it.
      source, **changed: as for :func:`fedfr_jax.audit.opened.open_trained`.

    Returns:
      What ``audit.json`` holds.

    Raises:
      InputError: the plan or the run cannot be used.
    """
    plan.check()
    with open_trained(folder, source=source, **changed) as run:
        found = load_audit(run.folder)
        if found is None or found.facts.get("round") != run.round:
            found = AuditData({"round": run.round, "method": run.sim.config.recipe.title})
        for part in PARTS:
            if part in plan.what:
                facts, curves, pictures = _AUDITS[part](run, plan)
                how = dataclasses.asdict(plan) | {"what": [part]}
                found = found.with_part(part, facts | {"plan": how}, curves, pictures)
                write_audit(run.folder, found)
        _write_texts(run.folder, found)
    return dict(found.facts)


def _write_texts(folder: pathlib.Path, found: AuditData) -> None:
    """``audit.md``, the plots, and the report with the new section, where there is one."""
    tables = [*audit_tables(found), summary_table(found)]
    text = [f"# Privacy audit of {folder.resolve().name}, after round {found.facts['round']}", ""]
    for table in [tables[-1], *tables[:-1]]:
        text += [f"## {table.title}", "", markdown(table)]
    write_text(folder / MARKDOWN, "\n".join(text))
    if (folder / workdir.SUMMARY).exists() and (folder / EVALUATION).exists():
        from fedfr_jax.reporting import html  # noqa: PLC0415 (matplotlib takes a second)

        html.write_report(folder / "report.html", html.load_report_data(folder))
        return
    from fedfr_jax.reporting.figures import png  # noqa: PLC0415

    (folder / "plots").mkdir(exist_ok=True)
    for plot in audit_plots(found):
        png(plot, folder / "plots")
