"""What the command writes: CSV files, and a page with each probe beside its best matches."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedfr_jax.atomic import write_text
from fedfr_jax.identify.assessment import Accuracy, accuracy_table
from fedfr_jax.identify.gallery import Claims, Gallery, Matches
from fedfr_jax.identify.images import FaceImages
from fedfr_jax.identify.thresholds import Threshold, Thresholds
from fedfr_jax.protocols.output import csv_text
from fedfr_jax.reporting.html import template
from fedfr_jax.reporting.pictures import jpeg
from fedfr_jax.reporting.result_table import Cell, ResultTable

_SHOWN_ROWS = 40  # of a table in the terminal
_SHOWN_MATCHES = 5  # beside a probe on the page


@dataclasses.dataclass(frozen=True)
class Answers:
    """Everything that the command has found.

    Attributes:
      gallery: the enrolled people.
      enrolled: their images.
      probes: images of the probes.
      matches: 1:N, of all probes.
      thresholds: for both tasks.
      claims: 1:1, if people were claimed.
      claimants: (c,) numbers of the probes that make the claims.
      accuracy: if it is known who the probes are.
    """

    gallery: Gallery
    enrolled: FaceImages
    probes: FaceImages
    matches: Matches
    thresholds: Thresholds
    claims: Claims | None = None
    claimants: np.ndarray | None = None
    accuracy: Accuracy | None = None

    @property
    def accepted(self) -> np.ndarray:
        """(n, k) bool, of 1:N."""
        return self.matches.scores > np.float32(self.thresholds.search.value)

    def truth(self, probe: int) -> str:
        """Who a probe is; "" if that is not known."""
        return self.probes.people[probe] if self.probes.people else ""


def _yes(value: Any) -> str:
    return "yes" if value else "no"


def write_csv_files(folder: pathlib.Path, found: Answers) -> list[str]:
    """Writes ``identification.csv`` and, with claims, ``verification.csv``; returns their names."""
    known = found.probes.people is not None
    extra = ["true_person"] if known else []
    rows: list[list[Any]] = [["probe", "rank", "person", "score", "accepted", *extra]]
    accepted, names = found.accepted, found.gallery.names
    for i, file in enumerate(found.probes.files):
        for rank, (row, score) in enumerate(
            zip(found.matches.rows[i], found.matches.scores[i], strict=True)
        ):
            answer = [file, rank + 1, names[row], f"{score:.6f}", _yes(accepted[i, rank])]
            rows.append([*answer, *([found.truth(i)] if known else [])])
    write_text(folder / "identification.csv", csv_text(rows))
    if found.claims is None or found.claimants is None:
        return ["identification.csv"]
    rows = [["probe", "claimed_person", "score", "accepted", *extra]]
    for i, row, score, yes in zip(
        found.claimants, found.claims.rows, found.claims.scores, found.claims.accepted, strict=True
    ):
        answer = [found.probes.files[i], names[row], f"{score:.6f}", _yes(yes)]
        rows.append([*answer, *([found.truth(i)] if known else [])])
    write_text(folder / "verification.csv", csv_text(rows))
    return ["identification.csv", "verification.csv"]


def threshold_text(kind: Threshold) -> str:
    """A threshold and what it rests on, in words."""
    if kind.rate is None:
        return f"{kind.value:.4f}"
    return f"{kind.value:.4f} (rate {kind.rate:g}, {kind.scores:,} scores)"


def tables_of(found: Answers) -> list[ResultTable]:
    """What the terminal shows."""
    notes = [
        f"accepted above {threshold_text(found.thresholds.search)}, from {found.thresholds.source}",
        *_left_out(len(found.probes), "identification.csv"),
    ]
    names, accepted = found.gallery.names, found.accepted
    rows = []
    for i, file in enumerate(found.probes.files[:_SHOWN_ROWS]):
        best = [
            f"{names[row]} {score:.3f}"
            for row, score in zip(found.matches.rows[i], found.matches.scores[i], strict=True)
        ]
        cells = (best[0], _yes(accepted[i, 0]), ", ".join(best[1:3]))
        rows.append((file, tuple(Cell(text) for text in cells)))
    tables = [
        ResultTable(
            f"1:N among {len(names):,} people",
            ("best match", "accepted", "next"),
            tuple(rows),
            tuple(notes),
            heading="probe",
        )
    ]
    if found.claims is not None and found.claimants is not None:
        tables.append(_claims_table(found, found.claims, found.claimants))
    if found.accuracy is not None:
        tables.append(accuracy_table(found.accuracy))
    return tables


def _left_out(count: int, file: str) -> list[str]:
    return [f"the first {_SHOWN_ROWS} of {count:,}; all are in {file}"] * (count > _SHOWN_ROWS)


def _claims_table(found: Answers, claims: Claims, claimants: np.ndarray) -> ResultTable:
    rows = [
        (
            found.probes.files[i],
            (Cell(found.gallery.names[row]), Cell(f"{score:.3f}"), Cell(_yes(yes))),
        )
        for i, row, score, yes in list(
            zip(claimants, claims.rows, claims.scores, claims.accepted, strict=True)
        )[:_SHOWN_ROWS]
    ]
    return ResultTable(
        f"1:1, {int(claims.accepted.sum()):,} of {len(claimants):,} claims accepted",
        ("claims to be", "score", "accepted"),
        tuple(rows),
        (
            f"accepted above {threshold_text(found.thresholds.pair)}",
            *_left_out(len(claimants), "verification.csv"),
        ),
        heading="probe",
    )


def covers(gallery: Gallery) -> np.ndarray:
    """(K,) for each person the number of the image that is most like the person's feature."""
    scores = np.einsum("nd,nd->n", gallery.image_features, gallery.features[gallery.image_rows])
    order = np.lexsort((-scores, gallery.image_rows))
    return order[np.searchsorted(gallery.image_rows[order], np.arange(len(gallery.names)))]


def shown_probes(found: Answers, most: int) -> np.ndarray:
    """The probes on the page: wrong answers first, if they are known, then in the files' order."""
    wrong = np.zeros(len(found.probes), bool)
    if found.probes.people is not None:
        rows = found.gallery.rows_of(found.probes.people)
        first = found.accepted[:, 0]
        wrong = np.where(rows < 0, first, (found.matches.rows[:, 0] != rows) | ~first)
    return np.argsort(~wrong, kind="stable")[:most]


def write_page(
    path: pathlib.Path, found: Answers, image_size: int, *, most: int, title: str, workers: int = 0
) -> None:
    """Writes one self-contained HTML file; only ``most`` probes are shown, and it says so."""
    shown = shown_probes(found, most)
    matches = found.matches.rows[shown, :_SHOWN_MATCHES]
    people = np.unique(matches)
    cover = covers(found.gallery)
    faces = found.enrolled.read(cover[people], image_size, workers)
    uri = {int(row): jpeg(face) for row, face in zip(people, faces, strict=True)}
    cards = []
    for i, own in zip(shown, found.probes.read(shown, image_size, workers), strict=True):
        truth = found.truth(i)
        cards.append(
            {
                "image": jpeg(own),
                "file": found.probes.files[i],
                "truth": truth,
                "matches": [
                    {
                        "image": uri[int(row)],
                        "person": found.gallery.names[row],
                        "score": f"{score:.3f}",
                        "width": round(100 * max(0.0, float(score))),
                        "accepted": bool(yes),
                        "right": bool(truth) and found.gallery.names[row] == truth,
                    }
                    for row, score, yes in list(
                        zip(
                            found.matches.rows[i],
                            found.matches.scores[i],
                            found.accepted[i],
                            strict=True,
                        )
                    )[:_SHOWN_MATCHES]
                ],
            }
        )
    text = template("identify.html.j2").render(
        title=title,
        cards=cards,
        total=len(found.probes),
        sorted=found.probes.people is not None,
        people=len(found.gallery.names),
        thresholds=found.thresholds,
        search=threshold_text(found.thresholds.search),
        warnings=found.thresholds.warnings(),
        tables=tables_of(found)[1:],
    )
    write_text(path, text)


def summary_of(found: Answers, model: str, **more: Any) -> dict[str, Any]:
    """All numbers, for ``summary.json``."""
    claims = found.claims
    return {
        "model": model,
        "people": len(found.gallery.names),
        "enrolled_images": len(found.gallery.image_rows),
        "probes": len(found.probes),
        "accepted": int(found.accepted[:, 0].sum()),
        "thresholds": dataclasses.asdict(found.thresholds),
        "warnings": found.thresholds.warnings(),
        "claims": None
        if claims is None
        else {"number": len(claims.rows), "accepted": int(claims.accepted.sum())},
        "accuracy": None if found.accuracy is None else dataclasses.asdict(found.accuracy),
        **more,
    }


def probe_numbers(probes: FaceImages, files: Sequence[str]) -> np.ndarray:
    """(n,) numbers of probes by their files; -1 for an unknown one."""
    place = {file: i for i, file in enumerate(probes.files)}
    return np.array([place.get(file, -1) for file in files], np.int64)
