"""The report of a run: one self-contained HTML file, and its plots as PNG."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from fedfr_jax.atomic import write_text
from fedfr_jax.config import Config, to_dict
from fedfr_jax.data.held_out import evaluated_clients
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation import HEADLINE_FAR, HEADLINE_FPIR, HEADLINE_MODELS
from fedfr_jax.reporting import client_plots, plots, tables
from fedfr_jax.reporting.audit_section import (
    AuditData,
    audit_plots,
    audit_tables,
    load_audit,
    section_notes,
)
from fedfr_jax.reporting.pictures import (
    PAIRS,
    checked_image,
    contact_sheet,
    hard_negative_cards,
    jpeg,
    mistake_cards,
)
from fedfr_jax.runtime import workdir
from fedfr_jax.runtime.changes import changed_settings
from fedfr_jax.runtime.progress import duration, quantity


@dataclasses.dataclass(frozen=True)
class ReportData:
    """The contents of a report; a part that is empty or None is left out.

    Attributes:
      title: heading.
      config: resolved settings, nested dicts.
      split: readable counts, label -> number or text.
      metrics: records of ``metrics.jsonl``.
      summary: as in ``summary.json`` (see :mod:`fedfr_jax.reporting.tables`), with "run".
      rocs: protocol -> model -> (far (n,), tar (n,)).
      per_client: metric -> model -> (C,) shares in [0, 1], NaN where undefined.
      faces: (rows, cols, S, S, 3) uint8 contact sheet.
      hard_negatives: dicts of client, local_image, public_image (S, S, 3) uint8, cosine.
      mistakes: dicts of kind ("false accept" or "false reject"), model, client,
        image_a, image_b (S, S, 3) uint8, score, threshold.
      faces_caption: explains the rows of the contact sheet.
      audit: of the run's privacy (:mod:`fedfr_jax.audit`), where there is one.
    """

    title: str
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    split: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    summary: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rocs: Mapping[str, Mapping[str, tuple]] = dataclasses.field(default_factory=dict)
    per_client: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    faces: np.ndarray | None = None
    hard_negatives: Sequence[Mapping[str, Any]] = ()
    mistakes: Sequence[Mapping[str, Any]] = ()
    faces_caption: str = "Each row shows images of one identity."
    audit: AuditData | None = None


def load_report_data(directory: str | os.PathLike) -> ReportData:
    """Collects a report's data from the files of a finished run.

    The title is ``summary["run"]["name"]``, the counts are ``summary["split"]``.

    Raises:
      InputError: a file is missing or corrupt.
    """
    summary = workdir.read_summary(directory)
    title = summary.get("run", {}).get("name") or pathlib.Path(directory).resolve().name
    return ReportData(
        title=str(title),
        config=workdir.read_config(directory),
        split=summary.get("split", {}),
        metrics=workdir.read_metrics(directory),
        summary=summary,
        audit=load_audit(directory),
        **workdir.read_evaluation(directory),
    )


def _shown(value: Any) -> str:
    """A fact about the run in readable form."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(item) for item in value)
    return str(value) if isinstance(value, (str, bool)) else quantity(value)


def _facts(data: ReportData) -> list[tuple[str, str]]:
    run = data.summary.get("run", {})
    facts = []
    for key, value in run.items():
        if key not in ("seconds", "name", "changes"):
            label = "images/s" if key == "images_per_second" else key.replace("_", " ")
            facts.append((label, str(value) if key == "seed" else _shown(value)))
    facts += [
        (
            f"changed after round {change['round']}",
            ", ".join(f"{name}: {old} → {new}" for name, (old, new) in change["settings"].items()),
        )
        for change in run.get("changes", ())
    ]
    known = {label for label, _ in facts}
    return facts + [
        (str(key).replace("_", " "), _shown(value))
        for key, value in data.split.items()
        if str(key).replace("_", " ") not in known
    ]


def _phases(data: ReportData) -> list[dict[str, Any]]:
    seconds = {
        str(key): float(value)
        for key, value in (data.summary.get("run", {}).get("seconds") or {}).items()
        if value is not None
    }
    longest = max((value for key, value in seconds.items() if key != "total"), default=0.0)
    return [
        {
            "name": key.replace("_", " "),
            "time": duration(value),
            "bar": 100 * value / longest if longest > 0 else 0.0,
        }
        for key, value in seconds.items()
        if key != "total"
    ]


def _headline_rate(models: Mapping[str, Any], key: str, aim: float) -> str | None:
    """The rate nearest to ``aim`` that every model resolves."""
    found = [model["personalized"] for model in models.values() if model.get("personalized")]
    marks = {float(rate) for part in found for rate in part.get("unresolvable", {}).get(key, ())}
    rates = {
        rate
        for part in found
        for rate in part.get(key, {})
        if float(rate) not in marks and float(rate) > 0
    }
    return tables.headline_rate(rates, aim) if rates else None


def _tile(
    label: str, model: str, new: float | None, baselines: Mapping[str, float | None]
) -> dict[str, Any] | None:
    """A number and its differences to other models, the most important one first."""
    if new is None or not math.isfinite(new):
        return None
    changes = [
        {
            "change": f"{100 * (new - old):+.1f} points",
            "old": f"{name} {100 * old:.1f} %",
            "sign": "" if new == old else "up" if new > old else "down",
        }
        for name, old in baselines.items()
        if old is not None and math.isfinite(old)
    ]
    return {"label": label, "model": model, "value": f"{100 * new:.1f} %", "changes": changes}


def _tiles(data: ReportData) -> list[dict[str, Any]]:
    """The results in one line: generic accuracy and personal TAR and TPIR.

    The global model is compared with the pretrained one; the personalized models with the global
    one (the gain by personalization), and then with the pretrained one.
    """
    models = data.summary.get("models", {})
    tiles = []
    generic = {name: models.get(name, {}).get("generic", {}) for name in ("global", "pretrained")}
    for set_name, found in list(generic["global"].items())[:4]:  # the tables below show all sets
        old = generic["pretrained"].get(set_name, {}).get("accuracy")
        tiles.append(
            _tile(f"{set_name}: accuracy", "global", found.get("accuracy"), {"pretrained": old})
        )
    personal = {name: models.get(name, {}).get("personalized", {}) for name in HEADLINE_MODELS}
    for key, aim, label in (
        ("verification_tar", HEADLINE_FAR, "Personalized 1:1, TAR @ FAR"),
        ("identification_openset", HEADLINE_FPIR, "Personalized 1:N, TPIR @ FPIR"),
    ):
        rate = _headline_rate(models, key, aim)
        if rate is not None:
            means = {
                name: found.get(key, {}).get(rate, {}).get("mean")
                for name, found in personal.items()
            }
            tiles.append(
                _tile(
                    f"{label} {tables.rate_label(rate)}",
                    "personalized",
                    means["personalized"],
                    {name: means[name] for name in ("global", "pretrained")},
                )
            )
    return [tile for tile in tiles if tile is not None]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text)."""
    rows = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _setting(value)))
    return rows


def _numbers(data: ReportData, count: int) -> np.ndarray:
    """The numbers of the ``count`` evaluated clients."""
    clients = data.summary.get("evaluated", {}).get("of", count)
    return evaluated_clients(clients, count, data.config.get("data", {}).get("seed", 0))


def _changed(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(setting, its value, the default) of the settings that differ from the defaults."""
    changed = changed_settings(to_dict(Config()), config) if config else {}
    shown = {name: value for name, value in changed.items() if not name.startswith("engine.")}
    return [(name, _setting(new), _setting(old)) for name, (old, new) in shown.items()]


def _setting(value: Any) -> str:
    shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return shown if shown else "–"


@plots.styled
def all_plots(data: ReportData) -> dict[str, list[plots.Plot]]:
    """Section -> plots, without the empty ones."""
    training = [
        plots.pretraining(data.metrics),
        plots.loss_terms(data.metrics),
        plots.hard_negatives(data.metrics),
        *plots.evaluations(data.metrics),
    ]
    curves = [plots.roc(protocol, models) for protocol, models in data.rocs.items()]
    clients = []
    for metric, models in data.per_client.items():
        shown = {name: models[name] for name in models if name in HEADLINE_MODELS}
        clients.append(client_plots.distribution(metric, shown))
        clients += [
            client_plots.gains(
                metric,
                models[reference],
                models["personalized"],
                reference,
                _numbers(data, len(models["personalized"])),
            )
            for reference in ("global", "pretrained")
            if reference in models and "personalized" in models
        ]
    audit = [] if data.audit is None else audit_plots(data.audit)
    sections = {"training": training, "roc": curves, "clients": clients, "audit": audit}
    found = {name: [plot for plot in drawn if plot is not None] for name, drawn in sections.items()}
    names: dict[str, int] = {}
    for name, drawn in found.items():
        for place, plot in enumerate(drawn):
            names[plot.name] = names.get(plot.name, 0) + 1
            if names[plot.name] > 1:  # two metrics whose names differ in punctuation only
                found[name][place] = dataclasses.replace(
                    plot, name=f"{plot.name}-{names[plot.name]}"
                )
    return found


def template(name: str) -> jinja2.Template:
    """One of the package's page templates."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("fedfr_jax.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    ).get_template(name)


def with_svg(drawn: Sequence[plots.Plot]) -> list[dict[str, Any]]:
    """Plots in the form that the templates need."""
    return [{"plot": plot, "svg": Markup(plots.svg(plot))} for plot in drawn]


def write_report(path: str | os.PathLike, data: ReportData) -> pathlib.Path:
    """Writes the report, and its plots as PNG into ``plots/`` beside it.

    Args:
      path: the HTML file, ``<workdir>/report.html``. It is self-contained: styles,
        plots and images are inside, and nothing is fetched when it is opened.
      data: what to show.

    Returns:
      The path written.

    Raises:
      InputError: an image is not (S, S, 3) uint8, or the file cannot be written.
    """
    path = pathlib.Path(path)
    sheet = None
    if data.faces is not None and np.asarray(data.faces).size:
        faces = np.asarray(data.faces)
        if faces.ndim != 5:
            raise InputError(
                f"the contact sheet has shape {faces.shape}; expected (rows, cols, size, size, 3)"
            )
        checked_image(faces[0, 0], "a face of the contact sheet")
        sheet = {
            "uri": jpeg(contact_sheet(faces)),
            "rows": faces.shape[0],
            "cols": faces.shape[1],
        }
    folder = path.parent / "plots"
    drawn = all_plots(data)
    text = _html(data, drawn, sheet)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for section in drawn.values():
            for plot in section:
                plots.png(plot, folder)
        write_text(path, text)
    except OSError as error:
        raise InputError(f"the report {path} cannot be written: {error}") from error
    return path


def _audit(data: ReportData) -> dict[str, Any] | None:
    """The privacy audit, as the page shows it."""
    if data.audit is None:
        return None
    rounds = data.summary.get("run", {}).get("rounds")
    return {"tables": audit_tables(data.audit), "notes": section_notes(data.audit, rounds)}


def _html(
    data: ReportData, drawn: Mapping[str, Sequence[plots.Plot]], sheet: Mapping[str, Any] | None
) -> str:
    figures = {section: with_svg(found) for section, found in drawn.items()}
    return template("report.html.j2").render(
        data=data,
        tiles=_tiles(data),
        tables=tables.closing_tables(data.summary),
        spread=tables.spread_table(data.summary),
        facts=_facts(data),
        phases=_phases(data),
        figures=figures,
        sheet=sheet,
        hard_negatives=hard_negative_cards(data.hard_negatives),
        mistakes=mistake_cards(data.mistakes),
        settings=_flat(data.config),
        changed=_changed(data.config),
        limit=PAIRS,
        audit=_audit(data),
    )
