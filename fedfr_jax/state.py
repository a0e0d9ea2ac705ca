"""What the server holds, what clients hold, and the data both train on.

All three are pytrees of arrays. Personal rows of all clients are stacked:
every leaf of :class:`Heads` has a leading client axis C.
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
    """

    round: jax.Array
    backbone: PyTree
    public_embeddings: jax.Array


@struct.dataclass
class Heads:
    """Personal to each client, never averaged, never sent (K = most identities of a client).

    Attributes:
      class_embeddings: (C, K, d), rows beyond a client's own identities are zero.
      transform: DFC transform, pytree with leading axis C.
      binary_weight: (C, K, d); binary_bias: (C, K): one-vs-all classifiers.
      previous: variables of each client's backbone after its last local training.
      has_trained: (C,) bool, False until ``previous`` means something.
    """

    class_embeddings: jax.Array
    transform: PyTree
    binary_weight: jax.Array
    binary_bias: jax.Array
    previous: PyTree
    has_trained: jax.Array


@struct.dataclass
class FederatedData:
    """Training images of everybody in one table, and who may read which row.

    Attributes:
      images: (N, S, S, 3) uint8; the N_0 public images are the first rows.
      public_labels: (N_0,) int32 in [0, K_0).
      client_rows: (C, M) int32 rows of ``images``; M = most images of a client.
      client_labels: (C, M) int32 in [0, K).
      client_sizes: (C,) int32 images of each client; later columns are padding.
      client_identities: (C,) int32 identities of each client; later head rows are padding.
      public_identities: K_0, static.
      most_identities: K, static.
    """

    images: jax.Array
    public_labels: jax.Array
    client_rows: jax.Array
    client_labels: jax.Array
    client_sizes: jax.Array
    client_identities: jax.Array
    public_identities: int = struct.field(pytree_node=False)
    most_identities: int = struct.field(pytree_node=False)
