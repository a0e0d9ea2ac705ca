"""The data of a round: the public images and the training images of its clients.

Both are pytrees of arrays. A round's clients fill C *slots*, the same number on each of
D devices; the per-client leaves of :class:`CohortData` have a leading axis C, divided over
the devices. A slot may be empty.
"""

from __future__ import annotations

from typing import Any

from flax import struct

Array = Any  # NumPy on the host, JAX on the devices, or the axis that jax.vmap maps


class PublicData(struct.PyTreeNode):
    """The public images, the same for all clients.

    Attributes:
      images: (N_0, S, S, 3) uint8; None where they are read from the source in every round.
      labels: (N_0,) int32 in [0, K_0).
      identities: K_0, static.
      numbers: where only some of the public images are here: (N,) int32 positions among all of
        them, ascending; None: all are here.
      count: all of them then, static.
    """

    images: Array  # or None
    labels: Array
    identities: int = struct.field(pytree_node=False)
    numbers: Array | None = None
    count: int = struct.field(pytree_node=False, default=0)


class Pace(struct.PyTreeNode):
    """How fast a round's clients are.

    Attributes:
      image: (C,) float32 seconds that training takes per image; 0 for an empty slot.
      upload: (C,) float32 seconds that it takes to send a message.
    """

    image: Array
    upload: Array


class CohortData(struct.PyTreeNode):
    """The training images of a round's clients.

    Every device has a list of its clients' images, with R entries, of which the first ``used``
    are valid. The list holds the images, or their positions in a table that is on every device.

    Attributes:
      images: (D R, S, S, 3) uint8, the lists; or, with ``table_rows``, the (T, S, S, 3) table.
      table_rows: (D R,) int32 positions in the table, or None.
      used: (D,) int32.
      rows: (C, M) int32 positions in the device's list; M = most images of a client.
      labels: (C, M) int32 in [0, K).
      sizes: (C,) int32 images of each client; later columns are padding. 0: an empty slot.
      identities: (C,) int32 identities of each client; later class embeddings are padding.
      clients: (C,) int32 number in the population, -1 for an empty slot.
      pace: how fast the clients are, or None where rounds have no simulated duration.
    """

    images: Array
    table_rows: Array | None
    used: Array
    rows: Array
    labels: Array
    sizes: Array
    identities: Array
    clients: Array
    pace: Pace | None = None
