"""The same photograph twice, and the same person under two names.

Copies in training and in held-out images make scores too good; copies under two names make them
too bad. Images are compared block by block: memory grows with the held-out images, not with all.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fedfr_jax.atomic import write_text
from fedfr_jax.data.types import FederatedSplit, ImageSource, VerificationSet
from fedfr_jax.errors import InputError
from fedfr_jax.prepare.matching import (
    SIDE,
    Nearest,
    blocks,
    read_blocks,
    registered_correlation,
    thumbnails,
    unit,
)
from fedfr_jax.runtime.progress import track

Embed = Callable[[np.ndarray], np.ndarray]
_KEEP = 8  # most copies of an image that are found
_QUERIES = 1 << 16  # images whose small pictures are in memory at a time
_CANDIDATE = 0.93  # cosine of small pictures from which images are compared closely
_LOOKED_AT = 256
_PEOPLE = 2048  # rows of the similarity of people


@dataclasses.dataclass(frozen=True)
class Part:
    """Images of one kind, such as "training" or "held out".

    Attributes:
      name: for the report.
      numbers: (n,) int64, the images' numbers for ``read``.
      read: numbers -> (n, S, S, 3) uint8.
      called: number -> what the report calls the image.
      people: (n,) names or None where they are not known.
    """

    name: str
    numbers: np.ndarray
    read: Callable[[np.ndarray], np.ndarray]
    called: Callable[[int], str]
    people: Sequence[str | None]


@dataclasses.dataclass(frozen=True)
class Copy:
    """Two images that are the same, pixel by pixel ("exact") or by their likeness ("near")."""

    kind: str
    likeness: float
    image: str
    person: str | None
    other: str
    other_person: str | None
    parts: tuple[str, str]

    @property
    def two_names(self) -> bool:
        """Whether the data set has the image under two names."""
        known = self.person is not None and self.other_person is not None
        return known and self.person != self.other_person


def parts_of(source: ImageSource, split: FederatedSplit | None) -> list[Part]:
    """The images of a source: "training" and "held out" of a split, or "all" without one."""
    if split is None:
        return [_part(source, "all", np.arange(len(source.labels)))]
    clients, everyone = split.clients, np.arange(len(split.clients))
    training, held_out = clients.training(everyone)[0], clients.verification(everyone)[0]
    validation = clients.validation(everyone)[0]
    aside = np.flatnonzero(np.isin(source.labels, split.held_out_identities))
    return [
        _part(source, "training", np.concatenate([split.public_images, training])),
        _part(source, "held out", np.concatenate([held_out, validation, aside])),
    ]


def _part(source: ImageSource, name: str, numbers: np.ndarray) -> Part:
    numbers = np.unique(numbers)
    people = [source.identity_names[label] for label in np.asarray(source.labels)[numbers].tolist()]
    return Part(name, numbers, source.read, source.called, people)


def part_of_pairs(pairs: VerificationSet) -> Part:
    """The images of a verification set; those that it repeats are taken once."""
    first: dict[bytes, int] = {}
    for i, image in enumerate(pairs.images):
        first.setdefault(hashlib.sha256(image.tobytes()).digest(), i)
    numbers = np.array(list(first.values()), np.int64)
    return Part(
        pairs.name,
        numbers,
        lambda chosen: pairs.images[chosen],
        lambda i: f"{pairs.name}: image {i} of pair {i // 2}",
        [None] * len(numbers),
    )


def find_copies(
    queries: Part, candidates: Part, *, near: float = 0.98, embed: Embed | None = None
) -> Iterator[Copy]:
    """Images of one part that are in the other, too; in one and the same part, each pair once.

    Args:
      queries, candidates: the parts; the work is the product of their sizes.
      near: least likeness of a near copy. Without ``embed`` it is the correlation of gray values
        after registration, which tolerates JPEG, brightness, slight shifts and turns.
      embed: (n, S, S, 3) uint8 -> (n, d) features of a face model; ``near`` is then their cosine.
        Finds other photographs of a person, too, if ``near`` is low.

    Yields:
      The copies, those of each query together.
    """
    small = thumbnails if embed is None else lambda images: unit(embed(images))
    same = queries is candidates
    with track(f"{queries.name} in {candidates.name}", None, "image", keep=False) as bar:
        for rows in blocks(len(queries.numbers), _QUERIES):
            hashes, features = _index(queries, rows, small)
            nearest = Nearest(features, _KEEP + same)
            exact: set[tuple[int, int]] = set()
            position = 0
            for numbers, images in read_blocks(candidates.read, candidates.numbers):
                at = np.arange(position, position + len(numbers))
                for j, image in zip(at.tolist(), images, strict=True):
                    exact |= {(i, j) for i in hashes.get(_digest(image), ())}
                nearest.add(at, small(images))
                position += len(numbers)
                bar.update(len(numbers), images=len(numbers))
            yield from _reported(queries, candidates, rows, exact, nearest, near, embed)


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _index(part: Part, rows: np.ndarray, small: Embed) -> tuple[dict[bytes, list[int]], np.ndarray]:
    """(positions by hash of the pixels, features) of some images of a part."""
    hashes: dict[bytes, list[int]] = {}
    features = []
    for start in blocks(len(rows)):
        images = part.read(part.numbers[rows[start]])
        for i, image in zip(rows[start].tolist(), images, strict=True):
            hashes.setdefault(_digest(image), []).append(i)
        features.append(small(images))
    return hashes, np.concatenate(features)


def _reported(
    queries: Part,
    candidates: Part,
    rows: np.ndarray,
    exact: set[tuple[int, int]],
    nearest: Nearest,
    near: float,
    embed: Embed | None,
) -> Iterator[Copy]:
    same = queries is candidates
    likeness = {pair: 1.0 for pair in exact}
    least = near if embed is not None else _CANDIDATE
    i, k = np.nonzero((nearest.scores >= least) & (nearest.found >= 0))
    pairs = np.stack([rows[i], nearest.found[i, k]], axis=1)
    scores = nearest.scores[i, k]
    new = np.array([(a, b) not in exact for a, b in pairs.tolist()], bool)
    if same:  # each pair comes twice, and every image with itself
        new &= pairs[:, 0] < pairs[:, 1]
    pairs, scores = pairs[new], scores[new]
    if embed is None:
        scores = _closely(queries, candidates, pairs)
    likeness |= {(a, b): float(s) for (a, b), s in zip(pairs.tolist(), scores, strict=True)}
    for (a, b), score in sorted(likeness.items()):
        if score >= near and not (same and a >= b):
            yield Copy(
                "exact" if (a, b) in exact else "near",
                round(score, 4),
                queries.called(int(queries.numbers[a])),
                queries.people[a],
                candidates.called(int(candidates.numbers[b])),
                candidates.people[b],
                (queries.name, candidates.name),
            )


def _closely(queries: Part, candidates: Part, pairs: np.ndarray) -> np.ndarray:
    found = [np.zeros(0)]
    for rows in blocks(len(pairs), _LOOKED_AT):
        first = queries.read(queries.numbers[pairs[rows, 0]])
        second = candidates.read(candidates.numbers[pairs[rows, 1]])
        if first.shape[1:] != (SIDE, SIDE, 3):
            raise InputError(f"copies are looked for on images of {SIDE} x {SIDE} pixels")
        found.append(registered_correlation(first, second))
    return np.concatenate(found)


def find_same_people(
    source: ImageSource, embed: Embed, threshold: float
) -> list[tuple[str, str, float]]:
    """Pairs of identities whose mean features are so close that they may be one person.

    Args:
      source: opened with the size of image that ``embed`` takes.
      embed: (n, S, S, 3) uint8 -> (n, d) features of a face model.
      threshold: least cosine of the mean features.

    Returns:
      (name, other name, cosine), the closest first.
    """
    sums: np.ndarray | None = None
    count = len(source.labels)
    with track("features", count, "image", keep=False) as bar:
        for numbers, images in read_blocks(source.read, np.arange(count)):
            features = unit(embed(images))
            if sums is None:
                sums = np.zeros((source.num_identities, features.shape[1]), np.float32)
            np.add.at(sums, np.asarray(source.labels)[numbers], features)
            bar.update(len(numbers), images=len(numbers))
    assert sums is not None
    means, found = unit(sums), []
    for rows in blocks(len(means), _PEOPLE):
        for columns in blocks(len(means), _PEOPLE):
            if columns[-1] <= rows[0]:
                continue
            near = means[rows] @ means[columns].T
            for a, b in np.argwhere(near >= threshold).tolist():
                if rows[a] < columns[b]:
                    found.append((int(rows[a]), int(columns[b]), float(near[a, b])))
    names = source.identity_names
    found.sort(key=lambda pair: -pair[2])
    return [(names[a], names[b], round(score, 4)) for a, b, score in found]


def summary(copies: Sequence[Copy]) -> str:
    """How many copies there are, by parts and kind, in a few lines."""
    groups: dict[tuple[str, str], list[Copy]] = {}
    for copy in copies:
        groups.setdefault(copy.parts, []).append(copy)
    lines = []
    for (first, second), found in groups.items():
        where = f"within {first}" if first == second else f"{first} / {second}"
        exact = sum(copy.kind == "exact" for copy in found)
        names = sum(copy.two_names for copy in found)
        line = f"{where}: {exact:,} exact and {len(found) - exact:,} near copies"
        lines.append(line + (f", {names:,} of them under two names" if names else ""))
    return "\n".join(lines) or "no copies"


def write_csv(
    path: str | os.PathLike, header: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Writes a table as CSV, all of it or nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def table_of(copies: Sequence[Copy]) -> list[list[Any]]:
    """Rows for :func:`write_csv`."""
    return [
        [c.kind, c.likeness, *c.parts, c.image, c.person or "", c.other, c.other_person or ""]
        for c in copies
    ]


HEADER = (
    "kind",
    "likeness",
    "part",
    "other part",
    "image",
    "person",
    "other image",
    "other person",
)
