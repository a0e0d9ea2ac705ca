"""Membership inference: was this image, was this person, among the clients' training images?

An attacker has a model and images of a person. An *image* is compared with the person's other
images, a *person* by how alike the person's images are under the model. Non-members are people of
whom nobody trained on an image, and, for images, also held-out images of the clients' people.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedfr_jax.algorithm import losses
from fedfr_jax.audit import lira
from fedfr_jax.audit.candidates import (
    KEPT,
    STRANGER,
    TRAINED,
    Candidates,
    choose,
    compactness,
    similarity,
)
from fedfr_jax.audit.opened import TrainedRun
from fedfr_jax.audit.plan import Plan
from fedfr_jax.audit.rates import curve_of, rates_of
from fedfr_jax.audit.shadows import Halves, draw_halves, train_shadows
from fedfr_jax.runtime.progress import track

IMAGE, SAME, PERSON, OTHERS = (
    "image (strangers)",
    "image (same people)",
    "person (training images)",
    "person (other images)",
)
_LEVELS = (IMAGE, SAME, PERSON, OTHERS)
SIMILARITY, CALIBRATED, LOSS = "similarity", "calibrated", "loss"
OFFLINE, ONLINE = "LiRA offline", "LiRA online"
ATTACKS = (SIMILARITY, CALIBRATED, LOSS, OFFLINE, ONLINE)


def signals_of(features: np.ndarray, candidates: Candidates) -> dict[str, np.ndarray]:
    """The scores of a model's features for every question, higher for what it was trained on.

    Args:
      features: (n, d) of length one, of the candidates' images.

    Returns:
      ``image``: (n,); ``trained`` and ``kept``: (P,) from a person's training images, and from its
      other ones; a stranger's images are divided alike.
    """
    part = _divided(candidates)
    found = {"image": similarity(features, candidates.person)}
    for name, chosen in (("trained", part == TRAINED), ("kept", part == KEPT)):
        found[name] = compactness(features[chosen], candidates.person[chosen], candidates.people)
    return {name: lira.to_normal(values) for name, values in found.items()}


def _divided(candidates: Candidates) -> np.ndarray:
    """(n,) TRAINED or KEPT; strangers' images are divided as those of members on average."""
    members = candidates.role != STRANGER
    share = (candidates.role[members] == KEPT).mean()
    count = np.bincount(candidates.person, minlength=candidates.people)
    first = np.searchsorted(candidates.person, np.arange(candidates.people))
    rank = np.arange(len(candidates.person)) - first[candidates.person]
    later = rank >= count[candidates.person] - np.round(share * count)[candidates.person]
    return np.where(members, candidates.role, np.where(later, KEPT, TRAINED))


def questions(candidates: Candidates) -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    """level -> (name of the signal, (m,) positions that are asked about, (m,) bool: members)."""
    role, member = candidates.role, candidates.is_member
    everybody = np.arange(candidates.people)
    strange = np.flatnonzero(role != KEPT)
    same = np.flatnonzero(role != STRANGER)
    return {
        IMAGE: ("image", strange, role[strange] == TRAINED),
        SAME: ("image", same, role[same] == TRAINED),
        PERSON: ("trained", everybody, member),
        OTHERS: ("kept", everybody, member),
    }


@dataclasses.dataclass(frozen=True)
class Shadows:
    """The scores of shadow models, and what each was trained on.

    Attributes:
      signals: per model what :func:`signals_of` gives.
      halves: what they were trained on.
    """

    signals: list[dict[str, np.ndarray]]
    halves: Halves

    def ratios(self, level: str, name: str, target: np.ndarray, person: np.ndarray):
        """(offline, online) likelihood ratios of all candidates at this level."""
        scores = np.stack([found[name] for found in self.signals])
        people, images = self.halves.people, self.halves.images
        if level == IMAGE:
            within, without = images, ~people[:, person]
        elif level == SAME:
            within, without = images, people[:, person] & ~images
        else:
            within, without = people, ~people
        return lira.offline(target, scores, without), lira.online(target, scores, within, without)


def attack_scores(
    target: dict[str, np.ndarray],
    pretrained: dict[str, np.ndarray] | None,
    shadows: Shadows | None,
    candidates: Candidates,
    level: str,
) -> dict[str, np.ndarray]:
    """attack -> scores of all candidates of a level, images or people."""
    name = questions(candidates)[level][0]
    found = {SIMILARITY: target[name]}
    if pretrained is not None:
        found[CALIBRATED] = target[name] - pretrained[name]
    if shadows is not None:
        offline, online = shadows.ratios(level, name, target[name], candidates.person)
        found |= {OFFLINE: offline, ONLINE: online}
    return found


class _Pool:
    """Scores of one model (or of several of a kind), gathered until they are measured."""

    def __init__(self) -> None:
        self.parts: dict[tuple[str, str], list[tuple[np.ndarray, ...]]] = {}

    def add(self, level: str, attack: str, values, members, people) -> None:
        self.parts.setdefault((level, attack), []).append((values, members, people))

    def measured(self, model: str, seed: int) -> Iterator[tuple[dict[str, Any], tuple]]:
        """Rows for ``audit.json``, each with its ROC curve."""
        for level in _LEVELS:
            for attack in ATTACKS:
                if (level, attack) not in self.parts:
                    continue
                parts = self.parts[level, attack]
                values, members, people = (np.concatenate(x) for x in zip(*parts, strict=True))
                rates = rates_of(values, members, people, seed)
                if rates is not None:
                    row = {"model": model, "level": level, "attack": attack}
                    yield row | rates.to_dict(), curve_of(values, members)


def audit_membership(run: TrainedRun, plan: Plan) -> tuple[dict[str, Any], dict[str, tuple]]:
    """The attacks on a run's shared and personalized models.

    Returns:
      (the part ``membership`` of ``audit.json``, ROC curves: name -> (FPR, TPR)).
    """
    clients = _clients(run, plan)
    candidates = choose(run.sim.source, run.sim.split, clients, plan)
    inputs = run.lower(run.sim.source.read(candidates.numbers))
    before = signals_of(run.features(run.pretrained, inputs), candidates)
    after = signals_of(run.features(run.server.backbone, inputs), candidates)
    shadows, epochs = _shadows(run, candidates, inputs, plan)
    pools = {"pretrained": _Pool(), "global": _Pool(), "personalized": _Pool()}
    for model, target in (("pretrained", before), ("global", after)):
        control = model == "pretrained"
        for level, (_, at, members) in questions(candidates).items():
            scores = attack_scores(
                target, None if control else before, None if control else shadows, candidates, level
            )
            whose = candidates.person[at] if level in (IMAGE, SAME) else at
            for attack, values in scores.items():
                pools[model].add(level, attack, values[at], members, whose)
    attacked = _attack_personalized(run, plan, candidates, inputs, before, shadows, pools)
    rows, curves = [], {}
    for model, pool in pools.items():
        for row, curve in pool.measured(model, plan.seed):
            rows.append(row)
            curves["/".join((model, row["level"], row["attack"]))] = curve
    facts = {
        "people": int(candidates.is_member.sum()),
        "strangers": int((~candidates.is_member).sum()),
        "images": len(candidates.numbers),
        "personalized_models": attacked,
        "shadows": 0 if shadows is None else len(shadows.signals),
        "shadow_epochs": epochs,
        "rows": rows,
    }
    return facts, curves


def _clients(run: TrainedRun, plan: Plan) -> np.ndarray:
    """Clients in random order; those that have trained come first."""
    rng = np.random.default_rng([plan.seed, 3])
    order = rng.permutation(len(run.sim.split.clients))
    if run.sim.config.recipe.union:
        return order
    trained = np.isin(order, run.touched())
    return np.concatenate([order[trained], order[~trained]])


def _shadows(run, candidates, inputs, plan) -> tuple[Shadows | None, int]:
    if not plan.shadows:
        return None, 0
    halves = draw_halves(candidates, plan.shadows, plan.seed)
    models, epochs = train_shadows(run, candidates, halves, plan)
    signals = [signals_of(run.features(model, inputs), candidates) for model in models]
    return Shadows(signals, halves), epochs


def _attack_personalized(run, plan, candidates, inputs, before, shadows, pools) -> int:
    """Adds the attacks on the personalized models of some clients; returns how many."""
    if run.sim.config.recipe.union or not run.sim.config.recipe.trains:
        return 0
    trained = np.isin(candidates.client, run.touched()) & candidates.is_member
    _, first = np.unique(candidates.client[trained], return_index=True)
    clients = candidates.client[trained][np.sort(first)][: plan.clients]
    with track("personalized models", len(clients), "model") as bar:
        for client in clients.tolist():
            own = (candidates.client == client)[candidates.person]
            kept = own | (candidates.role == STRANGER)
            _add_client(run, client, candidates, kept, inputs, before, shadows, pools)
            bar.update(1)
    return len(clients)


def _add_client(run, client, candidates, kept, inputs, before, shadows, pools) -> None:
    # Features of what is not asked about stay zero; their scores are not used.
    features = np.zeros((len(inputs), run.sim.spec.backbone.embedding), np.float32)
    features[kept] = run.personal_features(client, inputs[kept])
    target = signals_of(features, candidates)
    asked = (candidates.client == client) | ~candidates.is_member
    pool = pools["personalized"]
    for level, (_, at, members) in questions(candidates).items():
        of_images = level in (IMAGE, SAME)
        wanted = kept[at] if of_images else asked[at]
        whose = candidates.person[at] if of_images else at
        scores = attack_scores(target, before, shadows, candidates, level)
        for attack, values in scores.items():
            pool.add(level, attack, values[at][wanted], members[wanted], whose[wanted])
    own = np.flatnonzero((candidates.client == client)[candidates.person])
    values = _own_losses(run, client, inputs[own], candidates.label[candidates.person[own]])
    pool.add(SAME, LOSS, -values, candidates.role[own] == TRAINED, candidates.person[own])


def _own_losses(run: TrainedRun, client: int, inputs: np.ndarray, labels: np.ndarray):
    """(m,) identification loss with the client's own class embeddings."""
    spec, head = run.sim.spec, run.head(client)
    features = jnp.asarray(run.raw_features(client, inputs))
    cosine = losses.cosine_logits(features, jnp.asarray(head.class_embeddings))
    logits = losses.MARGINS[spec.loss.identification](
        cosine, jnp.asarray(labels), scale=spec.loss.scale, margin=spec.loss.margin
    )
    exists = np.linalg.norm(head.class_embeddings, axis=1) > 0
    logits = jnp.where(exists, logits, -jnp.inf)
    return np.asarray(
        jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(labels)), jnp.asarray(labels)]
    )
