"""TinyFace: 1:N search of native low-resolution faces among gallery images and distractors.

Cheng, Zhu and Gong, "Low-Resolution Face Recognition", ACCV 2018. The released folder is read as it
is: ``Testing_Set/`` with ``Probe/``, ``Gallery_Match/`` and ``Gallery_Distractor/``, and the lists
``probe_img_ID_pairs.mat`` and ``gallery_match_img_ID_pairs.mat``.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np

from fedfr_jax.data.alignment import VERSION, decode_aligned
from fedfr_jax.data.decode import MAX_MEGAPIXELS, decode_image, decode_lazily
from fedfr_jax.data.folder import SUFFIXES
from fedfr_jax.data.landmarks import Landmarks
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.face_model import FaceModel
from fedfr_jax.evaluation.retrieval import Retrieval, evaluate_retrieval
from fedfr_jax.protocols.stored_features import ImageList, data_key, listed_files, stored_features
from fedfr_jax.reporting.result_table import Cell, ResultTable
from fedfr_jax.reporting.tables import percent
from fedfr_jax.runtime.progress import track

RANKS = (1, 5, 20)
PROBE, MATCH, DISTRACTOR = "Probe", "Gallery_Match", "Gallery_Distractor"
_LISTS = {PROBE: "probe", MATCH: "gallery"}  # prefix of the variables
_MOST_BYTES, _SECONDS = 1 << 26, 120


@dataclasses.dataclass(frozen=True)
class TinyFace:
    """The testing set.

    Attributes:
      folder: ``Testing_Set``.
      files: (n) paths below it, with ``/``: probes, gallery, distractors.
      sizes: (n,) int64 bytes.
      identities: (n,) int64; -1 for distractors.
      probes: how many of the files are probes; they come first.
    """

    folder: pathlib.Path
    files: tuple[str, ...]
    sizes: np.ndarray
    identities: np.ndarray
    probes: int


def read_tinyface(folder: str | pathlib.Path) -> TinyFace:
    """Reads the lists and looks for the images.

    Args:
      folder: ``Testing_Set``, or the folder that holds it.

    Raises:
      InputError: something is missing or malformed; the message names it.
    """
    root = pathlib.Path(folder).expanduser()
    root = next((p for p in (root, root / "Testing_Set") if (p / PROBE).is_dir()), root)
    found = {part: listed_files(root / part) for part in (PROBE, MATCH, DISTRACTOR)}
    names, files, identities = {}, [], []
    for part, prefix in _LISTS.items():
        path = root / f"{part.lower()}_img_ID_pairs.mat"
        names[part], ids = read_id_list(path, prefix)
        missing = [name for name in names[part] if name not in found[part]]
        if missing:
            raise InputError(
                f"{root / part} lacks {len(missing)} of the {len(names[part])} images in {path} "
                f"(first: {missing[0]!r})"
            )
        files += [(part, name) for name in names[part]]
        identities.append(ids)
    others = sorted(name for name in found[DISTRACTOR] if name.lower().endswith(SUFFIXES))
    files += [(DISTRACTOR, name) for name in others]
    identities.append(np.full(len(others), -1, np.int64))
    return TinyFace(
        root,
        tuple(f"{part}/{name}" for part, name in files),
        np.array([found[part][name] for part, name in files], np.int64),
        np.concatenate(identities),
        len(names[PROBE]),
    )


def read_id_list(path: pathlib.Path, prefix: str) -> tuple[list[str], np.ndarray]:
    """Reads ``<prefix>_set`` (file names) and ``<prefix>_ids`` of a MATLAB file.

    Raises:
      InputError: the file is missing, of MATLAB's version 7.3, damaged, or holds other things.
    """
    if not path.is_file():
        raise InputError(f"{path} is not there; it comes with TinyFace's release")
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{path} has {path.stat().st_size} bytes; it is no list of identities")
    found = _read_apart(path, prefix)
    if "error" in found:
        raise InputError(f"{path}: {found['error']}")
    names, ids = found["names"], np.array(found["ids"], np.float64)
    if len(ids) != len(names) or not len(ids):
        raise InputError(f"{path}: {len(names)} images and {len(ids)} identities do not fit")
    if not ((ids >= 0) & (ids < 2**53) & (ids == np.floor(ids))).all():
        raise InputError(f"{path}: identities must be whole numbers >= 0")
    if len(set(names)) < len(names):
        raise InputError(f"{path} lists an image twice")
    return names, ids.astype(np.int64)


def _read_apart(path: pathlib.Path, prefix: str) -> dict[str, Any]:
    """What :mod:`fedfr_jax.protocols.mat_list` finds, which a damaged file may crash."""
    script = pathlib.Path(__file__).with_name("mat_list.py")
    command = [sys.executable, "-P", str(script), str(path.absolute()), prefix]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
        return json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return {"error": "cannot be read as a MATLAB file: it is damaged"}


def images_of(
    data: TinyFace,
    image_size: int,
    landmarks: Landmarks | None = None,
    *,
    workers: int = 0,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> tuple[ImageList, int]:
    """The images, and how many of them are aligned; those without landmarks are resized whole."""
    keys = [(file, file.rpartition("/")[2]) for file in data.files]
    none = np.full(len(keys), -1, np.int64)
    rows = none if landmarks is None else landmarks.rows_of(keys, required=False)
    points = np.zeros((0, 5, 2), np.float32) if landmarks is None else landmarks.points

    def read(numbers: np.ndarray) -> np.ndarray:
        def one(i: int) -> np.ndarray:
            blob = (data.folder / data.files[numbers[i]]).read_bytes()
            row = rows[numbers[i]]
            if row < 0:
                return decode_image(blob, image_size, max_megapixels)
            return decode_aligned(blob, points[row], image_size, max_megapixels)

        return decode_lazily(
            one,
            len(numbers),
            image_size,
            workers=workers,
            name_of=lambda i: str(data.folder / data.files[numbers[i]]),
        )

    used = np.where(rows[:, None, None] >= 0, points[rows] if len(points) else 0, 0)
    key = data_key("tinyface", VERSION, image_size, data.files, data.sizes, rows >= 0, used)
    return ImageList(read, len(keys), key), int((rows >= 0).sum())


def run_tinyface(
    model: FaceModel,
    data: TinyFace,
    workdir: pathlib.Path,
    *,
    landmarks: Landmarks | None = None,
    mirror: bool = True,
    batch_size: int = 64,
    workers: int = 0,
) -> tuple[Retrieval, int]:
    """Embeds the images, or takes features that are there, and searches the probes.

    Args:
      model: see :class:`~fedfr_jax.evaluation.face_model.FaceModel`.
      data: from :func:`read_tinyface`.
      workdir: an existing folder, for features.
      landmarks: to align those images that it lists.
      mirror: add the features of the mirror image.
      batch_size: images per call of the model.
      workers: decoding threads; 0 = one per core.

    Returns:
      The outcome, and the number of aligned images.
    """
    images, aligned = images_of(data, model.image_size, landmarks, workers=workers)
    both = stored_features(
        model, images, workdir, batch_size=batch_size, label="TinyFace: features"
    )
    features = both[:, 0] + both[:, 1] if mirror else both[:, 0]
    split = data.probes
    with track("TinyFace: search", None, ""):
        found = evaluate_retrieval(
            features[:split],
            data.identities[:split],
            features[split:],
            data.identities[split:],
            ranks=RANKS,
        )
    return found, aligned


def table_of(
    data: TinyFace, found: Retrieval, aligned: int, model: str, mirror: bool
) -> ResultTable:
    """One row: ranks and mAP."""
    distractors = int((data.identities < 0).sum())
    cells = [Cell(percent(rate)) for rate in (*found.rank_rates, found.mean_average_precision)]
    return ResultTable(
        "TinyFace 1:N, in %",
        (*(f"rank {rank}" for rank in RANKS), "mAP"),
        ((model, tuple(cells)),),
        (
            f"{data.probes:,} probes, {len(data.files) - data.probes - distractors:,} gallery "
            f"images, {distractors:,} distractors; {aligned:,} images aligned by landmarks, the "
            f"others resized whole; mirror image {'added' if mirror else 'not used'}. mAP by the "
            "rule of the published code (trapezoids).",
        ),
    )


def summary_of(data: TinyFace, found: Retrieval, aligned: int, mirror: bool) -> dict[str, Any]:
    """All numbers, for ``summary.json``."""
    return {
        "protocol": "TinyFace",
        "mirror": mirror,
        "probes": data.probes,
        "distractors": int((data.identities < 0).sum()),
        "gallery": int((data.identities[data.probes :] >= 0).sum()),
        "aligned": aligned,
        "rank": found.ranks,
        "rank_rate": found.rank_rates,
        "mean_average_precision": found.mean_average_precision,
    }
