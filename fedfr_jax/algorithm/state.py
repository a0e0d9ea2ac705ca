"""What the server holds and what clients hold.

Both are pytrees of arrays. A round's clients fill C *slots*, the same number on each of
D devices; every leaf of :class:`Heads` has a leading axis C, divided over the devices.
A slot may be empty. What they train on is in :mod:`fedfr_jax.population.cohort_data`.
"""

from __future__ import annotations

from typing import Any

from flax import struct

PyTree = Any
Array = Any  # or what stands for one in a pytree: a shape with its type, an axis of jax.vmap


class ServerState(struct.PyTreeNode):
    """Shared between server and clients, averaged in every round.

    Attributes:
      round: int32 scalar, number of rounds done.
      backbone: variables of the backbone, ``{"params", "batch_stats"}``.
      public_embeddings: (K_0, d) class embeddings of the public identities.
      optimizer: state of the server's optimizer; None where it plainly averages.
    """

    round: Array
    backbone: PyTree
    public_embeddings: Array
    optimizer: PyTree | None = None


class Heads(struct.PyTreeNode):
    """Personal to each client, never averaged, and sent by no method but FedFace, which sends the
    class embeddings (K = most identities of a client).

    Attributes:
      class_embeddings: (C, K, d), rows beyond a client's own identities are zero.
      transform: DFC transform, pytree with leading axis C.
      binary_weight: (C, K, d); binary_bias: (C, K): one-vs-all classifiers.
      previous: variables of each client's backbone after its last local training, in
        the type of the parameters or bfloat16; None where it is not kept.
      has_trained: (C,) bool, False until ``previous`` means something.
      copy_embeddings: (C, K, d) class embeddings that go with a personal copy of the backbone,
        which is then what ``previous`` holds; None in methods without one.
    """

    class_embeddings: Array
    transform: PyTree
    binary_weight: Array
    binary_bias: Array
    previous: PyTree | None
    has_trained: Array
    copy_embeddings: Array | None = None
