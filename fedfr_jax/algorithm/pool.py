"""A client's training data in a round: its pool of images, and the mini-batches drawn from it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from fedfr_jax.algorithm import losses
from fedfr_jax.algorithm.features import Device, Images, Shared, own_images, type_of, views
from fedfr_jax.algorithm.hostile import labels_of
from fedfr_jax.algorithm.spec import RoundSpec
from fedfr_jax.population.cohort_data import CohortData


@struct.dataclass
class Client:
    """One client's part of the cohort."""

    number: jax.Array  # in the population
    rows: jax.Array
    labels: jax.Array
    size: jax.Array
    identities: jax.Array
    kept_public: jax.Array  # (N_0,) bool, or (0,) without public data
    in_time: Any = None  # bool, whether the server waits for its message; None: it does


def clients_of(
    spec: RoundSpec, cohort: CohortData, kept_public: Bool[Array, "C N_0"], in_time: Any
) -> Client:
    """The clients of a cohort, with a leading axis C; hostile ones with the labels they use."""
    return Client(
        number=cohort.clients,
        rows=cohort.rows,
        labels=labels_of(spec, cohort),
        size=cohort.sizes,
        identities=cohort.identities,
        kept_public=kept_public,
        in_time=in_time,
    )


@struct.dataclass
class Batch:
    """A mini-batch of one client.

    Attributes:
      images: (B, S, S, 3) uint8, mirrored where the augmentation said so, or activations.
      labels: (B,) int32: local label, or K + public label.
      direction: (B, d) from :func:`fedfr_jax.algorithm.losses.contrastive_direction` of the
        features under the incoming and the client's previous backbone, or None.
      weights: (B,) of the images in the identification loss, or None where all are 1.
      present: (B,) of the images in the other terms, 0 for those that fill up a partial batch, or
        None where all are 1.
    """

    images: jax.Array
    labels: jax.Array
    direction: Any = None
    weights: Any = None
    present: Any = None


@struct.dataclass
class Pool:
    """A client's own images and all public ones, P = M + N_0 entries, many of them unused.

    Attributes:
      labels: (P,) int32: local label, or K + public label.
      valid: (P,) bool, which entries the client trains on.
      weights: (P,) of the entries in the identification loss, or None where all are 1.
      batch_size: images of a mini-batch.
      partial: whether the last mini-batch of an epoch may have fewer.
      key: of the client and the round; the epoch is folded in.
      drawn: (P,) places of the entries among all for which random numbers are drawn, or None where
        they are the same: draws do not depend on which public images are here.
      draws: how many random numbers are drawn for an epoch.
      images: maps (B,) positions in the pool to images (or their activations).
      mirrored: whether half of the images are mirrored, drawn again in every epoch.
    """

    labels: jax.Array
    valid: jax.Array
    weights: jax.Array | None
    key: jax.Array
    drawn: jax.Array | None
    draws: int = struct.field(pytree_node=False)
    images: Any = struct.field(pytree_node=False)
    mirrored: bool = struct.field(pytree_node=False)
    batch_size: int = struct.field(pytree_node=False)
    partial: bool = struct.field(pytree_node=False)

    @property
    def size(self) -> jax.Array:
        """Images that the client trains on."""
        return self.valid.sum()

    def _draws(self, purpose: int, epoch) -> Int[Array, " P"]:
        bits = _bits(jax.random.split(jax.random.fold_in(self.key, epoch))[purpose], (self.draws,))
        return bits if self.drawn is None else bits[self.drawn]

    def order(self, epoch: Int[Array, ""]) -> Int[Array, " Q"]:
        """(Q,) positions in the order of an epoch: all P, filled up to whole batches if partial."""
        order = _order(self._draws(0, epoch), self.valid)
        return jnp.pad(order, (0, -len(order) % self.batch_size)) if self.partial else order

    def at(self, order: Int[Array, " Q"], step: Int[Array, ""]) -> Int[Array, " B"]:
        """(B,) positions of a mini-batch."""
        return jax.lax.dynamic_slice_in_dim(order, step * self.batch_size, self.batch_size)

    def present(self, step: Int[Array, ""]) -> Array | None:
        """(B,) weights with which a mean over the batch is the mean over the images there are."""
        if not self.partial:
            return None
        there = step * self.batch_size + jnp.arange(self.batch_size) < self.size
        return there * (self.batch_size / jnp.maximum(there.sum(), 1))

    def weights_of(self, at: Int[Array, " B"], step: Int[Array, ""]) -> Array | None:
        """(B,) weights of a mini-batch in the identification loss; None: all are 1."""
        present = self.present(step)
        if self.weights is None:
            return present
        return self.weights[at] if present is None else self.weights[at] * present

    def flips(self, epoch: Int[Array, ""]) -> Bool[Array, " P"]:
        """(P,) bool, which images an epoch mirrors."""
        if not self.mirrored:
            return jnp.zeros(self.valid.shape, bool)
        return self._draws(1, epoch) < jnp.uint32(2**31)

    def views(self, positions: Int[Array, " B"], flip: Bool[Array, " B"]) -> Images:
        """Images at (B,) positions, mirrored where (B,) ``flip`` says so."""
        return views(self.images(positions), flip)


def make_pool(
    spec: RoundSpec, shared: Shared, device: Device, client: Client, most_identities: int
) -> Pool:
    """The pool of one client; its key is the run's, with round and client folded in."""
    own, public = client.rows.shape[0], client.kept_public.shape[0]
    numbers = shared.public.numbers if public else None

    def images(positions):
        local = own_images(shared, device, client.rows[jnp.minimum(positions, own - 1)])
        if not public:
            return local
        other = shared.public.images[jnp.maximum(positions - own, 0)]
        is_own = jnp.expand_dims(positions < own, range(1, local.ndim))
        return jnp.where(is_own, local, other)

    labels = jnp.concatenate([client.labels, most_identities + shared.public.labels[:public]])
    valid = jnp.concatenate([jnp.arange(own) < client.size, client.kept_public])
    weights = (
        losses.class_weights(
            labels,
            valid,
            most_identities + shared.public.identities,
            type_of(shared.server.backbone),
        )
        if spec.loss.balanced
        else None
    )
    key = jax.random.fold_in(jax.random.fold_in(shared.key, shared.server.round), client.number)
    drawn, draws = None, own + public
    if numbers is not None:
        drawn, draws = jnp.concatenate([jnp.arange(own), own + numbers]), own + shared.public.count
    fed = spec.fed
    return Pool(
        labels,
        valid,
        weights,
        key,
        drawn,
        draws,
        images,
        fed.mirror,
        fed.batch_size,
        fed.partial_batch,
    )


def epoch_order(key: jax.Array, valid: Bool[Array, " P"]) -> Int[Array, " P"]:
    """A random order of the valid entries of the pool; the invalid ones come last.

    Args:
      valid: (P,) bool.

    Returns:
      (P,) int32 positions.
    """
    return _order(_bits(key, valid.shape), valid)


def _order(bits, valid):
    draws = bits >> 9  # as many bits as a random float32 has
    return jnp.argsort(jnp.where(valid, draws, jnp.uint32(2**32 - 1)))


def _bits(key, shape):
    # Integers, not random floats: the draws are the same in every precision.
    return jax.random.bits(key, shape, jnp.uint32)
