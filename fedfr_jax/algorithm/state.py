"""The state of the server and of the clients.

Both are pytrees of arrays. A round's clients fill C *slots*, the same number on each of
D devices; every leaf of :class:`Heads` has a leading axis C, divided over the devices.
A slot may be empty. What they train on is in :mod:`fedfr_jax.population.cohort_data`.
"""

from __future__ import annotations

from typing import Any

from flax import struct

PyTree = Any
Array = Any  # or its placeholder in a pytree: a shape with its type, an axis of jax.vmap


class ServerState(struct.PyTreeNode):
    """State shared between server and clients, averaged in every round.

    Attributes:
      round: int32 scalar, number of rounds done.
      backbone: variables of the backbone, ``{"params", "batch_stats"}``.
      public_embeddings: (K_0, d) class embeddings of the public identities.
      optimizer: state of the server's optimizer; None for plain averaging.
      message: what the treatment of messages remembers, see
        :func:`fedfr_jax.algorithm.messages.initial_memory`; None where it remembers nothing.
    """

    round: Array
    backbone: PyTree
    public_embeddings: Array
    optimizer: PyTree | None = None
    message: PyTree | None = None


class Heads(struct.PyTreeNode):
    """State of each client, never averaged. Only FedFace sends a part of it, the class embeddings.
    K is the largest number of identities of a client.

    Attributes:
      class_embeddings: (C, K, d), zero beyond a client's own identities.
      transform: DFC transform, pytree with leading axis C.
      binary_weight: (C, K, d); binary_bias: (C, K): one-vs-all classifiers.
      previous: variables of each client's backbone after its last local training, in
        the type of the parameters or bfloat16; None where it is not kept.
      has_trained: (C,) bool, False until ``previous`` is set.
      copy_embeddings: (C, K, d) class embeddings that go with a personal copy of the backbone,
        which is then what ``previous`` holds; None in methods without one.
      unsent: (C, P) what ``privacy.top_k`` has held back so far; None without it.
    """

    class_embeddings: Array
    transform: PyTree
    binary_weight: Array
    binary_bias: Array
    previous: PyTree | None
    has_trained: Array
    copy_embeddings: Array | None = None
    unsent: Any = None  # an array, or None
