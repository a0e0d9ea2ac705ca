"""How well faces can be reconstructed from one client's message: runs and scores inversions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from fedfr_jax.algorithm.features import to_input
from fedfr_jax.algorithm.state import Heads
from fedfr_jax.audit import messages
from fedfr_jax.audit.inversion import (
    Search,
    invert,
    labels_of_rows,
    psnr,
)
from fedfr_jax.audit.opened import TrainedRun
from fedfr_jax.audit.plan import Plan
from fedfr_jax.audit.verifier import FAR, Gallery, Verifier, make_gallery, open_verifier
from fedfr_jax.errors import InputError
from fedfr_jax.runtime.progress import track

PyTree = Any
PRIVATE, KNOWN = "private", "known"
_SHOWN = 8  # pairs of pictures kept for the report


@dataclasses.dataclass(frozen=True)
class Targets:
    """The mini-batches whose messages are inverted; T of them, each of one client.

    Attributes:
      clients: (T,) numbers.
      images: (T, B, S, S, 3) uint8.
      labels: (T, B) int32 local labels, ascending and distinct.
      heads: the clients' heads, a leading axis T.
    """

    clients: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    heads: Heads


def audit_inversion(run: TrainedRun, plan: Plan) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Inverts messages of a run's next round, as each observer sees them.

    Returns:
      (the part ``inversion`` of ``audit.json``, pictures: name -> (n, S, S, 3) uint8).

    Raises:
      InputError: no client has enough people for a mini-batch.
    """
    recipe, nothing = run.sim.config.recipe, _sends_nothing(run)
    if nothing:
        return {"nothing": nothing}, {}
    head = plan.head
    if head == "auto":  # who sends class embeddings has them known
        head = PRIVATE if recipe.server_embeddings is None else KNOWN
    verifier = open_verifier(plan.verifier, run)
    setting = messages.setting_of(run.sim, run.server)
    targets = _targets(run, plan)
    gallery, place = _gallery(run, targets, verifier, plan)
    attacker = _Attacker(setting, head, plan)
    scored = functools.partial(_scored, targets, gallery, place, verifier)
    unknown = np.full(targets.labels.shape, np.inf)
    rows: list[dict[str, Any]] = [
        {"observer": "the originals"} | scored(targets.images, unknown),
    ]
    pictures = {"original": _shown(targets.images)}
    for who in messages.observers(setting.spec):
        found, quality, distances, facts = _attack(attacker, targets, who, plan)
        rows.append(
            {"observer": who}
            | scored(found, quality)
            | {"distance": float(np.mean(distances))}
            | facts
        )
        pictures[who] = _shown(found)
    people = len(gallery.centers)
    return {
        "head": head,
        "verifier": verifier.name,
        "verifier_is_own": verifier.is_own,
        "far": FAR,
        "threshold": gallery.threshold,
        "pairs": gallery.pairs,
        "resolved": gallery.resolved,
        "people": people,
        "chance": 1 / people,
        "messages": len(targets.clients),
        "batch": plan.batch,
        "steps": plan.steps,
        "restarts": plan.restarts,
        "rows": rows,
    }, pictures


def _sends_nothing(run: TrainedRun) -> str:
    recipe = run.sim.config.recipe
    if recipe.union or not recipe.trains:
        return f"{recipe.title} has no messages"
    if recipe.isolated:
        return f"with {recipe.title} nothing leaves a client"
    return ""


def _targets(run: TrainedRun, plan: Plan) -> Targets:
    """One image each of distinct people of clients that have trained."""
    rng = np.random.default_rng([plan.seed, 5])
    clients: list[int] = []
    images, labels, heads = [], [], []
    order = rng.permutation(run.touched())
    room: dict[int, np.ndarray] = {}  # the people of a client that are left
    while len(clients) < plan.targets:
        before = len(clients)
        for client in order.tolist():
            if len(clients) == plan.targets:
                break
            if client not in room:
                room[client] = rng.permutation(len(run.sim.split.clients[client].identities))
            if len(room[client]) < plan.batch:
                continue
            chosen, room[client] = np.sort(room[client][: plan.batch]), room[client][plan.batch :]
            share = run.sim.split.clients[client]
            numbers = [rng.choice(share.train_images[share.train_labels == k]) for k in chosen]
            clients.append(client)
            images.append(run.sim.source.read(np.array(numbers)))
            labels.append(chosen.astype(np.int32))
            heads.append(run.head(client))
        if len(clients) == before:
            break
    if not clients:
        raise InputError(
            f"no client of {run.folder} that has trained has --batch={plan.batch} people; lower it"
        )
    return Targets(
        np.array(clients),
        np.stack(images),
        np.stack(labels),
        jax.tree.map(lambda *x: np.stack(x), *heads),
    )


def _attack(attacker: _Attacker, targets: Targets, who: str, plan: Plan):
    """((T, B, S, S, 3) uint8 the best found, (T, B) PSNR, (T,) distances, facts)."""
    see = attacker.observe(who)
    key = jax.random.fold_in(jax.random.key(plan.seed), 21)
    found, quality, distances, right = [], [], [], []
    with track(f"inversion, {who}", len(targets.clients), "message") as bar:
        for t in range(len(targets.clients)):
            own = jax.tree.map(lambda x, t=t: x[t], targets.heads)
            of_message, of_start = jax.random.split(jax.random.fold_in(key, t))
            originals = to_input(jnp.asarray(targets.images[t]), jnp.float32)
            update, inferred = see(own, originals, targets.labels[t], of_message)
            images, each = jax.device_get(attacker.search(own, update, inferred, of_start))
            best = int(np.argmin(each))
            order, values = _matched(images[best], np.asarray(originals))
            found.append(_as_bytes(images[best][order]))
            quality.append(values)
            distances.append(each[best])
            right.append(np.isin(inferred, targets.labels[t]).mean())
            bar.update(1)
    facts = {"labels_found": float(np.mean(right))} if attacker.head == KNOWN else {}
    return np.stack(found), np.stack(quality), np.array(distances), facts


@dataclasses.dataclass(frozen=True)
class _Attacker:
    """What is compiled once for all messages; ``head``: what the attacker knows of it."""

    setting: messages.Setting
    head: str
    plan: Plan

    def observe(self, who: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
        """``(head, images, labels, key) -> ((P,) update, (B,) labels inferred from the rows)``."""
        fed = self.setting.spec.fed

        @jax.jit
        def see(own: Heads, images, labels, key):
            update, rows = messages.observed(self.setting, own, images, labels, key, who)
            return update, labels_of_rows(
                rows, own.class_embeddings, len(labels), rate=fed.lr, decay=fed.weight_decay
            )

        return see

    @functools.cached_property
    def search(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        """``(head, update, labels, key) -> (images, distances)`` of all restarts."""
        plan, side = self.plan, self.setting.spec.backbone.image_size
        how = Search(steps=plan.steps, smoothness=plan.smoothness)

        @jax.jit
        def search(own: Heads, update, labels, key):
            if self.head == KNOWN:
                simulate = messages.simulate_knowing(self.setting, own, labels)
            else:
                simulate = messages.simulate_privately(self.setting)

            def once(key):
                of_images, of_v = jax.random.split(key)
                start = 0.3 * jax.random.normal(of_images, (len(labels), side, side, 3))
                v = messages.feature_gradients(self.setting, update, len(labels), of_v)
                return invert(simulate, update, start, v, how)

            return jax.vmap(once)(jax.random.split(key, plan.restarts))

        return search


def _matched(found: np.ndarray, originals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order of the found images that fits the originals best, their PSNR)."""
    quality = np.array([[float(psnr(f, o)) for f in found] for o in originals])
    _, order = linear_sum_assignment(-quality)
    return order, quality[np.arange(len(order)), order]


def _as_bytes(images: np.ndarray) -> np.ndarray:
    return np.clip(np.round((np.asarray(images) + 1) * 127.5), 0, 255).astype(np.uint8)


def _gallery(
    run: TrainedRun, targets: Targets, verifier: Verifier, plan: Plan
) -> tuple[Gallery, np.ndarray]:
    """(all people of the attacked clients, (T, B) the place of each target's person in it).

    Rank 1 is among the people of the target's own client; the threshold is from all of them.
    """
    rng = np.random.default_rng([plan.seed, 6])
    clients = np.unique(targets.clients)
    numbers, person, first, count = [], [], {}, 0
    shown = {int(c): targets.images[targets.clients == c] for c in clients}
    for client in clients.tolist():
        share = run.sim.split.clients[client]
        first[client] = count
        for label in range(len(share.identities)):
            own = share.verification_images[share.verification_labels == label]
            if not len(own):  # then training images other than the target
                own = share.train_images[share.train_labels == label]
                own = own[~_is_shown(run, own, shown[client])] if len(own) > 1 else own
            numbers.append(rng.permutation(own)[: plan.images])
            person.append(np.full(len(numbers[-1]), count))
            count += 1
    images = run.sim.source.read(np.concatenate(numbers))
    gallery = make_gallery(verifier.embed(images), np.concatenate(person))
    place = np.array([first[c] for c in targets.clients.tolist()])[:, None] + targets.labels
    return gallery, place


def _is_shown(run: TrainedRun, numbers: np.ndarray, shown: np.ndarray) -> np.ndarray:
    images = run.sim.source.read(numbers)
    flat = shown.reshape(-1, *shown.shape[-3:])
    return np.array([(image == flat).all(axis=(1, 2, 3)).any() for image in images])


def _scored(
    targets: Targets,
    gallery: Gallery,
    place: np.ndarray,
    verifier: Verifier,
    found: np.ndarray,
    quality: np.ndarray,
) -> dict[str, Any]:
    """What a recognizer makes of reconstructions (T, B, S, S, 3)."""
    flat = found.reshape(-1, *found.shape[2:])
    scores = (verifier.embed(flat) @ gallery.centers.T).reshape(*place.shape, -1)
    own = np.take_along_axis(scores, place[..., None], -1)[..., 0]
    ranks, chances = [], []
    for t in range(len(place)):
        mine = _people_of(targets, place, t)
        ranks.append(own[t] >= scores[t][:, mine].max(axis=1))
        chances.append(1 / len(mine))
    return {
        "psnr": float(np.mean(quality)) if np.isfinite(quality).all() else None,
        "best_psnr": float(np.max(quality)) if np.isfinite(quality).all() else None,
        "rank1": float(np.mean(ranks)),
        "rank1_chance": float(np.mean(chances)),
        "accepted": float(np.mean(own > gallery.threshold)),
        "cosine": float(np.mean(own)),
    }


def _people_of(targets: Targets, place: np.ndarray, t: int) -> np.ndarray:
    """Positions in the gallery of the people of a target's client."""
    first = place[t, 0] - targets.labels[t, 0]
    rows = targets.heads.class_embeddings[t]
    count = int((np.linalg.norm(rows, axis=-1) > 0).sum())
    return np.arange(first, first + count)


def _shown(images: np.ndarray) -> np.ndarray:
    return images.reshape(-1, *images.shape[2:])[:_SHOWN]
