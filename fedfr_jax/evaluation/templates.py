"""Template protocols: sets of images of one person compared 1:1 and searched 1:N (IJB-C)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import sparse

from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.identification import (
    open_set_rule,
    pair_ranks,
    pair_rule,
    rank_rates,
    rows_of_subjects,
    search_gallery,
)
from fedfr_jax.evaluation.scores import on_grid
from fedfr_jax.evaluation.streaming import (
    accept_rates,
    check_rates,
    far_is_resolvable,
    thresholds_at_far,
    unit_rows,
)
from fedfr_jax.evaluation.verification import roc_curve

_PAIR_BLOCK = 512  # gathered rows should stay in a core's cache


def pool_templates(
    features,
    detector_scores,
    template_ids,
    media_ids,
    *,
    of_images: Callable[[np.ndarray], np.ndarray] | None = None,
    block: int = 8192,
) -> tuple[np.ndarray, np.ndarray]:
    """Computes one unit feature per template (paper, IJB-C protocol).

    Image features are not normalized and are weighted with the detector score; they are
    averaged within each medium of a template (the frames of a video) and summed over its media.
    Sums are in double precision, over a block of images at a time: ``features`` may stay in a file.

    Args:
      features: (n, ...) array or memory-mapped file: (n, d) image features, not normalized, or what
        ``of_images`` makes them of.
      detector_scores: (n,) confidence of the face detector.
      template_ids: (n,) template of each image.
      media_ids: (n,) medium of each image; the same medium may serve several templates.
      of_images: maps (b, ...) rows of ``features`` to (b, d) image features.
      block: images at a time.

    Returns:
      (T,) template numbers, ascending, and (T, d) float32 unit features.

    Raises:
      InputError: sizes do not fit, or a feature or score is not finite.
    """
    features = features if isinstance(features, np.ndarray) else np.asarray(features, np.float32)
    scores = np.asarray(detector_scores, np.float32)
    template_ids, media_ids = np.asarray(template_ids), np.asarray(media_ids)
    n, flat = len(features), of_images is None
    sizes = {scores.shape, template_ids.shape, media_ids.shape}
    if (flat and features.ndim != 2) or not n or sizes != {(n,)}:
        raise InputError(
            f"features {features.shape} need one detector score, template and "
            f"medium per image, got {scores.shape}, {template_ids.shape} and "
            f"{media_ids.shape}"
        )
    numbers, rows, shares = _shares(scores, template_ids, media_ids)
    pooled = np.zeros((len(numbers), 0))
    for start in range(0, n, block):
        part = slice(start, start + block)
        images = np.asarray(features[part], np.float32)
        images = images if of_images is None else of_images(images)
        if not start:
            pooled = np.zeros((len(numbers), images.shape[1]))
        there, place = np.unique(rows[part], return_inverse=True)
        weights = sparse.csr_array(
            (shares[part], (place, np.arange(len(place)))), (len(there), len(place))
        )
        pooled[there] += weights @ images
    return numbers, unit_rows(pooled, "template features")


def _shares(scores, template_ids, media_ids) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(T,) template numbers; of each image its template's row and its weight in the sum."""
    order = np.lexsort((media_ids, template_ids))
    templates, media = template_ids[order], media_ids[order]
    new_template = np.append(True, templates[1:] != templates[:-1])
    starts = new_template | np.append(True, media[1:] != media[:-1])
    groups = np.empty(len(order), np.int64)  # (template, medium) group of each image
    groups[order] = np.cumsum(starts) - 1
    template_of_group = (np.cumsum(new_template) - 1)[starts]
    shares = scores.astype(np.float64) / np.bincount(groups)[groups]
    return templates[new_template], template_of_group[groups], shares


def select_templates(template_ids, features, wanted) -> np.ndarray:
    """Returns (n,) rows of ``features`` that hold the ``wanted`` templates.

    Args:
      template_ids: (T,) ascending template numbers.
      features: (T, d) template features.
      wanted: (n,) template numbers.

    Raises:
      InputError: a wanted template has no image.
    """
    template_ids, wanted = np.asarray(template_ids), np.asarray(wanted)
    if len(template_ids) != len(features):
        raise InputError(f"{len(template_ids)} templates, but {len(features)} features")
    place = np.minimum(np.searchsorted(template_ids, wanted), len(template_ids) - 1)
    missing = np.flatnonzero(template_ids[place] != wanted)
    if missing.size:
        raise InputError(
            f"template {wanted[missing[0]]} has no images ({missing.size} entries "
            "of the protocol name such templates); check that the meta files "
            "belong together"
        )
    return place


def pair_scores(features, left, right) -> np.ndarray:
    """Returns (P,) float32 inner products of listed pairs of rows.

    Args:
      features: (T, d) float32.
      left: (P,) row numbers.
      right: (P,) row numbers.
    """
    features = np.asarray(features, np.float32)
    out = np.empty(len(left), np.float32)
    for start in range(0, len(left), _PAIR_BLOCK):
        part = slice(start, start + _PAIR_BLOCK)
        out[part] = np.einsum("pd,pd->p", features[left[part]], features[right[part]])
    return on_grid(out)


@dataclasses.dataclass(frozen=True)
class TemplateVerification:
    """1:1 result on listed template pairs.

    Attributes:
      fars: (F,) false-accept rates.
      tar: (F,) true-accept rates; NaN if there are no genuine or no impostor pairs.
      thresholds: (F,) cosines.
      resolvable: (F,) bool, whether the impostor pairs resolve the rate.
      roc: (false-accept rates, true-accept rates), at most about 200 points.
      scores: (P,) float32 cosines.
    """

    fars: np.ndarray
    tar: np.ndarray
    thresholds: np.ndarray
    resolvable: np.ndarray
    roc: tuple[np.ndarray, np.ndarray]
    scores: np.ndarray


def template_verification(
    template_ids, features, pair_1, pair_2, is_same, *, fars
) -> TemplateVerification:
    """Verifies listed template pairs (IJB-C 1:1).

    Args:
      template_ids: (T,) ascending, and
      features: (T, d) unit features, from :func:`pool_templates`.
      pair_1: (P,) first template of each pair.
      pair_2: (P,) second template of each pair.
      is_same: (P,) bool.
      fars: (F,) false-accept rates.

    Raises:
      InputError: sizes do not fit, or a template of a pair has no images.
    """
    fars, is_same = check_rates(fars), np.asarray(is_same, bool)
    left = select_templates(template_ids, features, pair_1)
    right = select_templates(template_ids, features, pair_2)
    if not left.shape == right.shape == is_same.shape:
        raise InputError(
            f"pairs need two templates and a label each, got {left.shape}, "
            f"{right.shape} and {is_same.shape}"
        )
    scores = pair_scores(features, left, right)
    genuine, impostor = scores[is_same], scores[~is_same]
    thresholds = thresholds_at_far(impostor, fars)
    return TemplateVerification(
        fars=fars,
        tar=accept_rates(genuine, thresholds),
        thresholds=thresholds,
        resolvable=far_is_resolvable(fars, impostor.size),
        roc=roc_curve(genuine, impostor),
        scores=scores,
    )


@dataclasses.dataclass(frozen=True)
class TemplateIdentification:
    """1:N result; rates are NaN where they are undefined.

    Attributes:
      ranks: (R,) list lengths.
      rank_rates: (R,) share of mated probes found within each list length.
      fpirs: (F,) false-positive identification rates.
      pair_tpir: (F,) rates by the rule of the published IJB code: threshold at the
        ``ceil(f Q)``-th largest non-mated (probe, row) score.
      open_set_tpir: (F,) rates by the open-set rule; NaN if every probe is in the gallery.
      num_mated: probes whose subject is in the gallery.
      num_non_mated: the other probes.
    """

    ranks: np.ndarray
    rank_rates: np.ndarray
    fpirs: np.ndarray
    pair_tpir: np.ndarray
    open_set_tpir: np.ndarray
    num_mated: int
    num_non_mated: int


def template_identification(
    probes,
    probe_subjects,
    gallery,
    gallery_subjects,
    *,
    ranks=(1, 5, 10),
    fpirs=(0.01, 0.1),
    block: int = 4096,
) -> TemplateIdentification:
    """Searches probe templates in a gallery of templates (IJB-C 1:N).

    Args:
      probes: (Q, d) template features.
      probe_subjects: (Q,) identities.
      gallery: (K, d) template features, one per identity.
      gallery_subjects: (K,) identities.
      ranks: (R,) list lengths, each at least 1.
      fpirs: (F,) false-positive identification rates.
      block: probes per block of scores.

    Raises:
      InputError: sizes do not fit, a subject is in the gallery twice, or a feature is not finite.
    """
    ranks, fpirs = np.asarray(ranks), check_rates(fpirs, "fpirs")
    probes, gallery = unit_rows(probes, "probes"), unit_rows(gallery, "gallery")
    probe_subjects = np.asarray(probe_subjects)
    if probe_subjects.shape != (len(probes),) or not len(probes):
        raise InputError(f"{len(probes)} probes need as many subjects, got {probe_subjects.shape}")
    if np.shape(gallery_subjects) != (len(gallery),):
        raise InputError(
            f"{len(gallery)} gallery templates need as many subjects, got "
            f"{np.shape(gallery_subjects)}"
        )
    rows = rows_of_subjects(probe_subjects, gallery_subjects)
    keep = int(pair_ranks(fpirs, len(probes)).max())
    found = search_gallery(probes, rows, gallery, keep, block=block)
    return TemplateIdentification(
        ranks=ranks,
        rank_rates=rank_rates(found, ranks),
        fpirs=fpirs,
        pair_tpir=pair_rule(found, fpirs, len(probes))[0],
        open_set_tpir=open_set_rule(found, fpirs)[0],
        num_mated=int((rows >= 0).sum()),
        num_non_mated=int((rows < 0).sum()),
    )
