"""Whose faces a verification set shows: its images are found again in a data set with labels.

    python -m fedfr_jax.prepare labels --bin=lfw.bin --source=recordio --root=LFW --out=labels.npy

The result is a file for ``data.verification_labels``: pairs of people that are trained on can then
be left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os

import numpy as np

from fedfr_jax.atomic import write_file
from fedfr_jax.data.types import ImageSource, VerificationSet
from fedfr_jax.data.verification import original_labels
from fedfr_jax.errors import InputError
from fedfr_jax.prepare.matching import (
    SIDE,
    Nearest,
    blocks,
    find_offset,
    registered_correlation,
    thumbnails,
)
from fedfr_jax.runtime.progress import track

SAME = 0.96  # correlation from which two images are the same photograph
_KEEP = 4  # candidates per image that are looked at closely
_PROBES = 64  # images of the set by which its crop is found
_SAMPLE = 16384  # images of the source that these are compared with
_LOOKED_AT = 256  # pairs of images that are compared closely at a time


@dataclasses.dataclass(frozen=True)
class Labels:
    """The people of a verification set.

    Attributes:
      labels: (P, 2) int64 in the numbering of the source's own files; -1: not known.
      images: (P, 2) int64 numbers of the images that were found in the source; -1: none.
      offset: (right, down) in pixels of 112, by which the set is cropped differently.
      matched: images of the 2P that were found.
      from_partner: images that were not, whose person is known from the other image of the pair.
      contradictions: pairs whose people are the same where the set says that they differ, or the
        other way round.
    """

    labels: np.ndarray
    images: np.ndarray
    offset: tuple[int, int]
    matched: int
    from_partner: int
    contradictions: int

    def report(self) -> str:
        """What was found, in a few lines."""
        count = self.labels.size
        known = int((self.labels >= 0).sum())
        pairs = int((self.labels >= 0).all(axis=1).sum())
        lines = [
            f"{self.matched:,} of {count:,} images were found again "
            f"({100 * self.matched / count:.1f} %), cropped {self.offset[0]} px to the right and "
            f"{self.offset[1]} px down of {SIDE}",
            f"{known:,} images have a label, {self.from_partner:,} of them through their partner; "
            f"{pairs:,} of {len(self.labels):,} pairs have both",
        ]
        if self.contradictions:
            lines.append(
                f"{self.contradictions:,} pairs contradict the set's own answers: photographs that "
                "the data set holds under two names, or errors of either"
            )
        return "\n".join(lines)


def find_labels(pairs: VerificationSet, source: ImageSource) -> Labels:
    """Labels the images of a verification set by finding them in a data set.

    Every image of the set is compared with all of the source by small pictures, and closely with
    the nearest of them: the same photograph is known in spite of JPEG, of another crop (up to an
    eighth of the side, the same for most images) and of slight turns.

    Args:
      pairs: P pairs, of 112 x 112 pixels.
      source: the data set, opened with 112 x 112 pixels, its identities named by numbers.

    Raises:
      InputError: sizes are others, or identities have no numbers.
    """
    if source.image_size != SIDE or pairs.images.shape[1:] != (SIDE, SIDE, 3):
        raise InputError(f"labels are found on images of {SIDE} x {SIDE} pixels; open both so")
    own = original_labels(source, range(source.num_identities))[source.labels]
    images, where = _distinct(pairs.images)
    offset, nearest = _search(images, source)
    close = _look_closely(images, source, nearest, offset)
    labels, found, contradictions = _decide(close[where], nearest.found[where], own, pairs.is_same)
    partner = (labels[:, ::-1] >= 0) & (labels < 0) & pairs.is_same[:, None]
    return Labels(
        labels=np.where(partner, labels[:, ::-1], labels),
        images=found,
        offset=offset,
        matched=int((found >= 0).sum()),
        from_partner=int(partner.sum()),
        contradictions=contradictions,
    )


def save_labels(path: str | os.PathLike, labels: np.ndarray) -> None:
    """Writes (P, 2) labels as ``.npy``, all of it or nothing."""
    write_file(path, lambda file: np.save(file, labels.astype(np.int64)))


def _distinct(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the different images, where each one of all is among them); sets repeat their images."""
    seen: dict[bytes, int] = {}
    where = np.array(
        [seen.setdefault(hashlib.sha256(image.tobytes()).digest(), len(seen)) for image in images]
    )
    return images[np.unique(where, return_index=True)[1]], where


def _search(images: np.ndarray, source: ImageSource) -> tuple[tuple[int, int], Nearest]:
    count = len(source.labels)
    probes = images[np.linspace(0, len(images) - 1, min(_PROBES, len(images))).astype(int)]
    sample = np.unique(np.linspace(0, count - 1, min(_SAMPLE, count)).astype(int))
    known = np.concatenate([thumbnails(source.read(sample[rows])) for rows in blocks(len(sample))])
    offset, _ = find_offset(probes, known)
    nearest = Nearest(thumbnails(images, offset), _KEEP)
    with track("comparing", count, "image", keep=False) as bar:
        for numbers in blocks(count):
            nearest.add(numbers, thumbnails(source.read(numbers)))
            bar.update(len(numbers), images=len(numbers))
    return offset, nearest


def _look_closely(
    images: np.ndarray, source: ImageSource, nearest: Nearest, offset: tuple[int, int]
) -> np.ndarray:
    """(n, keep) correlations; the further candidates only of images whose first is another."""
    close = np.full(nearest.found.shape, -1.0)
    with track("looking closely", len(images), "image", keep=False) as bar:
        for rank in range(nearest.found.shape[1]):
            open_ones = (close.max(axis=1) < SAME) & (nearest.found[:, rank] >= 0)
            # Photographs under two names: also what is all but as near as the first.
            open_ones |= (nearest.found[:, rank] >= 0) & (nearest.scores[:, rank] > SAME)
            todo = np.flatnonzero(open_ones)
            for rows in blocks(len(todo), _LOOKED_AT):
                chosen = todo[rows]
                there = source.read(nearest.found[chosen, rank])
                close[chosen, rank] = registered_correlation(images[chosen], there, offset)
                bar.update(len(chosen) if rank == 0 else 0)
    return close


def _decide(
    close: np.ndarray, candidates: np.ndarray, own: np.ndarray, is_same: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """((P, 2) labels, (P, 2) images found, contradictions).

    Where a photograph is there under several names, those that agree with the pair's answer are
    preferred.
    """
    labels, found = np.full((2, len(is_same), 2), -1, np.int64)
    contradictions = 0
    for pair, same in enumerate(is_same.tolist()):
        options = [
            [
                (float(close[i, k]), int(own[candidates[i, k]]), int(candidates[i, k]))
                for k in np.flatnonzero(close[i] >= SAME)
            ]
            for i in (2 * pair, 2 * pair + 1)
        ]
        both = [(a, b) for a in options[0] for b in options[1]]
        fitting = [(a, b) for a, b in both if (a[1] == b[1]) == same]
        contradictions += bool(both) and not fitting
        if both:
            chosen = max(fitting or both, key=lambda two: two[0][0] + two[1][0])
        else:
            chosen = tuple(max(some, default=(0.0, -1, -1)) for some in options)  # type: ignore
        labels[pair], found[pair] = [c[1] for c in chosen], [c[2] for c in chosen]
    return labels, found, contradictions
