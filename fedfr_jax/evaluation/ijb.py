"""The IJB-B / IJB-C protocols as insightface distributes them: meta files and evaluation."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.templates import (
    TemplateIdentification,
    TemplateVerification,
    pool_templates,
    select_templates,
    template_identification,
    template_verification,
)

_GALLERIES = {"ijbc": ("G1", "G2"), "ijbb": ("S1", "S2")}


@dataclasses.dataclass(frozen=True)
class SubjectTemplates:
    """The lines of a 1:N protocol file: ``templates`` (n,) and their ``subjects`` (n,)."""

    templates: np.ndarray
    subjects: np.ndarray


@dataclasses.dataclass(frozen=True)
class IJBMeta:
    """The contents of the meta folder of IJB-B or IJB-C.

    Attributes:
      target: ``ijbc`` or ``ijbb``.
      image_names: file name of each of the n images, in the folder of loose crops.
      landmarks: (n, 5, 2) float32 pixel (x, y) of eyes, nose and mouth corners.
      detector_scores: (n,) float32.
      template_ids: (n,) int32.
      media_ids: (n,) int32.
      pair_1: (P,) int32 first template of each 1:1 pair.
      pair_2: (P,) int32 second template.
      is_same: (P,) bool.
      galleries: the two galleries of 1:N; None if the folder has no 1:N files.
      probes: the mixed probes of 1:N; None likewise.
    """

    target: str
    image_names: tuple[str, ...]
    landmarks: np.ndarray
    detector_scores: np.ndarray
    template_ids: np.ndarray
    media_ids: np.ndarray
    pair_1: np.ndarray
    pair_2: np.ndarray
    is_same: np.ndarray
    galleries: tuple[SubjectTemplates, SubjectTemplates] | None
    probes: SubjectTemplates | None


def read_ijb(folder: str | os.PathLike, target: str = "ijbc") -> IJBMeta:
    """Reads a meta folder.

    1:1 needs ``<target>_face_tid_mid.txt`` (name, template, medium),
    ``<target>_template_pair_label.txt`` (template, template, 0 or 1) and
    ``<target>_name_5pts_score.txt`` (name, five points, detector score). 1:N is read if any
    of ``<target>_1N_gallery_G1.csv``, ``…_G2.csv`` (``S1``, ``S2`` for IJB-B) and
    ``<target>_1N_probe_mixed.csv`` is there, and then needs all three.

    Args:
      folder: the meta folder.
      target: ``ijbc`` or ``ijbb``.

    Raises:
      InputError: a file is missing or malformed, or two files list different images.
    """
    if target not in _GALLERIES:
        raise InputError(f"target must be one of {sorted(_GALLERIES)}, got {target!r}")
    folder = Path(folder)
    media_path = folder / f"{target}_face_tid_mid.txt"
    points_path = folder / f"{target}_name_5pts_score.txt"
    names, template_ids, media_ids = read_face_media(media_path)
    point_names, landmarks, scores = read_landmarks(points_path)
    if names != point_names:
        raise InputError(
            f"{media_path} and {points_path} list different images; both must come "
            "from the same release, in the same order"
        )
    pair_1, pair_2, is_same = read_pairs(folder / f"{target}_template_pair_label.txt")
    parts = [*(f"gallery_{part}" for part in _GALLERIES[target]), "probe_mixed"]
    paths = [folder / f"{target}_1N_{part}.csv" for part in parts]
    galleries = probes = None
    if any(path.exists() for path in paths):
        first, second, probes = map(read_subject_templates, paths)
        galleries = (first, second)
    return IJBMeta(
        target,
        names,
        landmarks,
        scores,
        template_ids,
        media_ids,
        pair_1,
        pair_2,
        is_same,
        galleries,
        probes,
    )


def _lines(path: Path) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; it belongs to the IJB meta "
            "folder that insightface distributes"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path} is empty")
    return lines


def _numbers(path, fields, dtype) -> np.ndarray:
    try:
        return np.array(fields, dtype)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path}: a field is not a number ({error})") from error


def _split(path, lines, fields: int, what: str, separator: str | None = None) -> list[list[str]]:
    rows = [line.split(separator) for line in lines]
    for number, row in enumerate(rows):
        if len(row) != fields:
            raise InputError(
                f"{path}: entry {number + 1} has {len(row)} fields, expected {fields} "
                f"({what}): {lines[number]!r}"
            )
    return rows


def read_face_media(path) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Reads ``*_face_tid_mid.txt``: image names, (n,) int32 templates, (n,) int32 media."""
    rows = _split(path, _lines(path), 3, "image, template, medium")
    names, templates, media = zip(*rows, strict=True)
    return names, _numbers(path, templates, np.int32), _numbers(path, media, np.int32)


def read_landmarks(path) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Reads ``*_name_5pts_score.txt``: names, (n, 5, 2) points, (n,) detector scores."""
    rows = _split(path, _lines(path), 12, "image, five x y points, score")
    names = tuple(row[0] for row in rows)
    values = _numbers(path, [row[1:] for row in rows], np.float32)
    return names, values[:, :10].reshape(-1, 5, 2), values[:, 10]


def read_pairs(path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads ``*_template_pair_label.txt``: (P,) int32, (P,) int32 templates, (P,) bool.

    IJB-C lists 15.7 million pairs, so NumPy parses the file.
    """
    path = Path(path)
    if not path.is_file() or not path.stat().st_size:
        raise InputError(
            f"{path} is missing or empty; it belongs to the IJB meta folder that "
            "insightface distributes"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a file of empty lines, refused below
            table = np.loadtxt(path, dtype=np.int32, ndmin=2)
    except ValueError as error:
        raise InputError(f"{path}: expected three integers per line ({error})") from error
    if table.shape[1] != 3 or not len(table) or not np.isin(table[:, 2], (0, 1)).all():
        raise InputError(f"{path}: expected lines of two templates and a label 0 or 1")
    return table[:, 0].copy(), table[:, 1].copy(), table[:, 2] == 1


def read_subject_templates(path) -> SubjectTemplates:
    """Reads a 1:N csv: template and subject; other columns and a header line are ignored.

    A template listed in several lines (one per image) is kept once.
    """
    lines = _lines(path)
    if not all(re.fullmatch(r"\s*[+-]?\d+\s*", field) for field in lines[0].split(",")[:2]):
        lines = lines[1:]
    if not lines:
        raise InputError(f"{path} has no entries after its header")
    rows = [line.split(",")[:2] for line in lines]
    short = [number for number, row in enumerate(rows) if len(row) < 2]
    if short:
        raise InputError(
            f"{path}: entry {short[0] + 1} has fewer than two fields (template, subject)"
        )
    table = _numbers(path, rows, np.int32)
    templates, first = np.unique(table[:, 0], return_index=True)
    subjects = table[first, 1]
    if np.any(subjects[np.searchsorted(templates, table[:, 0])] != table[:, 1]):
        raise InputError(f"{path}: a template is listed with two subjects")
    return SubjectTemplates(templates, subjects)


@dataclasses.dataclass(frozen=True)
class IJBResult:
    """Outcome of :func:`evaluate_ijb`.

    Attributes:
      verification: 1:1.
      identification: 1:N in the union of both galleries; every IJB probe is mated there, so
        its open-set rates are NaN.
      open_set_tpir: (F,) mean over the two galleries, each searched separately (the probes of the
        other gallery are non-mated).
      alone: 1:N in each of the two galleries.
      The last three are None if the folder has no 1:N files.
    """

    verification: TemplateVerification
    identification: TemplateIdentification | None
    open_set_tpir: np.ndarray | None
    alone: tuple[TemplateIdentification, TemplateIdentification] | None = None


def evaluate_ijb(
    meta: IJBMeta,
    features,
    fars,
    *,
    ranks=(1, 5, 10),
    fpirs=(0.01, 0.1),
    block: int = 4096,
    detector_scores: bool = True,
    of_images: Callable[[np.ndarray], np.ndarray] | None = None,
) -> IJBResult:
    """Runs the 1:1 and, if its files are there, the 1:N protocol.

    Args:
      meta: from :func:`read_ijb`.
      features: (n, d) features of ``meta.image_names``, not normalized (sum of image and mirror
        image), or (n, ...) what ``of_images`` makes them of; may be memory-mapped.
      fars: (F,) false-accept rates of 1:1.
      ranks: list lengths of 1:N.
      fpirs: false-positive identification rates of 1:N.
      block: probes per block of scores.
      detector_scores: weight images with the score of the face detector.
      of_images: see :func:`~fedfr_jax.evaluation.templates.pool_templates`.

    Raises:
      InputError: sizes do not fit, or a template in the protocol has no image.
    """
    scores = meta.detector_scores if detector_scores else np.ones_like(meta.detector_scores)
    ids, pooled = pool_templates(
        features, scores, meta.template_ids, meta.media_ids, of_images=of_images
    )
    verification = template_verification(
        ids, pooled, meta.pair_1, meta.pair_2, meta.is_same, fars=fars
    )
    if meta.galleries is None or meta.probes is None:
        return IJBResult(verification, None, None)
    probes = pooled[select_templates(ids, pooled, meta.probes.templates)]
    probe_subjects = meta.probes.subjects

    def search(templates, subjects):
        gallery = pooled[select_templates(ids, pooled, templates)]
        return template_identification(
            probes, probe_subjects, gallery, subjects, ranks=ranks, fpirs=fpirs, block=block
        )

    both = search(
        np.concatenate([g.templates for g in meta.galleries]),
        np.concatenate([g.subjects for g in meta.galleries]),
    )
    first, second = (search(g.templates, g.subjects) for g in meta.galleries)
    mean = np.mean([first.open_set_tpir, second.open_set_tpir], axis=0)
    return IJBResult(verification, both, mean, (first, second))
