"""Personalized 1:1 and 1:N: each client's own model on its own registered people.

Every function evaluates one client, with the features of all images under its own model.
So clients may differ in their numbers of identities and images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.identification import (
    open_set_rule,
    pair_is_resolvable,
    pair_ranks,
    pair_rule,
    rank_rates,
    rows_of_subjects,
    search_gallery,
)
from fedfr_jax.evaluation.streaming import (
    accept_rates,
    check_rates,
    far_is_resolvable,
    stream_pairs,
    unit_rows,
)

# Six per decade; rounded, so that powers of ten are exact.
ROC_FARS = np.array([float(f"{far:.6g}") for far in np.geomspace(1e-6, 1.0, 37)[:-1]])


@dataclasses.dataclass(frozen=True)
class PersonalVerification:
    """One client's 1:1 result.

    Attributes:
      fars: (F,) false-accept rates.
      tar: (F,) true-accept rates; NaN if there are no positive or no negative pairs.
      thresholds: (F,) cosines.
      resolvable: (F,) bool, whether the negative pairs resolve the rate.
      num_positives: pairs of one identity.
      num_negatives: pairs of different identities.
      roc_tar: (36,) true-accept rates at :data:`ROC_FARS`, NaN where not resolvable.
    """

    fars: np.ndarray
    tar: np.ndarray
    thresholds: np.ndarray
    resolvable: np.ndarray
    num_positives: int
    num_negatives: int
    roc_tar: np.ndarray


def personal_verification(
    features, labels, own, fars, *, block: int = 4096, on_device: bool | None = None
) -> PersonalVerification:
    """Personalized 1:1 of one client (paper, personalized evaluation).

    The pairs are all unordered pairs of verification images with at least one image of the
    client's identities.

    Args:
      features: (V, d) features of all clients' verification images under this client's model.
      labels: (V,) identities, numbered across clients.
      own: (V,) bool, whether the image shows one of this client's identities.
      fars: (F,) false-accept rates.
      block: rows and columns of a block of scores; bounds memory.
      on_device: where scores are counted, see :func:`~.streaming.stream_pairs`.

    Raises:
      InputError: sizes do not fit, a feature is not finite, the client has no image, or an
        identity is only partly its own.
    """
    fars = check_rates(fars)
    labels, own = np.asarray(labels), np.asarray(own, bool)
    unit = unit_rows(features, "verification features")
    if labels.shape != (len(unit),) or own.shape != labels.shape:
        raise InputError(
            f"{len(unit)} features need as many labels and own flags, got shapes "
            f"{labels.shape} and {own.shape}"
        )
    if not own.any():
        raise InputError(
            "the client has no verification image of its own identities; raise "
            "data.split.verification_images"
        )
    order = np.argsort(~own, kind="stable")
    streamed = stream_pairs(
        unit[order],
        labels[order],
        int(own.sum()),
        np.concatenate([fars, ROC_FARS]),
        block=block,
        on_device=on_device,
    )
    tar = accept_rates(streamed.positives, streamed.thresholds)
    seen = far_is_resolvable(ROC_FARS, streamed.num_negatives)
    return PersonalVerification(
        fars=fars,
        tar=tar[: len(fars)],
        thresholds=streamed.thresholds[: len(fars)],
        resolvable=far_is_resolvable(fars, streamed.num_negatives),
        num_positives=len(streamed.positives),
        num_negatives=streamed.num_negatives,
        roc_tar=np.where(seen, tar[len(fars) :], np.nan),
    )


@dataclasses.dataclass(frozen=True)
class PersonalIdentification:
    """One client's 1:N result; rates are NaN where they are undefined.

    Attributes:
      fpirs: (F,) false-positive identification rates.
      pair_tpir: (F,) rates by the paper's pair-based rule.
      open_set_tpir: (F,) rates by the open-set rule; NaN without non-mated probes, as when
        there is only one client.
      pair_thresholds: (F,)
      open_set_thresholds: (F,)
      resolvable: (F,) bool, whether the non-mated probes resolve the open-set rate.
      pair_resolvable: (F,) bool, whether the probes resolve the pair-based rate.
      rank1: share of mated probes whose top row (re-normalized gallery) is the correct one.
      num_mated: probes of the client's identities.
      num_non_mated: the other probes.
    """

    fpirs: np.ndarray
    pair_tpir: np.ndarray
    open_set_tpir: np.ndarray
    pair_thresholds: np.ndarray
    open_set_thresholds: np.ndarray
    resolvable: np.ndarray
    pair_resolvable: np.ndarray
    rank1: float
    num_mated: int
    num_non_mated: int


def gallery_rows(features, labels, identities) -> np.ndarray:
    """Returns (K, d) float32, the mean of the unit features of each identity's images.

    Args:
      features: (G, d) features of training images, of these and perhaps other identities.
      labels: (G,) identities.
      identities: (K,) identities, one per row.

    Raises:
      InputError: an identity has no image or is repeated, or a feature is not finite.
    """
    labels, identities = np.asarray(labels), np.asarray(identities)
    unit = unit_rows(features, "gallery features")
    if labels.shape != (len(unit),):
        raise InputError(f"{len(unit)} gallery features need as many labels, got {labels.shape}")
    row = rows_of_subjects(labels, identities)
    counts = np.bincount(row[row >= 0], minlength=len(identities))
    if not counts.all():
        raise InputError(
            f"identity {identities[counts.argmin()]} has no gallery image; each of a "
            "client's identities needs a training image"
        )
    sums = np.zeros((len(identities), unit.shape[1]))
    np.add.at(sums, row[row >= 0], unit[row >= 0])
    return (sums / counts[:, None]).astype(np.float32)


def personal_identification(
    probes, probe_labels, gallery_features, gallery_labels, identities, *, fpirs, block: int = 4096
) -> PersonalIdentification:
    """Personalized 1:N of one client (paper, personalized evaluation), by two rules.

    (a) The paper's pair-based rule: gallery rows are means of unit features, not normalized
    again. (b) The open-set standard: rows normalized again.

    Args:
      probes: (Q, d) features of all clients' verification images under this client's model.
      probe_labels: (Q,) identities.
      gallery_features: (G, d) features of the client's training images; images of other
        identities are left out.
      gallery_labels: (G,) identities.
      identities: (K,) the client's identities.
      fpirs: (F,) false-positive identification rates.
      block: probes per block of scores.

    Raises:
      InputError: as :func:`gallery_rows`, or sizes do not fit.
    """
    fpirs = check_rates(fpirs, "fpirs")
    unit, probe_labels = unit_rows(probes, "probe features"), np.asarray(probe_labels)
    if probe_labels.shape != (len(unit),) or not len(unit):
        raise InputError(f"{len(unit)} probes need as many labels, got {probe_labels.shape}")
    means = gallery_rows(gallery_features, gallery_labels, identities)
    rows = rows_of_subjects(probe_labels, identities)
    keep = int(pair_ranks(fpirs, len(unit)).max())
    raw = search_gallery(unit, rows, means, keep, block=block)
    normalized = search_gallery(unit, rows, unit_rows(means, "gallery rows"), 0, block=block)
    pair_tpir, pair_thresholds = pair_rule(raw, fpirs, len(unit))
    open_tpir, open_thresholds = open_set_rule(normalized, fpirs)
    num_non_mated = normalized.non_mated_tops.size
    return PersonalIdentification(
        fpirs=fpirs,
        pair_tpir=pair_tpir,
        open_set_tpir=open_tpir,
        pair_thresholds=pair_thresholds,
        open_set_thresholds=open_thresholds,
        resolvable=far_is_resolvable(fpirs, num_non_mated),
        pair_resolvable=pair_is_resolvable(fpirs, len(unit)),
        rank1=float(rank_rates(normalized, [1])[0]),
        num_mated=len(unit) - num_non_mated,
        num_non_mated=num_non_mated,
    )


@dataclasses.dataclass(frozen=True)
class ClientSummary:
    """The spread of a metric over clients; each entry has the metric's own shape.

    Attributes:
      mean, std, min, max: over the clients where the metric is defined.
      worst10: mean of the lowest tenth of the clients (at least one).
      defined: number of clients where the metric is not NaN; if 0, the other fields are NaN.
    """

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    worst10: np.ndarray
    max: np.ndarray
    defined: np.ndarray


def summarize_clients(values) -> ClientSummary:
    """Summarizes (C,) or (C, F) values of a metric over clients; NaN is left out.

    Raises:
      InputError: there is no client.
    """
    values = np.asarray(values, np.float64)
    if not values.ndim or not len(values):
        raise InputError("there are no clients to summarize")
    columns = values.reshape(len(values), -1).T
    stats = np.array([_summarize(column[~np.isnan(column)]) for column in columns])
    stats = stats.T.reshape(-1, *values.shape[1:])
    mean, std, least, worst10, most, defined = stats
    return ClientSummary(mean, std, least, worst10, most, defined.astype(np.int64))


def _summarize(values: np.ndarray) -> tuple[float, ...]:
    if not values.size:
        return (np.nan,) * 5 + (0,)
    worst = np.sort(values)[: -(-len(values) // 10)]
    return values.mean(), values.std(), values.min(), worst.mean(), values.max(), len(values)


def mean_roc(results: Sequence[PersonalVerification]) -> tuple[np.ndarray, np.ndarray]:
    """Averages the clients' curves: each client at its own threshold for the same FAR.

    Every point averages the same clients, so the mean is monotonic like their curves.

    Args:
      results: one entry per client.

    Returns:
      (false-accept rates, mean true-accept rates) at those of :data:`ROC_FARS` that all clients
      with a curve resolve; empty if no client has one.
    """
    curves = np.array([result.roc_tar for result in results]).reshape(-1, len(ROC_FARS))
    curves = curves[~np.isnan(curves).all(axis=1)]
    common = ~np.isnan(curves).any(axis=0) & (len(curves) > 0)
    return ROC_FARS[common], curves[:, common].mean(axis=0) if common.any() else np.zeros(0)
