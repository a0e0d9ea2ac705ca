"""Whose class embedding is this? Matches the rows that clients send with people's photographs.

A class embedding is a template of a person: it lies where the person's features lie. Who receives
rows and has the model can search them with photographs from anywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedfr_jax.audit.candidates import KEPT, STRANGER, Candidates, choose, sums_of_people
from fedfr_jax.audit.opened import TrainedRun
from fedfr_jax.audit.plan import Plan
from fedfr_jax.evaluation.streaming import far_is_resolvable, thresholds_at_far, unit_rows

FAR = 1e-3


def audit_leakage(run: TrainedRun, plan: Plan) -> dict[str, Any]:
    """The part ``leakage`` of ``audit.json``."""
    recipe = run.sim.config.recipe
    if recipe.server_embeddings is None:
        return {"sends": False, "method": recipe.title}
    rng = np.random.default_rng([plan.seed, 7])
    candidates = choose(run.sim.source, run.sim.split, rng.permutation(run.touched()), plan)
    if not (candidates.role == KEPT).any():
        return {"sends": True, "method": recipe.title, "people": 0}
    asked = candidates.only((candidates.role == KEPT) | (candidates.role == STRANGER))
    rows = unit_rows(_rows(run, candidates), "class embeddings")
    inputs = run.lower(run.sim.source.read(asked.numbers))
    found: dict[str, Any] = {"sends": True, "method": recipe.title, "far": FAR}
    for name, model in (("global", run.server.backbone), ("pretrained", run.pretrained)):
        found[name] = match(rows, run.features(model, inputs), asked)
    return found | {
        "people": len(rows),
        "strangers": int((~candidates.is_member).sum()),
        "chance": 1 / candidates.people,
    }


def _rows(run: TrainedRun, candidates: Candidates) -> np.ndarray:
    """(M, d) the class embeddings of the members, as the server has them."""
    heads = {int(c): run.head(int(c)) for c in np.unique(candidates.client) if c >= 0}
    members = np.flatnonzero(candidates.is_member)
    return np.stack(
        [heads[int(candidates.client[p])].class_embeddings[candidates.label[p]] for p in members]
    )


def match(rows: np.ndarray, features: np.ndarray, asked: Candidates) -> dict[str, Any]:
    """How often the nearest person to a row is the right one.

    Args:
      rows: (M, d) of length one, of the first M people.
      features: (n, d) of length one, of photographs that nobody trained on: of these people, and
        of strangers, who are wrong answers.
      asked: whose they are.

    Returns:
      ``rank1`` among all people, and ``accepted``: the share of rows whose cosine with the right
      person's mean embedding is above the threshold of ``FAR`` among wrong pairs.
    """
    centers = sums_of_people(features, asked.person, asked.people)
    scores = rows @ unit_rows(centers, "mean embeddings").T
    own = scores[np.arange(len(rows)), np.arange(len(rows))]
    wrong = scores[~np.eye(len(rows), asked.people, dtype=bool)]
    return {
        "rank1": float((scores.argmax(axis=1) == np.arange(len(rows))).mean()),
        "accepted": float((own > thresholds_at_far(wrong, FAR)[0]).mean()),
        "resolved": bool(far_is_resolvable(FAR, len(wrong))[0]),
        "cosine": float(own.mean()),
    }
