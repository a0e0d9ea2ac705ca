"""Enrols people and answers who is in a picture, as the command's arguments ask."""

from __future__ import annotations

import argparse
import csv
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from fedfr_jax.data.landmarks import read_landmarks
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.face_model import FaceModel
from fedfr_jax.identify import thresholds as calibration
from fedfr_jax.identify.assessment import assess
from fedfr_jax.identify.gallery import Gallery, enrol, verify
from fedfr_jax.identify.images import FaceImages, embed_images, list_images, with_landmarks
from fedfr_jax.identify.report import (
    Answers,
    probe_numbers,
    summary_of,
    tables_of,
    write_csv_files,
    write_page,
)
from fedfr_jax.identify.thresholds import Thresholds
from fedfr_jax.protocols import model_arguments
from fedfr_jax.reporting.result_table import render
from fedfr_jax.runtime.json_file import write_json
from fedfr_jax.runtime.workdir import make_folder

FAR = 1e-3  # without --far


def _check(given: argparse.Namespace) -> None:
    model_arguments.check_model_arguments(given)
    if given.top < 1 or given.pictures < 0:
        raise InputError("--top must be at least 1, and --pictures not negative")
    if given.threshold is not None and (given.far is not None or given.impostors):
        raise InputError("--threshold is used as it is; leave out --far and --impostors")
    if given.impostors and given.calibrate != "auto":
        raise InputError("--impostors and --calibrate contradict each other; give one")
    if given.claim is not None and given.claims is not None:
        raise InputError("--claim and --claims contradict each other; give one")
    if given.far is not None and not 0 < given.far < 1:
        raise InputError(f"--far is {given.far}; it is a rate between 0 and 1")
    if given.threshold is not None:
        calibration.fixed(given.threshold)


def main(given: argparse.Namespace) -> None:
    """Enrols, calibrates, searches and writes."""
    _check(given)
    enrolled = list_images(given.gallery, people=True, what="--gallery")
    probes = list_images(given.probes, what="--probes")
    folders = [enrolled, probes]
    if given.impostors:
        folders.append(list_images(given.impostors, people=False, what="--impostors"))
    if given.landmarks:
        folders = with_landmarks(folders, read_landmarks(given.landmarks))
    enrolled, probes, *impostors = folders
    claimants, claimed = _claims(given, probes, enrolled)
    out = make_folder(given.out)
    model = model_arguments.open_model(given)
    how = {"mirror": given.mirror, "batch_size": given.batch_size, "workers": given.workers}
    gallery = enrol(model, enrolled, **how)
    strangers = [embed_images(model, some, label="impostors", **how) for some in impostors]
    limits = _thresholds(given, model, gallery, strangers)
    features = embed_images(model, probes, label="probes", **how)
    matches = gallery.search(features, given.top)
    found = Answers(
        gallery,
        enrolled,
        probes,
        matches,
        limits,
        verify(gallery, features[claimants], claimed, limits.pair.value) if claimed else None,
        claimants if claimed else None,
        assess(gallery, features, probes.people, matches, limits) if probes.people else None,
    )
    _write(given, found, model.image_size, out)


def _write(given: argparse.Namespace, found: Answers, image_size: int, out: pathlib.Path) -> None:
    files = write_csv_files(out, found)
    if given.pictures:
        title = f"{found.probes.folder.name} among {found.enrolled.folder.name}"
        write_page(
            out / "identify.html",
            found,
            image_size,
            most=given.pictures,
            title=title,
            workers=given.workers,
        )
        files.append("identify.html")
    write_json(out / "summary.json", summary_of(found, given.model, mirror=given.mirror))
    render(tables_of(found))
    for warning in found.thresholds.warnings():
        print(f"note: {warning}", file=sys.stderr)
    print(f"written: {out}/{', '.join([*files, 'summary.json'])}")


def _thresholds(
    given: argparse.Namespace, model: FaceModel, gallery: Gallery, strangers: Sequence[np.ndarray]
) -> Thresholds:
    """The threshold given, or one from impostors, the gallery's own scores, or the card."""
    if given.threshold is not None:
        return calibration.fixed(given.threshold)
    far = FAR if given.far is None else given.far
    if strangers:
        source = f"{len(strangers[0]):,} impostor images"
        return calibration.calibrate(gallery, strangers[0], far, source=source)
    card = None if given.calibrate == "gallery" else calibration.of_card(model.card, far)
    if given.calibrate == "card" and card is None:
        raise InputError(
            f"the card of {given.model} has no threshold for a rate of {far:g}; give --impostors "
            "or --threshold"
        )
    if given.calibrate == "card" and card is not None:
        return card
    if card is not None and len(gallery.names) < 2:
        return card
    own = calibration.calibrate_on_gallery(gallery, far)
    return card if card is not None and not own.search.resolved else own


def _claims(
    given: argparse.Namespace, probes: FaceImages, enrolled: FaceImages
) -> tuple[np.ndarray, list[str]]:
    """Numbers of the probes that claim to be somebody, and whom; checked before long work."""
    if given.claim is not None:
        claimants, people = np.arange(len(probes)), [given.claim] * len(probes)
    elif given.claims is not None:
        claimants, people = _read_claims(pathlib.Path(given.claims).expanduser(), probes)
    else:
        return np.zeros(0, np.int64), []
    missing = sorted(set(people) - set(enrolled.people or ()))
    if missing:
        raise InputError(
            f"{missing[0]!r} is claimed, but not enrolled: {enrolled.folder} has no images in a "
            "folder of this name"
        )
    return claimants, people


def _read_claims(path: pathlib.Path, probes: FaceImages) -> tuple[np.ndarray, list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [[field.strip() for field in row] for row in csv.reader(file) if row]
    except OSError as error:
        raise InputError(f"cannot read the claims {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file ({error})") from error
    if rows and rows[0][0].lower() == "probe":
        rows = rows[1:]
    short = [number for number, row in enumerate(rows, 1) if len(row) != 2]
    if short or not rows:
        raise InputError(
            f"{path}: claim {short[0] if short else 1} is not a probe and a person; expected lines "
            "such as visitor.jpg,alice"
        )
    numbers = probe_numbers(probes, [row[0] for row in rows])
    if (numbers < 0).any():
        lost = rows[int(np.argmin(numbers))][0]
        raise InputError(
            f"{path}: {int((numbers < 0).sum())} claims name no image of {probes.folder} (first: "
            f"{lost!r}); write paths below that folder"
        )
    return numbers, [row[1] for row in rows]
