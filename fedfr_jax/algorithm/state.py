"""What the server holds, what clients hold, and the data both train on.

All are pytrees of arrays. A round's clients fill C *slots*, the same number on each of
D devices; every leaf of :class:`Heads` and the per-client leaves of :class:`CohortData`
have a leading axis C, divided over the devices. A slot may be empty.
"""
from __future__ import annotations

from typing import Any

import jax
from flax import struct

PyTree = Any


@struct.dataclass
class ServerState:
    """Shared between server and clients, averaged in every round.

    Attributes:
      round: int32 scalar, number of rounds done.
      backbone: variables of the backbone, ``{"params", "batch_stats"}``.
      public_embeddings: (K_0, d) class embeddings of the public identities.
      optimizer: state of the server's optimizer; None where it plainly averages.
    """

    round: jax.Array
    backbone: PyTree
    public_embeddings: jax.Array
    optimizer: PyTree | None = None


@struct.dataclass
class Heads:
    """Personal to each client, never averaged, and sent by no method but FedFace, which sends the
    class embeddings (K = most identities of a client).

    Attributes:
      class_embeddings: (C, K, d), rows beyond a client's own identities are zero.
      transform: DFC transform, pytree with leading axis C.
      binary_weight: (C, K, d); binary_bias: (C, K): one-vs-all classifiers.
      previous: variables of each client's backbone after its last local training, in
        float32 or bfloat16; None where it is not kept.
      has_trained: (C,) bool, False until ``previous`` means something.
      copy_embeddings: (C, K, d) class embeddings that go with a personal copy of the backbone,
        which is then what ``previous`` holds; None in methods without one.
    """

    class_embeddings: jax.Array
    transform: PyTree
    binary_weight: jax.Array
    binary_bias: jax.Array
    previous: PyTree | None
    has_trained: jax.Array
    copy_embeddings: jax.Array | None = None


@struct.dataclass
class PublicData:
    """The public images, the same for everybody.

    Attributes:
      images: (N_0, S, S, 3) uint8.
      labels: (N_0,) int32 in [0, K_0).
      identities: K_0, static.
    """

    images: jax.Array
    labels: jax.Array
    identities: int = struct.field(pytree_node=False)


@struct.dataclass
class CohortData:
    """The training images of a round's clients.

    Every device has a list of its clients' images, R entries of which the first ``used``
    mean something. The list holds the images, or tells where they are in a table that lies
    on every device.

    Attributes:
      images: (D R, S, S, 3) uint8, the lists; or, with ``table_rows``, the (T, S, S, 3) table.
      table_rows: (D R,) int32 rows of the table, or None.
      used: (D,) int32.
      rows: (C, M) int32 positions in the device's list; M = most images of a client.
      labels: (C, M) int32 in [0, K).
      sizes: (C,) int32 images of each client; later columns are padding. 0: an empty slot.
      identities: (C,) int32 identities of each client; later head rows are padding.
      clients: (C,) int32 number in the population, -1 for an empty slot.
    """

    images: jax.Array
    table_rows: jax.Array | None
    used: jax.Array
    rows: jax.Array
    labels: jax.Array
    sizes: jax.Array
    identities: jax.Array
    clients: jax.Array
