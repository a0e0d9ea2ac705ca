"""IJB-B and IJB-C from the folders that insightface distributes to the tables."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from fedfr_jax.atomic import write_text
from fedfr_jax.data.alignment import VERSION, decode_aligned, is_usable
from fedfr_jax.data.decode import MAX_MEGAPIXELS, decode_lazily
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.face_model import FaceModel
from fedfr_jax.evaluation.ijb import IJBMeta, IJBResult, evaluate_ijb, read_ijb
from fedfr_jax.evaluation.streaming import unit_rows
from fedfr_jax.protocols.output import csv_text, resolution_note
from fedfr_jax.protocols.stored_features import ImageList, data_key, listed_files, stored_features
from fedfr_jax.reporting.result_table import Cell, ResultTable
from fedfr_jax.reporting.tables import percent, rate_label
from fedfr_jax.runtime.progress import track

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)
_TARGETS = ("ijbc", "ijbb")


@dataclasses.dataclass(frozen=True)
class Options:
    """How image features become template features; all on is the published setting.

    Attributes:
      flip: add the features of the mirror image.
      norm: keep the length of an image's feature, so that clear images count more.
      detector_score: weight images with the score of the face detector.
    """

    flip: bool = True
    norm: bool = True
    detector_score: bool = True

    def of_images(self, features: np.ndarray) -> np.ndarray:
        """(b, 2, d) features of images and mirror images to (b, d)."""
        found = features.sum(axis=1) if self.flip else features[:, 0]
        return found if self.norm else unit_rows(found, "image features")

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {'on' if value else 'off'}"
            for name, value in (
                ("flip", self.flip),
                ("norm", self.norm),
                ("detector score", self.detector_score),
            )
        )


def read_release(folder: str | pathlib.Path) -> tuple[IJBMeta, pathlib.Path]:
    """Reads the meta files of ``folder/meta`` and finds the images in ``folder/loose_crop``.

    Raises:
      InputError: a folder or file is missing or malformed.
    """
    root = pathlib.Path(folder).expanduser()
    meta, crops = root / "meta", root / "loose_crop"
    for part in (meta, crops):
        if not part.is_dir():
            raise InputError(
                f"{part} is not there; --folder is the released folder IJBB or IJBC, which holds "
                "loose_crop/ and meta/"
            )
    targets = [name for name in _TARGETS if (meta / f"{name}_face_tid_mid.txt").exists()]
    if len(targets) != 1:
        raise InputError(
            f"{meta} holds {'both' if targets else 'neither'} ijbb_face_tid_mid.txt "
            f"{'and' if targets else 'nor'} ijbc_face_tid_mid.txt; it should hold one of them"
        )
    return read_ijb(meta, targets[0]), crops


def crops_of(
    meta: IJBMeta,
    crops: pathlib.Path,
    image_size: int,
    *,
    workers: int = 0,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> ImageList:
    """The aligned images of the protocol, in the order of the meta files.

    Raises:
      InputError: an image is missing, or its landmarks cannot be used.
    """
    unusable = np.flatnonzero(~is_usable(meta.landmarks))
    if unusable.size:
        raise InputError(
            f"the landmarks of {unusable.size} images are the same point or no numbers (first: "
            f"{meta.image_names[unusable[0]]}); restore {meta.target}_name_5pts_score.txt"
        )
    sizes = listed_files(crops)
    missing = [name for name in meta.image_names if name not in sizes]
    if missing:
        raise InputError(
            f"{crops} lacks {len(missing)} of {len(meta.image_names)} images (first: "
            f"{missing[0]}); unpack the release again"
        )

    def read(numbers: np.ndarray) -> np.ndarray:
        paths = [crops / meta.image_names[i] for i in numbers]

        def aligned(i: int) -> np.ndarray:
            points = meta.landmarks[numbers[i]]
            return decode_aligned(paths[i].read_bytes(), points, image_size, max_megapixels)

        return decode_lazily(
            aligned, len(paths), image_size, workers=workers, name_of=lambda i: str(paths[i])
        )

    bytes_of = np.array([sizes[name] for name in meta.image_names], np.int64)
    key = data_key("ijb", VERSION, image_size, meta.image_names, meta.landmarks, bytes_of)
    return ImageList(read, len(meta.image_names), key)


def run_ijb(
    model: FaceModel,
    folder: str | pathlib.Path,
    workdir: pathlib.Path,
    *,
    options: Options = Options(),
    batch_size: int = 64,
    workers: int = 0,
) -> tuple[IJBMeta, IJBResult]:
    """Aligns and embeds the images, or takes features that are there, and evaluates them.

    Args:
      model: see :class:`~fedfr_jax.evaluation.face_model.FaceModel`.
      folder: the released folder, with ``loose_crop/`` and ``meta/``.
      workdir: an existing folder, for features.
      options: how image features become template features.
      batch_size: images per call of the model.
      workers: decoding threads; 0 = one per core.

    Raises:
      InputError: files are missing or malformed.
    """
    with track("meta files", None, "", keep=False):
        meta, crops = read_release(folder)
    images = crops_of(meta, crops, model.image_size, workers=workers)
    features = stored_features(
        model, images, workdir, batch_size=batch_size, label=f"{meta.target}: features"
    )
    with track(f"{meta.target}: evaluation", None, ""):
        result = evaluate_ijb(
            meta,
            features,
            FARS,
            ranks=RANKS,
            fpirs=FPIRS,
            detector_scores=options.detector_score,
            of_images=options.of_images,
        )
    return meta, result


def _name(meta: IJBMeta) -> str:
    return {"ijbb": "IJB-B", "ijbc": "IJB-C"}[meta.target]


def tables_of(meta: IJBMeta, result: IJBResult, model: str, options: Options) -> list[ResultTable]:
    """The tables of 1:1 and 1:N."""
    one = result.verification
    cells = tuple(
        Cell(percent(tar), unresolvable=not resolvable)
        for tar, resolvable in zip(one.tar, one.resolvable, strict=True)
    )
    same = int(meta.is_same.sum())
    tables = [
        ResultTable(
            f"{_name(meta)} 1:1, TAR in %",
            tuple(f"FAR {rate_label(far)}" for far in one.fars),
            ((model, cells),),
            (
                f"{len(meta.image_names):,} images, {same:,} genuine and "
                f"{len(meta.is_same) - same:,} impostor pairs of templates; {options}",
                *resolution_note(not one.resolvable.all()),
            ),
        )
    ]
    if result.identification is None or result.alone is None or meta.galleries is None:
        return tables
    names = [f"gallery {'GS'[meta.target == 'ijbb']}{k}" for k in (1, 2)] + ["both galleries"]
    rows = []
    for name, found in zip(names, (*result.alone, result.identification), strict=True):
        rates = (*found.rank_rates, *found.open_set_tpir, *found.pair_tpir)
        rows.append((name, tuple(Cell(percent(rate)) for rate in rates)))
    tables.append(
        ResultTable(
            f"{_name(meta)} 1:N, mixed probes, in %",
            (
                *(f"rank {rank}" for rank in RANKS),
                *(f"TPIR, FPIR {fpir:g}" for fpir in FPIRS),
                *(f"pair rule {fpir:g}" for fpir in FPIRS),
            ),
            tuple(rows),
            (
                "Ranks count the probes whose person is in the gallery. TPIR: the right person is "
                "first and above a threshold that this share of the other probes passes; in both "
                "galleries together there are no other probes. The pair rule is that of "
                "insightface's IJB code.",
                *(
                    f"{name}: {found.num_mated:,} of {found.num_mated + found.num_non_mated:,} "
                    "probes are of people in it"
                    for name, found in zip(names, result.alone, strict=False)
                ),
            ),
            heading="gallery",
        )
    )
    return tables


def summary_of(meta: IJBMeta, result: IJBResult, options: Options) -> dict[str, Any]:
    """All numbers, for ``summary.json``."""
    one = result.verification
    out: dict[str, Any] = {
        "protocol": _name(meta),
        "options": dataclasses.asdict(options),
        "images": len(meta.image_names),
        "pairs": len(meta.is_same),
        "verification": {
            "far": one.fars,
            "tar": one.tar,
            "threshold": one.thresholds,
            "resolvable": one.resolvable,
        },
    }
    if result.alone is not None and result.identification is not None:
        names = ("first", "second", "both")
        for name, found in zip(names, (*result.alone, result.identification), strict=True):
            out.setdefault("identification", {})[name] = {
                "rank": found.ranks,
                "rank_rate": found.rank_rates,
                "fpir": found.fpirs,
                "tpir": found.open_set_tpir,
                "tpir_pair_rule": found.pair_tpir,
                "mated": found.num_mated,
                "non_mated": found.num_non_mated,
            }
    return out


def write_roc(path: pathlib.Path, result: IJBResult) -> None:
    """Writes the curve of 1:1 as CSV: false-accept rate, true-accept rate."""
    far, tar = result.verification.roc
    rows = [(repr(float(a)), repr(float(b))) for a, b in zip(far, tar, strict=True)]
    write_text(path, csv_text([("far", "tar"), *rows]))
