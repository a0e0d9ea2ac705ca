"""The report of a run: one self-contained HTML file, and its plots as PNG."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from fedfr_jax.atomic import write_text
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation import HEADLINE_FAR, HEADLINE_FPIR, HEADLINE_MODELS
from fedfr_jax.reporting import client_plots, plots, tables
from fedfr_jax.runtime import workdir
from fedfr_jax.runtime.progress import duration, quantity

_SHEET_PIXELS = 1_500_000  # of the contact sheet; larger ones are scaled down
_PAIRS = 60  # most pairs of a kind that are shown, so that the file stays small
_PAIR_SIDE = 160  # pixels; larger images of a pair are scaled down


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
        **workdir.read_evaluation(directory),
    )


def _checked_image(image: Any, what: str) -> np.ndarray:
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise InputError(
            f"{what} is {array.dtype} of shape {array.shape}; the report takes "
            "images of shape (height, width, 3) uint8"
        )
    return array


def _jpeg(image: np.ndarray) -> str:
    """An image as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=86, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _contact_sheet(faces: np.ndarray) -> np.ndarray:
    """(rows, cols, S, S, 3) to one image with light seams."""
    rows, cols, high, wide = faces.shape[:4]
    seam = max(1, high // 32)
    sheet = np.full((rows * (high + seam) - seam, cols * (wide + seam) - seam, 3), 235, np.uint8)
    for row in range(rows):
        for col in range(cols):
            y, x = row * (high + seam), col * (wide + seam)
            sheet[y : y + high, x : x + wide] = faces[row, col]
    scale = math.sqrt(_SHEET_PIXELS / (sheet.shape[0] * sheet.shape[1]))
    return _resized(sheet, scale) if scale < 1 else sheet


def _resized(image: np.ndarray, scale: float) -> np.ndarray:
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.LANCZOS)
    )


def _pair(first: Any, second: Any, what: str) -> tuple[str, str]:
    uris = []
    for image in (first, second):
        array = _checked_image(image, what)
        scale = _PAIR_SIDE / max(array.shape[:2])
        uris.append(_jpeg(_resized(array, scale) if scale < 1 else array))
    return uris[0], uris[1]


def _number(value: Any, form: str) -> str:
    return "–" if value is None or not math.isfinite(value) else format(float(value), form)


def _hard_negative_cards(examples: Sequence[Mapping]) -> list[dict[str, Any]]:
    return [
        {
            "images": _pair(item["local_image"], item["public_image"], "a hard negative"),
            "alts": ("image of the client", "public image"),
            "head": f"client {item['client']}",
            "text": f"cosine {_number(item['cosine'], '.3f')}",
        }
        for item in examples[:_PAIRS]
    ]


def _mistake_cards(examples: Sequence[Mapping]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for item in examples:
        cards = groups.setdefault(f"{item['kind']}s", [])
        if len(cards) < _PAIRS:
            cards.append(
                {
                    "images": _pair(item["image_a"], item["image_b"], "a mistake"),
                    "alts": ("first image of the pair", "second image of the pair"),
                    "head": f"{item['model']}, client {item['client']}",
                    "text": f"score {_number(item['score'], '.3f')}; "
                    f"threshold {_number(item['threshold'], '.3f')}",
                }
            )
    return groups


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
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            rows.append((f"{prefix}{key}", shown if shown else "–"))
    return rows


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
            client_plots.gains(metric, models[reference], models["personalized"], reference)
            for reference in ("global", "pretrained")
            if reference in models and "personalized" in models
        ]
    sections = {"training": training, "roc": curves, "clients": clients}
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
        _checked_image(faces[0, 0], "a face of the contact sheet")
        sheet = {
            "uri": _jpeg(_contact_sheet(faces)),
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
        hard_negatives=_hard_negative_cards(data.hard_negatives),
        mistakes=_mistake_cards(data.mistakes),
        settings=_flat(data.config),
        limit=_PAIRS,
    )
