"""What every data source delivers, and what the rest of the program reads."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """Labelled face images, read on demand.

    Attributes:
      name: what it is and where it comes from, for reports and error messages.
      labels: (N,) int64, identity of each image, in ``[0, num_identities)`` without gaps.
      image_size: side S of the square images in pixels.
      read: maps (n,) int image numbers to (n, S, S, 3) uint8 RGB images.
      identity_names: one name per identity, as in the source.
    """

    name: str
    labels: np.ndarray
    image_size: int
    read: Callable[[np.ndarray], np.ndarray]
    identity_names: tuple[str, ...]

    @property
    def num_identities(self) -> int:
        return len(self.identity_names)


@dataclasses.dataclass(frozen=True)
class VerificationSet:
    """Image pairs with the answer whether both show the same person.

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


@dataclasses.dataclass(frozen=True)
class FederatedSplit:
    """Who holds which images (paper, section 4.1).

    Attributes:
      clients: one entry per client.
      public_identities: (K_0,) int64 source identities; public label ``k`` is entry ``k``.
      public_images: (N_0,) int64 image numbers.
      public_labels: (N_0,) int64 in ``[0, K_0)``.
      held_out_identities: (H,) int64 identities that nobody trains on.
      pairs: (P, 2) int64 image numbers of held-out identities, for generic verification.
      pairs_same: (P,) bool.
    """

    clients: tuple[Client, ...]
    public_identities: np.ndarray
    public_images: np.ndarray
    public_labels: np.ndarray
    held_out_identities: np.ndarray
    pairs: np.ndarray
    pairs_same: np.ndarray
