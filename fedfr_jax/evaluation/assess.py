"""Applies the generic and the personalized protocols to the models of a run.

Three models are compared: ``pretrained`` and ``global`` are one backbone for
everybody; ``personalized`` is each client's own backbone after local training, followed
by its transform. The result is plain dictionaries and arrays.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from fedfr_jax.data.held_out import HeldOut
from fedfr_jax.data.types import VerificationSet
from fedfr_jax.evaluation import HEADLINE_FAR, HEADLINE_FPIR, HEADLINE_MODELS
from fedfr_jax.evaluation.personalized import (
    PersonalIdentification,
    PersonalVerification,
    mean_roc,
    personal_identification,
    personal_verification,
    summarize_clients,
)
from fedfr_jax.evaluation.sharing import Share
from fedfr_jax.evaluation.verification import PairResult, embed_with_mirror, evaluate_pairs
from fedfr_jax.settings import EvalConfig

PyTree = Any
VERIFICATION = "personalized 1:1"


@dataclasses.dataclass(frozen=True)
class Assessment:
    """One model under all protocols.

    Attributes:
      generic: result per verification set; empty for the personalized model.
      verification, identification: one result per client.
    """

    generic: dict[str, PairResult]
    verification: tuple[PersonalVerification, ...]
    identification: tuple[PersonalIdentification, ...]


@dataclasses.dataclass(frozen=True)
class Assessor:
    """What is evaluated and how, the same for all models.

    Attributes:
      settings: rates and sizes.
      held_out: the clients' probes.
      generic: verification sets.
      training_images: client's number -> its gallery's images (M, S, S, 3), to be shown.
      gallery: client's number -> (inputs of the models (M, ...), labels (M,)): its gallery.
      lower: images -> inputs of the models: what all of them compute alike, or the images.
      embed: ``(variables, inputs) -> (N, d)``, of a shared backbone.
      transform: ``(a client's transform, features (N, d)) -> (N, d)``; None: the method has none.
      batch: images per call, for pair sets.
      share: which clients and images this process evaluates.
    """

    settings: EvalConfig
    held_out: HeldOut
    generic: tuple[VerificationSet, ...]
    training_images: Callable[[int], np.ndarray]
    gallery: Callable[[int], tuple[np.ndarray, np.ndarray]]
    lower: Callable
    embed: Callable
    transform: Callable | None
    batch: int
    share: Share = dataclasses.field(default_factory=Share)

    @functools.cached_property
    def probes(self) -> np.ndarray:
        """Inputs of the models for all held-out images, computed once."""
        return self.lower(self.held_out.images)

    def after_transform(self, model: tuple[PyTree, PyTree], features: np.ndarray) -> np.ndarray:
        """(N, d) features after a client's transform, if the method has one."""
        return features if self.transform is None else self.transform(model[1], features)


# Maps a client's number to (variables of its backbone, its transform).
PersonalModels = Callable[[int], tuple[PyTree, PyTree]]


def gallery(assessor: Assessor, position: int) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, people numbered over the evaluated clients) of a client's gallery."""
    held_out = assessor.held_out
    inputs, labels = assessor.gallery(int(held_out.numbers[position]))
    return inputs, held_out.people_of(position)[labels]


def client_results(
    assessor: Assessor, position: int, probes, gallery_features, gallery_labels
) -> tuple[PersonalVerification, PersonalIdentification]:
    """A client's protocol for features of all probes and of its own gallery.

    Its people are its own wherever their images were taken: where another client has one of them,
    too, that client's probes of the person are mated.
    """
    settings, held_out = assessor.settings, assessor.held_out
    own = held_out.shows(position)
    return (
        personal_verification(probes, held_out.labels, own, settings.fars, block=settings.block),
        personal_identification(
            probes,
            held_out.labels,
            gallery_features,
            gallery_labels,
            held_out.people_of(position),
            fpirs=settings.fars,
            block=settings.block,
        ),
    )


def generic_results(assessor: Assessor, variables: PyTree) -> dict[str, PairResult]:
    """Verification of every pair set with image and mirror."""

    def features(images: np.ndarray) -> np.ndarray:
        return embed_with_mirror(
            lambda x: assessor.embed(variables, assessor.lower(x)), images, assessor.batch
        )

    return {
        s.name: evaluate_pairs(
            assessor.share.features(features, s.images), s.is_same, assessor.settings.fars
        )
        for s in assessor.generic
    }


def assess_shared(assessor: Assessor, variables: PyTree, tick=lambda: None) -> Assessment:
    """One backbone for everybody, under the generic protocol and every client's.

    Args:
      variables: of the backbone.
      tick: called once per client.
    """
    share = assessor.share
    probes = share.features(lambda x: assessor.embed(variables, x), assessor.probes)

    def of_client(position: int):
        inputs, labels = gallery(assessor, position)
        features = assessor.embed(variables, inputs)
        result = client_results(assessor, position, probes, features, labels)
        tick()
        return {"": result}, ""

    [results] = share.over_clients(assessor.held_out.numbers, of_client)[0].values()
    return Assessment(generic_results(assessor, variables), *zip(*results, strict=True))


def _rates(rates, values) -> dict[str, float]:
    return {f"{r:g}": float(v) for r, v in zip(rates, values, strict=True)}


def _spreads(rates, values) -> dict[str, dict[str, float]]:
    """(C, F) values as rate -> spread over clients."""
    s = summarize_clients(values)
    return {
        f"{r:g}": {k: float(getattr(s, k)[i]) for k in ("mean", "std", "min", "worst10", "max")}
        for i, r in enumerate(rates)
    }


def _unresolvable(rates, resolvable) -> list[str]:
    """Rates that not even one client (or set) resolves."""
    return [
        f"{r:g}"
        for r, ok in zip(rates, np.any(np.atleast_2d(resolvable), axis=0), strict=True)
        if not ok
    ]


def summarize(assessment: Assessment) -> dict[str, Any]:
    """The part of ``summary.json`` that one model fills (see :mod:`fedfr_jax.reporting.tables`)."""
    result: dict[str, Any] = {}
    if assessment.generic:
        result["generic"] = {
            name: {
                "accuracy": r.accuracy,
                "accuracy_std": r.accuracy_std,
                "pairs": len(r.scores),
                "mixed_folds": r.mixed_folds,
                "tar": _rates(r.fars, r.tar_at_far),
                "unresolvable": _unresolvable(r.fars, r.resolvable),
            }
            for name, r in assessment.generic.items()
        }
    one, many = assessment.verification, assessment.identification
    fars, fpirs = one[0].fars, many[0].fpirs
    rank1 = summarize_clients([m.rank1 for m in many])
    result["personalized"] = {
        "verification_tar": _spreads(fars, [v.tar for v in one]),
        "identification_pair": _spreads(fpirs, [m.pair_tpir for m in many]),
        "identification_openset": _spreads(fpirs, [m.open_set_tpir for m in many]),
        "rank1": {k: float(getattr(rank1, k)) for k in ("mean", "std", "min", "worst10", "max")},
        "unresolvable": {
            "verification_tar": _unresolvable(fars, [v.resolvable for v in one]),
            "identification_pair": _unresolvable(fpirs, [m.pair_resolvable for m in many]),
            "identification_openset": _unresolvable(fpirs, [m.resolvable for m in many]),
        },
    }
    return result


def add_losers(summary: dict[str, Any], own: Assessment, shared: Assessment) -> None:
    """Adds to a summary's spreads the share of clients whose own model is below a shared one.

    Args:
      summary: from :func:`summarize` of ``own``; every spread gets the entry "worse".
      own: personalized models; shared: one model for everybody; the same clients.
    """

    def add(spreads, rates, values, others):
        for i, rate in enumerate(rates):
            spreads[f"{rate:g}"]["worse"] = _share_below(
                [v[i] for v in values], [o[i] for o in others]
            )

    found = summary["personalized"]
    one, many = own.verification, own.identification
    add(
        found["verification_tar"],
        one[0].fars,
        [v.tar for v in one],
        [v.tar for v in shared.verification],
    )
    for name, key in (
        ("identification_pair", "pair_tpir"),
        ("identification_openset", "open_set_tpir"),
    ):
        add(
            found[name],
            many[0].fpirs,
            [getattr(m, key) for m in many],
            [getattr(m, key) for m in shared.identification],
        )
    found["rank1"]["worse"] = _share_below(
        [m.rank1 for m in many], [m.rank1 for m in shared.identification]
    )


def _share_below(values, others) -> float:
    """Share of entries that are lower than their counterpart, NaN where none is defined."""
    values, others = np.asarray(values, float), np.asarray(others, float)
    defined = ~(np.isnan(values) | np.isnan(others))
    return float((values < others)[defined].mean()) if defined.any() else float("nan")


def flat_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """One model's summary as the flat keys of an ``evaluation`` row of ``metrics.jsonl``."""
    row = {}
    for name, r in summary.get("generic", {}).items():
        row[f"generic/{name}/accuracy"] = r["accuracy"]
        row.update({f"generic/{name}/tar@{rate}": v for rate, v in r["tar"].items()})
    personal = summary["personalized"]
    for metric in ("verification_tar", "identification_pair", "identification_openset"):
        row.update(
            {
                f"personal/{metric}@{rate}": spread["mean"]
                for rate, spread in personal[metric].items()
            }
        )
    return row | {"personal/rank1": personal["rank1"]["mean"]}


def nearest(rates, aim: float) -> int:
    """Position of the rate that is closest to ``aim``, in orders of magnitude."""
    return int(np.argmin(np.abs(np.log(np.asarray(rates) / aim))))


def curves(assessments: dict[str, Assessment]) -> tuple[dict, dict]:
    """ROC curves per protocol and model, and per-client values of the headline metrics.

    The latter are 1:1 TAR at the rate nearest to FAR 1e-3, open-set 1:N TPIR at the one
    nearest to FPIR 1e-2, and rank-1.
    """
    some = next(iter(assessments.values()))
    far_index = nearest(some.verification[0].fars, HEADLINE_FAR)
    fpir_index = nearest(some.identification[0].fpirs, HEADLINE_FPIR)
    rocs: dict[str, dict] = {}
    per_client: dict[str, dict] = {}
    for model, a in assessments.items():
        for name, r in a.generic.items():
            rocs.setdefault(f"generic: {name}", {})[model] = r.roc
        if model in HEADLINE_MODELS:
            rocs.setdefault(VERIFICATION, {})[model] = mean_roc(a.verification)
        values = {
            f"verification_tar@{a.verification[0].fars[far_index]:g}": [
                v.tar[far_index] for v in a.verification
            ],
            f"identification_openset@{a.identification[0].fpirs[fpir_index]:g}": [
                m.open_set_tpir[fpir_index] for m in a.identification
            ],
            "rank1": [m.rank1 for m in a.identification],
        }
        for metric, per in values.items():
            per_client.setdefault(metric, {})[model] = np.array(per)
    return rocs, per_client
