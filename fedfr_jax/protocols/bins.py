"""Verification sets in ``.bin`` files (LFW, CFP-FP, AgeDB-30, ...) in one table."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedfr_jax.data.folds import scorable
from fedfr_jax.data.verification import read_bin, set_names
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.face_model import FaceModel, checked_features
from fedfr_jax.evaluation.streaming import check_rates
from fedfr_jax.evaluation.verification import PairResult, evaluate_pairs
from fedfr_jax.protocols.output import resolution_note
from fedfr_jax.reporting.result_table import Cell, ResultTable
from fedfr_jax.reporting.tables import percent, rate_label
from fedfr_jax.runtime.progress import track

FARS = (1e-3,)
_CHUNK = 512  # images between two signs of progress


@dataclasses.dataclass(frozen=True)
class SetResult:
    """One set: its name, numbers of genuine and impostor pairs, and outcome."""

    name: str
    genuine: int
    impostor: int
    result: PairResult


def run_bins(
    model: FaceModel,
    paths: Sequence[str],
    *,
    mirror: bool = True,
    fars: Sequence[float] = FARS,
    batch_size: int = 64,
    workers: int = 0,
) -> list[SetResult]:
    """Evaluates a model on verification sets, one at a time.

    Args:
      model: see :class:`~fedfr_jax.evaluation.face_model.FaceModel`.
      paths: the ``.bin`` files.
      mirror: add the features of the mirror image.
      fars: false-accept rates.
      batch_size: images per call of the model.
      workers: decoding threads; 0 = one per core.

    Raises:
      InputError: a rate is not between 0 and 1, or a file is missing or malformed; all are looked
        for before the first is read.
    """
    check_rates(fars, "--far")
    names = set_names([str(path) for path in paths])
    files = [pathlib.Path(path).expanduser() for path in paths]
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise InputError(f"no such file: {', '.join(missing)} (--sets takes .bin files)")
    out = []
    for name, path in zip(names, files, strict=True):
        pairs = scorable(read_bin(path, model.image_size, workers))
        features = np.empty((len(pairs.images), model.embedding), np.float32)
        with track(name, len(features), "image", keep=False) as bar:
            for start in range(0, len(features), _CHUNK):
                part = pairs.images[start : start + _CHUNK]
                found = model.embed(part, batch_size=batch_size, mirror=mirror)
                features[start : start + len(part)] = checked_features(found, len(part), model)
                bar.update(len(part), images=len(part))
        genuine = int(pairs.is_same.sum())
        result = evaluate_pairs(features, pairs.is_same, fars)
        out.append(SetResult(name, genuine, len(pairs.is_same) - genuine, result))
    return out


def table_of(found: Sequence[SetResult], model: str, mirror: bool) -> ResultTable:
    """One row per set, and their mean if there are several."""
    fars = found[0].result.fars
    rows = [
        (
            one.name,
            (
                Cell(f"{one.genuine + one.impostor:,}"),
                Cell(percent(one.result.accuracy, one.result.accuracy_std)),
                *(
                    Cell(percent(tar), unresolvable=not resolvable)
                    for tar, resolvable in zip(
                        one.result.tar_at_far, one.result.resolvable, strict=True
                    )
                ),
            ),
        )
        for one in found
    ]
    if len(found) > 1:
        tars = np.mean([one.result.tar_at_far for one in found], axis=0)
        accuracy = float(np.mean([one.result.accuracy for one in found]))
        pairs = sum(one.genuine + one.impostor for one in found)
        cells = (Cell(f"{pairs:,}"), Cell(percent(accuracy)), *(Cell(percent(t)) for t in tars))
        rows.append(("mean of the sets", cells))
    mixed = [one.name for one in found if one.result.mixed_folds]
    return ResultTable(
        f"Verification of {model}, in %",
        ("pairs", "accuracy", *(f"TAR, FAR {rate_label(far)}" for far in fars)),
        tuple(rows),
        (
            "Accuracy: mean ± standard deviation over ten folds, each with the threshold that is "
            "best on the others. TAR: one threshold over all pairs of a set. Features of an image "
            + ("and its mirror image, added." if mirror else "alone."),
            *resolution_note(any(not one.result.resolvable.all() for one in found)),
            *(
                [f"pairs were shuffled before they were cut into folds: {', '.join(mixed)}"]
                * bool(mixed)
            ),
        ),
        heading="set",
    )


def summary_of(found: Sequence[SetResult], mirror: bool) -> dict[str, Any]:
    """All numbers, for ``summary.json``."""
    return {
        "mirror": mirror,
        "sets": {
            one.name: {
                "genuine": one.genuine,
                "impostor": one.impostor,
                "accuracy": one.result.accuracy,
                "accuracy_std": one.result.accuracy_std,
                "squared_distance_threshold": one.result.threshold,
                "far": one.result.fars,
                "tar": one.result.tar_at_far,
                "resolvable": one.result.resolvable,
            }
            for one in found
        },
    }
