"""The privacy audit of a run: its files, its tables, its plots, and its part of the report.

``audit.json`` and ``audit.npz`` are written by :mod:`fedfr_jax.audit`, which nothing here imports:
a report that is made later shows the audit that is there.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from fedfr_jax.atomic import write_file
from fedfr_jax.data.arrays import load_arrays
from fedfr_jax.errors import InputError
from fedfr_jax.reporting.result_table import MARK, NONE, Cell, ResultTable
from fedfr_jax.runtime.json_file import read_json, write_json

AUDIT, ARRAYS = "audit.json", "audit.npz"
_FPRS = ("0.001", "0.01")
_UNRESOLVED = (
    f"{MARK} fewer than one non-member is accused at this rate: there are too few to resolve it, "
    "and the number is the share of members above all of them."
)


@dataclasses.dataclass(frozen=True)
class AuditData:
    """What an audit found.

    Attributes:
      facts: the content of ``audit.json``: ``round``, ``method``, and one entry per part.
      curves: "model/level/attack" -> (FPR (n,), TPR (n,)).
      pictures: observer, or "original" -> (n, S, S, 3) uint8, in the same order.
    """

    facts: Mapping[str, Any]
    curves: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def with_part(
        self,
        part: str,
        facts: Mapping[str, Any],
        curves: Mapping[str, tuple],
        pictures: Mapping[str, np.ndarray],
    ) -> AuditData:
        """The audit with one part replaced."""
        return AuditData(
            {**self.facts, part: facts},
            curves if part == "membership" else self.curves,
            pictures if part == "inversion" else self.pictures,
        )


def write_audit(folder: str | os.PathLike, audit: AuditData) -> None:
    """Writes ``audit.npz``, then ``audit.json``."""
    arrays: dict[str, Any] = {}
    for name, (fpr, tpr) in audit.curves.items():
        arrays[f"fpr/{quote(name, safe='')}"] = np.asarray(fpr)
        arrays[f"tpr/{quote(name, safe='')}"] = np.asarray(tpr)
    for name, images in audit.pictures.items():
        arrays[f"picture/{quote(name, safe='')}"] = np.asarray(images)
    folder = pathlib.Path(folder)
    write_file(folder / ARRAYS, lambda file: np.savez_compressed(file, **arrays))
    write_json(folder / AUDIT, audit.facts)


def load_audit(folder: str | os.PathLike) -> AuditData | None:
    """Reads the audit of a work directory; None if there is none.

    Raises:
      InputError: a file is damaged.
    """
    folder = pathlib.Path(folder)
    if not (folder / AUDIT).exists():
        return None
    facts = read_json(folder / AUDIT)
    arrays = load_arrays(folder / ARRAYS) if (folder / ARRAYS).exists() else {}
    parts: dict[str, dict[str, np.ndarray]] = {"fpr": {}, "tpr": {}, "picture": {}}
    try:
        for name, array in arrays.items():
            kind, key = name.split("/")
            parts[kind][unquote(key)] = array
        curves = {name: (fpr, parts["tpr"][name]) for name, fpr in parts["fpr"].items()}
    except (KeyError, ValueError) as error:
        raise InputError(f"{folder / ARRAYS} cannot be read; delete it and audit again") from error
    return AuditData(facts, curves, parts["picture"])


def _number(value: Any, form: str = ".3f") -> str:
    return NONE if value is None else format(value, form)


def _percent(value: Any) -> str:
    return NONE if value is None else f"{100 * value:.1f}"


def audit_tables(audit: AuditData) -> list[ResultTable]:
    """All tables of an audit."""
    facts = audit.facts
    made = []
    if "membership" in facts:
        made += _membership_tables(facts["membership"])
    if facts.get("inversion", {}).get("rows"):
        made.append(_inversion_table(facts["inversion"]))
    if facts.get("leakage", {}).get("people"):
        made.append(_leakage_table(facts["leakage"]))
    if "rounds" in facts.get("canary", {}):
        made.append(_canary_table(facts["canary"]))
    return made


def _membership_tables(found: Mapping[str, Any]) -> list[ResultTable]:
    rows = found["rows"]
    attacks = tuple(dict.fromkeys(row["attack"] for row in rows))
    lines = tuple(dict.fromkeys((row["model"], row["level"]) for row in rows))
    by_place = {(row["model"], row["level"], row["attack"]): row for row in rows}

    def table(title, cell, notes):
        drawn = tuple(
            (f"{model}: {level}", tuple(cell(by_place.get((model, level, a))) for a in attacks))
            for model, level in lines
        )
        return ResultTable(title, attacks, drawn, notes, "model and question")

    def auc(row):
        if row is None:
            return Cell(NONE)
        return Cell(f"{row['auc']:.3f} ({row['low']:.3f}–{row['high']:.3f})")

    def rate(name):
        def cell(row):
            if row is None:
                return Cell(NONE)
            return Cell(_percent(row["tpr"].get(name)), unresolvable=name in row["unresolvable"])

        return cell

    notes = (
        "0.5: nothing is told. In brackets a 95 % interval (bootstrap over people). The pretrained "
        "model has seen nobody's images: what it shows is due to the images, not to training.",
        f"{found['people']} people of clients, {found['strangers']} strangers, "
        f"{found['images']:,} images, {found['personalized_models']} personalized models, "
        f"{found['shadows']} shadow models of {found['shadow_epochs']} epochs.",
    )
    return [
        table("Membership inference, AUC", auc, notes),
        *(
            table(
                f"Membership inference, TPR at FPR {float(name):g} (%)",
                rate(name),
                (_UNRESOLVED,) if any(name in row["unresolvable"] for row in rows) else (),
            )
            for name in _FPRS
        ),
    ]


def _inversion_table(found: Mapping[str, Any]) -> ResultTable:
    rows = tuple(
        (
            row["observer"],
            (
                Cell(_number(row["psnr"], ".1f")),
                Cell(_percent(row["rank1"])),
                Cell(_percent(row["accepted"]), unresolvable=not found["resolved"]),
                Cell(_number(row["cosine"])),
                Cell(_number(row.get("distance"))),
            ),
        )
        for row in found["rows"]
    )
    known = "knows the client's head" if found["head"] == "known" else "does not know the head"
    notes = [
        f"{found['messages']} messages of one step on {found['batch']} image(s); the attacker "
        f"{known}. Chance of rank 1: {_percent(found['rows'][0]['rank1_chance'])} %. Recognized "
        f"by {found['verifier']}.",
    ]
    if found["verifier_is_own"]:
        notes.append(
            "This verifier is close to the model that was inverted, and what was found fits its "
            "features: it recognizes more than others would. Give a real one (--verifier)."
        )
    labels = [row["labels_found"] for row in found["rows"] if "labels_found" in row]
    if labels:
        notes.append(
            f"Labels were inferred from the class rows' update: {_percent(labels[0])} % right."
        )
    if not found["resolved"]:
        notes.append(f"{MARK} only {found['pairs']:,} pairs of strangers: the rate is unresolved.")
    return ResultTable(
        "Images from one message",
        (
            "PSNR (dB)",
            "rank 1 (%)",
            f"accepted at FAR {found['far']:g} (%)",
            "cosine",
            "distance of updates",
        ),
        rows,
        tuple(notes),
        "the message",
    )


def _leakage_table(found: Mapping[str, Any]) -> ResultTable:
    rows = tuple(
        (
            f"photographs under the {model} model",
            (
                Cell(_percent(found[model]["rank1"])),
                Cell(_percent(found[model]["accepted"]), unresolvable=not found[model]["resolved"]),
                Cell(_number(found[model]["cosine"])),
            ),
        )
        for model in ("global", "pretrained")
    )
    return ResultTable(
        "Identities from class embeddings",
        ("rank 1 (%)", f"accepted at FAR {found['far']:g} (%)", "cosine"),
        rows,
        (
            f"{found['people']} rows that clients sent, matched with the mean embeddings of these "
            f"people's held-out images and of {found['strangers']} strangers. Chance of rank 1: "
            f"{100 * found['chance']:.2g} %.",
        ),
        "matched with",
    )


def _epsilon(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.3g}"


def _canary_table(found: Mapping[str, Any]) -> ResultTable:
    confidence = f"{100 * found['confidence']:g} % confidence"
    rows = [
        (
            "proved by the accountant (upper bound)",
            (_epsilon(found["epsilon"]), found.get("assumption") or "no noise"),
        ),
        ("shown by counting errors (lower bound)", (_epsilon(found["counted"]), confidence)),
    ]
    if "gaussian" in found:
        rows.append(
            ("shown for normal scores (lower bound)", (_epsilon(found["gaussian"]), confidence))
        )
    rows.append(("estimate, no bound", (_epsilon(found["estimate"]), "two normal distributions")))
    notes = [
        f"Delta {found['delta']:g}. {found['canaries']} canaries in {found['rounds']} rounds"
        + (f", each with chance {found['rate']:g}" if found["rate"] < 1 else "")
        + f", and as many without. Counting so many shows at most {found['most_countable']:.2f}."
    ]
    if found["epsilon"] is None:
        notes.append("There is no noise, so that epsilon is infinite whatever is shown.")
    if found["production_cohort"]:
        notes.append(
            f"{MARK} the accountant's is of an average over {found['production_cohort']:,} "
            "clients (privacy.production_cohort), the others are of this run's."
        )
    return ResultTable(
        "Epsilon, from above and from below",
        ("epsilon", "how"),
        tuple(
            (
                name,
                (
                    Cell(
                        cells[0],
                        unresolvable=bool(found["production_cohort"]) and "upper" in name,
                    ),
                    Cell(cells[1]),
                ),
            )
            for name, cells in rows
        ),
        tuple(notes),
        "bound",
    )


def summary_table(audit: AuditData) -> ResultTable:
    """One table with the answer of every part that was audited."""
    facts = audit.facts
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for line in (_membership_lines, _inversion_lines, _leakage_lines, _canary_lines):
        rows += line(facts)
    notes = ["All tables are in audit.md and in the report; docs/audit.md says how to read them."]
    if "membership" in facts:
        notes.append("Membership: the attack with the highest AUC, with its 95 % interval.")
    if any(cell.unresolvable for _, cells in rows for cell in cells):
        notes.append(f"{MARK} there are too few images or pairs to resolve this rate.")
    return ResultTable(
        f"Privacy audit ({facts.get('method')}, after round {facts.get('round')})",
        ("measure", "found", "chance", "beside it"),
        tuple(rows),
        tuple(notes),
        "attack",
    )


def _line(name: str, measure: str, found: str, chance: str = NONE, beside: Cell | None = None):
    return name, (Cell(measure), Cell(found), Cell(chance), beside or Cell(NONE))


def _membership_lines(facts: Mapping[str, Any]):
    rows = facts.get("membership", {}).get("rows", ())
    best: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        place = row["model"], row["level"]
        if row["model"] != "pretrained" and (place not in best or row["auc"] > best[place]["auc"]):
            best[place] = row
    for (model, level), row in best.items():
        rate = row["tpr"][_FPRS[0]]
        yield _line(
            f"{model}: {level}",
            "AUC",
            f"{row['auc']:.2f} ({row['low']:.2f}–{row['high']:.2f})",
            "0.50",
            Cell(f"TPR@1e-3 {_percent(rate)} %", unresolvable=_FPRS[0] in row["unresolvable"]),
        )


def _inversion_lines(facts: Mapping[str, Any]):
    found = facts.get("inversion", {})
    if "nothing" in found:
        yield _line("images from a message", found["nothing"], NONE)
    for row in found.get("rows", ()):
        if row["psnr"] is not None:
            yield _line(
                f"message, {row['observer']}",
                "rank 1",
                f"{_percent(row['rank1'])} %",
                f"{_percent(row['rank1_chance'])} %",
                Cell(f"PSNR {row['psnr']:.1f} dB"),
            )


def _leakage_lines(facts: Mapping[str, Any]):
    found = facts.get("leakage")
    if found is None:
        return
    name = "class embeddings"
    if not found["sends"]:
        yield _line(name, "this method does not send class embeddings", NONE)
    elif not found["people"]:
        yield _line(name, "there are no held-out images to match them with", NONE)
    else:
        rank, accepted = (_percent(found["global"][k]) for k in ("rank1", "accepted"))
        beside = Cell(f"accepted {accepted} %", unresolvable=not found["global"]["resolved"])
        yield _line(name, "rank 1", f"{rank} %", f"{100 * found['chance']:.2g} %", beside)


def _canary_lines(facts: Mapping[str, Any]):
    found = facts.get("canary")
    if found is None:
        return
    if "nothing" in found:
        yield _line("canaries", found["nothing"], NONE)
        return
    shown = max(found["counted"] or 0, found.get("gaussian") or 0)
    upper = Cell(f"accountant {_epsilon(found['epsilon'])}")
    yield _line("canaries", "epsilon", f"at least {shown:.3g}", "0", upper)


def audit_plots(audit: AuditData) -> list:
    """ROC curves on two logarithmic axes, and pictures of reconstructions, as plots."""
    from fedfr_jax.reporting import audit_plots as drawing  # noqa: PLC0415 (matplotlib)

    found = [*drawing.membership_rocs(audit.curves), drawing.reconstructions(audit.pictures)]
    return [plot for plot in found if plot is not None]


def section_notes(audit: AuditData, rounds: Any) -> Sequence[str]:
    """What a reader of the report must know about when the audit was made."""
    made = audit.facts.get("round")
    if rounds is not None and made != rounds:
        return (f"The audit was made after round {made}; the run has gone on to round {rounds}.",)
    return ()
