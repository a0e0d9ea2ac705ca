"""The interface between data sources and the rest of the program."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedfr_jax.errors import InputError

if TYPE_CHECKING:  # reading data does not start JAX
    import jax


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """Labelled face images, read on demand.

    Attributes:
      name: kind and origin of the data, for reports and error messages.
      labels: (N,) int32 or int64, identity of each image, in ``[0, num_identities)`` without
        gaps. int32 where there may be very many images (generated faces).
      image_size: side S of the square images in pixels.
      read: maps (n,) int image numbers to (n, S, S, 3) uint8 RGB images.
      identity_names: one name per identity, as in the source; may be made when asked for.
      describe: maps (n,) int image numbers to the inputs of ``render``, (n,) int32 arrays by
        name; None if images cannot be made on the device.
      render: traceable; ``render(**describe(numbers))`` draws on the device what
        ``read(numbers)`` returns, up to one grey level, because compiled programs may
        round differently. Its working memory grows with n. None if ``describe`` is None.
      check: takes (n,) int image numbers and raises InputError with the name of an image that
        cannot be read, much faster than ``read``; None if none can fail.
      fetch: maps an image number to the image as it is stored: a whole file, or an array of shape
        (H, W), (H, W, 1) or (H, W, 3) uint8; None if images are made when they are read.
      name_of: maps an image number to what messages call the image; None: "image 7 of ...".
      splits: the image numbers of each split that the source has, by its name there, such as
        ``train`` and ``test``; empty if it has none.
    """

    name: str
    labels: np.ndarray
    image_size: int
    read: Callable[[np.ndarray], np.ndarray]
    identity_names: Sequence[str]
    describe: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None
    render: Callable[..., jax.Array] | None = None
    check: Callable[[np.ndarray], None] | None = None
    splits: Mapping[str, range] = dataclasses.field(default_factory=dict)
    fetch: Callable[[int], bytes | np.ndarray] | None = None
    name_of: Callable[[int], str] | None = None

    def called(self, image: int) -> str:
        """What messages call the image of this number."""
        return f"image {image} of {self.name}" if self.name_of is None else self.name_of(image)

    @property
    def num_identities(self) -> int:
        return len(self.identity_names)

    def examples(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """``images`` (n, S, S, 3) and ``labels`` (n,) int32 of (n,) image numbers."""
        return {
            "images": self.read(numbers),
            "labels": np.asarray(self.labels[numbers], np.int32),
        }


def as_images(images: object, image_size: int) -> np.ndarray:
    """Returns images as an array, if they are (N, S, S, 3) uint8 of this size S and N > 0.

    Raises:
      InputError: they are not; the message says what to do.
    """
    try:
        array = np.asarray(images)
    except ValueError as error:  # images of several shapes
        raise InputError(
            f"images: no array can be made of them ({error}); resize them to "
            f"{image_size} x {image_size}"
        ) from error
    wanted = (image_size, image_size, 3)
    if array.dtype != np.uint8:
        advice = "give 0 to 255 as uint8 (for shares in [0, 1]: (255 * x).round().astype('uint8'))"
    elif array.shape == wanted:
        advice = "give a single image as images[None]"
    elif array.shape[-2:] == wanted[:2] and array.ndim in (2, 3):
        advice = "repeat gray images in three channels: np.repeat(x[..., None], 3, axis=-1)"
    elif array.ndim == 4 and array.shape[-1] == 1:
        advice = "repeat gray images in three channels: np.repeat(x, 3, axis=-1)"
    elif array.shape[1:] != wanted:
        advice = f"resize them to {image_size} x {image_size} RGB, channels last"
    elif not len(array):
        advice = "give at least one"
    else:
        return array
    raise InputError(
        f"images are {array.dtype} of shape {array.shape}, but (N, {image_size}, "
        f"{image_size}, 3) uint8 is needed; {advice}"
    )


def remembering(source: ImageSource) -> ImageSource:
    """The same source, keeping every image in memory after it was read: for several runs."""
    size = source.image_size
    images = np.empty((len(source.labels), size, size, 3), np.uint8)  # touched as it fills
    there = np.zeros(len(source.labels), bool)

    def read(numbers: np.ndarray) -> np.ndarray:
        missing = np.unique(numbers[~there[numbers]])
        if len(missing):
            images[missing] = source.read(missing)
            there[missing] = True
        return images[numbers]

    return dataclasses.replace(source, read=read)


@dataclasses.dataclass(frozen=True)
class VerificationSet:
    """Image pairs, each labelled as showing the same person or not.

    Attributes:
      name: for tables, for instance ``lfw``.
      images: (2P, S, S, 3) uint8; pair ``p`` is images ``2p`` and ``2p + 1``.
      is_same: (P,) bool.
    """

    name: str
    images: np.ndarray
    is_same: np.ndarray


@dataclasses.dataclass(frozen=True)
class Client:
    """One client's share of the data; image numbers refer to the source.

    Attributes:
      identities: (K_i,) int64 source identities; local label ``k`` is ``identities[k]``.
      train_images: (n_i,) int64 image numbers (training images and 1:N gallery).
      train_labels: (n_i,) int64 local labels in ``[0, K_i)``.
      verification_images: (v_i,) int64 image numbers, held out.
      verification_labels: (v_i,) int64 local labels.
    """

    identities: np.ndarray
    train_images: np.ndarray
    train_labels: np.ndarray
    verification_images: np.ndarray
    verification_labels: np.ndarray


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns ``arange(start, start + length)`` of all entries, one after the other; int64."""
    ends = np.cumsum(lengths, dtype=np.int64)
    shifts = np.repeat(starts - (ends - lengths), lengths)
    return np.arange(len(shifts)) + shifts


def consecutive(identities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers people in the order in which they first occur.

    Args:
      identities: (T,) int64, each any number of times.

    Returns:
      (P,) int64 the people in this order, and (T,) int64 the number in [0, P) of each entry.
    """
    people, first, person = np.unique(identities, return_index=True, return_inverse=True)
    order = np.argsort(first)
    number = np.empty(len(people), np.int64)
    number[order] = np.arange(len(people))
    return people[order], number[person]


@dataclasses.dataclass(frozen=True, eq=False)
class Clients(Sequence[Client]):
    """All clients' shares as flat arrays; a :class:`Client` is built on demand.

    A population has millions of identities, so nothing here is a list of arrays. T is the
    number of all clients' identities together. A person at several clients has an entry at each of
    them, with images of its own.

    Attributes:
      identities: (T,) int64 source identities, client after client.
      offsets: (N + 1,) int64; client ``i`` has the entries ``offsets[i]:offsets[i + 1]``.
      starts: (T,) int64, position of the identity's first image in ``order``.
      counts: (T,) int64, images of the identity that are used: ``verification_images`` for
        verification, then at least one for training.
      verification_images: held out of every identity.
      order: (M,) int64 image numbers, grouped by identity; None if positions are image
        numbers, because the source has its images sorted by identity.
      validation_images: the last ones of every identity, on which its client chooses a model.
      labels: (T,) int64 local label of each entry, where a client has a person in several entries
        (:meth:`union`); None: a client's entries are numbered in turn.
    """

    identities: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    verification_images: int
    order: np.ndarray | None
    validation_images: int = 0
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> Client:  # type: ignore[override]
        """Builds one client; negative numbers count from the end, slices are refused."""
        number = operator.index(number)
        if not -len(self) <= number < len(self):
            raise IndexError(f"client {number} of {len(self)}")
        only = np.array([number % len(self)])
        entries, local = self._entries(only)
        _, first = np.unique(local, return_index=True)
        return Client(
            self.identities[entries][first],
            *self.training(only),
            *self.verification(only),
        )

    @functools.cached_property
    def identity_counts(self) -> np.ndarray:
        """(N,) int64 identities per client."""
        if self.labels is None:
            return self.entry_counts
        return np.maximum.reduceat(self.labels, self.offsets[:-1]) + 1

    @functools.cached_property
    def entry_counts(self) -> np.ndarray:
        """(N,) int64 entries per client: as many as identities, unless there are ``labels``."""
        return np.diff(self.offsets)

    @functools.cached_property
    def entry_clients(self) -> np.ndarray:
        """(T,) int64 client of each entry."""
        return np.repeat(np.arange(len(self)), self.entry_counts)

    @property
    def training_counts(self) -> np.ndarray:
        """(T,) int64 training images of each entry."""
        return self.counts - self.verification_images - self.validation_images

    @functools.cached_property
    def sites(self) -> np.ndarray:
        """(T,) int64 clients that have this entry's person: 1 unless people are shared."""
        return np.bincount(self.identities)[self.identities]

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """(N,) int64 training images per client."""
        total = np.concatenate([[0], np.cumsum(self.counts)])
        held = self.entry_counts * (self.verification_images + self.validation_images)
        return np.diff(total[self.offsets]) - held

    @property
    def verification_counts(self) -> np.ndarray:
        """(N,) int64 verification images per client."""
        return self.entry_counts * self.verification_images

    def union(self) -> Clients:
        """One client that holds all images and identities; a person of several clients once."""
        one = dataclasses.replace(self, offsets=self.offsets[[0, -1]])
        if (self.sites == 1).all():
            return one
        return dataclasses.replace(one, labels=consecutive(self.identities)[1])

    def entry_images(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All images of some entries: (image numbers, entry of each), both int64."""
        return self._images(self.starts[entries], self.counts[entries], entries)

    def training(self, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Training images of some clients, client after client, in the order of their labels.

        The work is proportional to these clients' images, not to the population.

        Args:
          clients: (n,) int client numbers >= 0, in any order.

        Returns:
          (image numbers, local labels), both (sum of the clients' ``sizes``,) int64.
        """
        entries, local = self._entries(clients)
        skip = self.verification_images
        lengths = self.counts[entries] - skip - self.validation_images
        return self._images(self.starts[entries] + skip, lengths, local)

    def verification(self, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Verification images of some clients; see :meth:`training`."""
        entries, local = self._entries(clients)
        held = np.full(len(entries), self.verification_images)
        return self._images(self.starts[entries], held, local)

    def validation(self, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Validation images of some clients; see :meth:`training`."""
        entries, local = self._entries(clients)
        last = np.full(len(entries), self.validation_images)
        return self._images(self.starts[entries] + self.counts[entries] - last, last, local)

    def _entries(self, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the clients' identities in the flat arrays, and their local labels."""
        first = self.offsets[clients]
        lengths = self.offsets[np.asarray(clients) + 1] - first
        entries = ranges(first, lengths)
        if self.labels is not None:
            return entries, self.labels[entries]
        return entries, ranges(np.zeros_like(lengths), lengths)

    def _images(self, starts, lengths, local) -> tuple[np.ndarray, np.ndarray]:
        positions = ranges(starts, lengths)
        numbers = positions if self.order is None else self.order[positions]
        return numbers, np.repeat(local, lengths)


@dataclasses.dataclass(frozen=True)
class FederatedSplit:
    """Which client holds which images (paper, section 4.1).

    Attributes:
      clients: one entry per client, built on demand.
      public_identities: (K_0,) int64 source identities; public label ``k`` is entry ``k``.
      public_images: (N_0,) int64 image numbers.
      public_labels: (N_0,) int64 in ``[0, K_0)``.
      held_out_identities: (H,) int64 identities that are not used for training.
      pairs: (P, 2) int64 image numbers of held-out identities, for generic verification.
      pairs_same: (P,) bool.
      groups: (T,) int64 group of each entry of ``clients.identities`` (``data.split.skew_by``), or
        None.
      attribute: (T,) float64 what they were grouped by, in its own unit, if it is a number per
        person; or None.
    """

    clients: Clients
    public_identities: np.ndarray
    public_images: np.ndarray
    public_labels: np.ndarray
    held_out_identities: np.ndarray
    pairs: np.ndarray
    pairs_same: np.ndarray
    groups: np.ndarray | None = None
    attribute: np.ndarray | None = None
