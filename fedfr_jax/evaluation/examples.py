"""Images that show what models get right and wrong: for the report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fedfr_jax.evaluation import HEADLINE_FAR
from fedfr_jax.evaluation.assess import Assessment, Assessor, PersonalModels, gallery, nearest
from fedfr_jax.evaluation.scores import on_grid
from fedfr_jax.evaluation.streaming import unit_rows
from fedfr_jax.population.cohort_data import PublicData

PyTree = Any


def hard_negative_examples(
    assessor: Assessor, variables: PyTree, public_images: np.ndarray, count: int
) -> list[dict]:
    """The public images most like a client's own, one per client in turn.

    Args:
      variables: backbone under which images are compared.
      public_images: (N_0, S, S, 3) uint8, or an object that reads them when it is indexed.
      count: how many to return at most.
    """
    if not len(public_images):
        return []
    share, numbers = assessor.share, assessor.held_out.numbers

    def features(images: np.ndarray) -> np.ndarray:
        blocks = range(0, len(images), assessor.batch)
        parts = (np.asarray(images[i : i + assessor.batch]) for i in blocks)
        return np.concatenate([assessor.embed(variables, assessor.lower(part)) for part in parts])

    public = unit_rows(share.features(features, public_images))

    def own() -> Iterator[tuple[int, list[dict]]]:
        for position in share.positions(numbers[:count]):
            inputs, _ = gallery(assessor, position)
            own = unit_rows(assessor.embed(variables, inputs))
            cosine, local, other = _closest(own, public, assessor.settings.block)
            client = int(numbers[position])
            yield (
                int(position),
                [
                    {
                        "client": client,
                        "cosine": cosine,
                        "local_image": assessor.training_images(client)[local],
                        "public_image": np.asarray(public_images[other]),
                    }
                ],
            )

    return [example for some in share.examples(own) for example in some]


def _closest(own: np.ndarray, public: np.ndarray, block: int) -> tuple[float, int, int]:
    """(largest cosine, its row in ``own``, its row in ``public``), by blocks of the former."""
    best = -np.inf, 0, 0
    for rows in _some_rows(len(own), len(public), block):
        cosine = own[rows] @ public.T
        local, other = np.unravel_index(cosine.argmax(), cosine.shape)
        if cosine[local, other] > best[0]:
            best = float(cosine[local, other]), rows.start + int(local), int(other)
    return best


def _some_rows(rows: int, columns: int, block: int) -> Iterator[slice]:
    """Rows of a matrix in blocks of about ``block`` squared entries."""
    count = max(1, block * block // max(1, columns))
    return (slice(first, first + count) for first in range(0, rows, count))


def mistake_examples(
    assessor: Assessor, models: PersonalModels, personalized: Assessment, count: int
) -> list[dict]:
    """Each client's worst false accept and false reject, at the threshold of FAR 1e-3."""
    held_out, share = assessor.held_out, assessor.share
    far_index = nearest(personalized.verification[0].fars, HEADLINE_FAR)

    def own() -> Iterator[tuple[int, list[dict]]]:
        found = 0
        for position in share.positions(held_out.numbers):
            if found >= 2 * count:
                break
            model = models(int(held_out.numbers[position]))
            features = assessor.embed(model[0], assessor.probes)
            unit = unit_rows(assessor.after_transform(model, features))
            threshold = float(personalized.verification[position].thresholds[far_index])
            block = assessor.settings.block
            some = list(_client_mistakes(held_out, position, unit, threshold, block))
            found += len(some)
            yield int(position), some

    examples: list[dict] = []
    for some in share.examples(own):  # of several processes, perhaps more than are wanted
        if len(examples) >= 2 * count:
            break
        examples += some
    return examples


def _client_mistakes(held_out, position, unit, threshold, block) -> Iterator[dict]:
    own = np.flatnonzero(held_out.shows(position))
    kinds = {"false accept": -1, "false reject": 1}
    worst = {kind: (np.inf, 0, 0) for kind in kinds}
    for rows in _some_rows(len(own), len(unit), block):
        mine = own[rows]
        score = on_grid(unit[mine] @ unit.T)
        same = held_out.labels[mine][:, None] == held_out.labels
        other_image = mine[:, None] != np.arange(len(unit))
        for kind, sign in kinds.items():
            relevant = ~same if kind == "false accept" else same & other_image
            candidates = np.where(relevant, sign * score, np.inf)
            i, j = np.unravel_index(candidates.argmin(), candidates.shape)
            if candidates[i, j] < worst[kind][0]:
                worst[kind] = float(candidates[i, j]), int(mine[i]), int(j)
    for kind, sign in kinds.items():
        value, a, b = worst[kind]
        if np.isfinite(value) and (sign * value > threshold) == (kind == "false accept"):
            yield {
                "kind": kind,
                "model": "personalized",
                "client": int(held_out.numbers[position]),
                "image_a": held_out.images[a],
                "image_b": held_out.images[b],
                "score": sign * value,
                "threshold": threshold,
            }


def identity_sheet(public: PublicData, rows: int = 6, columns: int = 10) -> np.ndarray | None:
    """(rows, columns, S, S, 3): images of public identities, one per row; None without any."""
    labels = np.asarray(public.labels)
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels) if len(order) else np.zeros(0, int)
    chosen = np.argsort(-counts, kind="stable")[:rows]
    if not len(chosen):
        return None
    columns = min(columns, counts[chosen].min())
    first = np.concatenate([[0], np.cumsum(counts)])
    table = np.stack([order[first[k] : first[k] + columns] for k in np.sort(chosen)])
    return np.asarray(public.images[table.reshape(-1)]).reshape(
        *table.shape, *public.images.shape[1:]
    )
